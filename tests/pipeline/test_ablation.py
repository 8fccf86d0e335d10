"""The ablation's variants, where a student starts, and the command through the real DVC on a toy
project.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from omniforcing.core.config import flatten, to_dict
from omniforcing.core.files import folder_digest, read_json
from omniforcing.distill.config import CausalOdeInit, SelfForcingInit
from omniforcing.model.weights.student import load_model, save_model
from omniforcing.pipeline import tracking
from omniforcing.pipeline.config import Config, load_config
from omniforcing.pipeline.experiments.experiments import Laboratory
from omniforcing.pipeline.experiments.variants import (
    RANKS,
    all_variants,
    chosen_variants,
    seeded,
    variants_of,
)
from omniforcing.pipeline.generate import write_pipelines
from omniforcing.pipeline.stages import causal_ode, self_forcing
from omniforcing.pipeline.stages.shared import training as train_stage
from omniforcing.training.config import OptimiserConfig
from tests.support.checkout import ENVIRONMENT, alive, changed_files, commit, finish, start, status
from tests.support.refusals import refused, refuses
from tests.support.tiny_models import GRID, features, tiny_model
from tests.support.toy_project import CLIPS, STAGES, TEACHER

pytestmark = pytest.mark.extended

ROOT = Path(__file__).parents[2]
CHANGED = {
    "without-I": {"trajectories.source", "causal_ode.init"},
    "without-II": {"self_forcing.init"},
    "without-III": {"self_forcing.optim.steps"},
    "merged-layout": {"student.layout", "student.window"},
    "teacher-pairs": {"trajectories.source"},
    "causal-scores": {"self_forcing.scores"},
}
ADAPTED = ("bidirectional_dmd", "causal_ode", "self_forcing")


@pytest.mark.parametrize("preset", ["pocket", "ltx2", "smoke"])
def test_a_variant_changes_exactly_its_keys_in_every_preset_that_it_fits(preset: str) -> None:
    base = load_config(root=ROOT, preset=preset)
    variants = chosen_variants(ROOT, base, [])
    # Clips of two seconds are two merged blocks, which leave no window.
    assert set(CHANGED) - set(variants) == ({"merged-layout"} if preset == "smoke" else set())
    plain = flatten(to_dict(base))
    for name, variant in variants.items():
        changed = flatten(to_dict(load_config(list(variant.overrides), ROOT, preset)))
        assert {key for key in plain if plain[key] != changed[key]} == CHANGED[name]


def test_variants_of_a_rank_adapt_every_role_of_every_stage_and_train_it_faster() -> None:
    base = load_config(root=ROOT, preset="pocket")
    variants = chosen_variants(ROOT, base, ["adapters"])
    assert list(variants) == [f"adapters-{rank}" for rank in RANKS]
    for rank, variant in zip(RANKS, variants.values(), strict=True):
        config = load_config(list(variant.overrides), ROOT, "pocket")
        for name in ADAPTED:
            section = getattr(config, name)
            assert section.adapter.rank == rank
            assert section.optim.lr.video > getattr(base, name).optim.lr.video
            if name != "causal_ode":
                assert section.critic_adapter.rank == rank


def test_students_of_fewer_steps_keep_the_first_sigma_and_leave_out_the_smallest() -> None:
    base = load_config(root=ROOT, preset="pocket")
    sigmas = base.student.sigmas
    found = {}
    for name, variant in chosen_variants(ROOT, base, ["steps"]).items():
        config = load_config(list(variant.overrides), ROOT, "pocket")
        found[name] = config.student.sigmas
        assert config.trajectories.steps == len(config.student.sigmas)
    assert found == {"steps-3": sigmas[:3], "steps-2": [sigmas[0], sigmas[2]]}


def test_another_seed_has_a_baseline_of_its_own_and_is_found_by_its_experiments_name() -> None:
    base = load_config(root=ROOT, preset="pocket")
    chosen = seeded(chosen_variants(ROOT, base, ["steps-2"]), 3)
    assert list(chosen) == ["baseline-seed-3", "steps-2-seed-3"]
    assert chosen["steps-2-seed-3"].changes[-1] == "seed=3"
    assert all_variants(base, ["pocket-steps-2-seed-3", "by-hand"])["steps-2-seed-3"].seed == 3
    assert not [name for name in all_variants(base, ["pocket-steps-2"]) if "seed" in name]


def test_a_mistaken_or_misfitting_variant_is_one_sentence() -> None:
    smoke = load_config(root=ROOT, preset="smoke")
    with refuses("option.unknown-name", "'witout-I'", "without-I"):
        chosen_variants(ROOT, smoke, ["without-II", "witout-I"])
    with refuses("config.out-of-range", "student.window is 0"):
        chosen_variants(ROOT, smoke, ["merged-layout"])
    assert list(chosen_variants(ROOT, smoke, ["without-III", "without-I"])) == [
        "without-I",
        "without-III",
    ]


def test_a_merged_variant_sees_as_much_of_the_past() -> None:
    config = load_config(root=ROOT, preset="pocket")
    merged = load_config(list(variants_of(config)["merged-layout"].overrides), ROOT, "pocket")
    assert merged.horizon - merged.student.window == config.horizon - config.student.window


@pytest.fixture
def students(tmp_path: Path) -> dict[str, Path]:
    """A model per stage, all different; only Stage II's has sinks."""
    folders = {name: tmp_path / name for name in ("teacher", "bidirectional_dmd", "causal_ode")}
    for number, (name, folder) in enumerate(folders.items(), 1):
        model = tiny_model(3 if name == "causal_ode" else 0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1 + 0.1 * number)
        save_model(model, folder)
    return folders


@pytest.mark.parametrize(
    ("script", "stage", "init"),
    [(causal_ode, "causal_ode", init) for init in CausalOdeInit]
    + [(self_forcing, "self_forcing", init) for init in SelfForcingInit],
)
def test_a_student_starts_from_the_weights_that_init_names_and_from_sinks(
    script: ModuleType,
    stage: str,
    init: CausalOdeInit | SelfForcingInit,
    students: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = Config()
    config.student.sinks, config.clips.seconds, config.student.window = 3, 2, 1
    getattr(config, stage).init = init
    trained = []
    data = SimpleNamespace(
        grid=GRID, text=SimpleNamespace(unconditional=features(1), features=features(5))
    )
    monkeypatch.setattr(script, "open_shards", lambda *_: data)
    monkeypatch.setattr(
        script, "train_and_publish", lambda _stage, module, *_: trained.append(module.model)
    )
    script.run(SimpleNamespace(config=config, input=students.__getitem__))
    expected = load_model(students[init.value])
    assert all(
        torch.equal(a, b)
        for a, b in zip(trained[0].core.parameters(), expected.core.parameters(), strict=True)
    )
    assert trained[0].sinks.shape[0] == 3
    if init.value == "causal_ode":
        assert torch.equal(trained[0].sinks, expected.sinks)


def test_a_stage_of_no_steps_publishes_the_weights_it_starts_from(tmp_path: Path) -> None:
    written: list[object] = []

    @contextmanager
    def publish() -> Iterator[Path]:
        yield tmp_path

    nothing: Any = None
    stage: Any = SimpleNamespace(
        work=tmp_path,
        is_writer=True,
        publish=publish,
        write_curves=lambda path: written.append(path.read_text()),
        write_metrics=written.append,
    )
    model = tiny_model(3)
    module: Any = SimpleNamespace(ema=SimpleNamespace(model=model), summary=dict)
    train_stage.train_and_publish(stage, module, nothing, OptimiserConfig(steps=0))
    kept = load_model(tmp_path, sinks=3)
    assert all(
        torch.equal(a, b) for a, b in zip(kept.parameters(), model.parameters(), strict=True)
    )
    assert written == ["step\n", {"steps": 0}]


ABLATED = (
    STAGES.removesuffix(")\n")
    + """\
    StageSpec(
        "self_forcing",
        "Count slowly.",
        reads=("clips",),
        keys=("self_forcing",),
        body="pipelines/self_forcing.py",
    ),
    StageSpec(
        "evaluate",
        "Measure.",
        reads=("clips", "self_forcing"),
        keys=("evaluate",),
        writes="evaluation",
        body="pipelines/evaluate.py",
    ),
)
"""
)
# The toy's weights are the name of what they started from.
COUNTING = TEACHER.replace('"teacher"', '"self_forcing"').replace(
    "str(total)", "stage.config.self_forcing.init.value"
)
EVALUATE = """
from omniforcing.core.files import write_json

def run(stage):
    figures = {"frechet_video": 0.5, "frechet_audio": 0.5, "clips": 2}
    with stage.publish() as folder:
        models = {name: figures for name in ("real", "shuffled", "teacher", "self_forcing")}
        write_json(folder / "metrics.json", {"models": models, "settings": {"preset": stage.config.preset}})
    stage.write_metrics(figures)
"""
ABLATION = """
import sys
from omniforcing.core.config import project_root
from omniforcing.core.console import run_command
from omniforcing.pipeline.experiments.ablation import run_ablation

def measure(trial):
    assert (trial.data / "clips" / "numbers.txt").is_file()
    started = (trial.weights / "sum.txt").read_text()
    assert started == trial.config.self_forcing.init.value
    return {"frechet_video": float(len(started)), "frechet_audio": 1.0, "clips": 2}

def compare(trials):
    return {name: {"minutes": len(trial.config.self_forcing.init.value)} for name, trial in trials.items()}

names = [word for word in sys.argv[1:] if "=" not in word]
seeds = [int(word[5:]) for word in sys.argv[1:] if "=" in word]
sys.exit(run_command(lambda: run_ablation(project_root(), None, names, measure, seeds, compare)))
"""
# Writes more if a file asks for it that DVC does not know.
GROWING = CLIPS.replace(
    "stage.config.clips.count)\n    stage",
    'stage.config.clips.count + "1 " * MORE.exists())\n    stage',
)
GROWING = "from pathlib import Path\nMORE = Path('.work/more')\n" + GROWING
SECTIONS = "self_forcing:\n  scores: bidirectional\nevaluate: {clips: 2}\n"
CHOSEN = ("without-II", "causal-scores")


@pytest.fixture
def ablated(repository: Path) -> Path:
    """The toy project with the stages that an ablation runs, committed and not yet run."""
    scripts = {
        "stages": ABLATED,
        "clips": GROWING,
        "self_forcing": COUNTING,
        "evaluate": EVALUATE,
        "ablation": ABLATION,
    }
    for script, text in scripts.items():
        (repository / "pipelines" / f"{script}.py").write_text(text)
    config = repository / "conf" / "config.yaml"
    config.write_text(config.read_text() + SECTIONS)
    for preset in (repository / "conf" / "preset").glob("*.yaml"):
        preset.write_text(preset.read_text() + "self_forcing: {}\nevaluate: {}\n")
    write_pipelines(repository)
    commit(repository)
    return repository


def wait_for_second_variant(repository: Path, step: int) -> int:
    """Wait until the second variant's training has passed ``step``; return its process id."""
    work = (
        repository
        / ".work"
        / "pocket"
        / "ablation"
        / "checkout"
        / ".work"
        / "pocket"
        / "self_forcing"
    )
    for _ in range(3000):
        found = [int(path.read_text()) for path in work.glob("*/step")]
        if len(found) == 2 and min(found) >= step:
            return int((work / "lock").read_text())
        time.sleep(0.1)
    raise AssertionError("the second variant never came so far")


def command(repository: Path, *words: str) -> str:
    return subprocess.run(
        words, cwd=repository, env=ENVIRONMENT, check=True, capture_output=True, text=True
    ).stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent death signal is Linux's")
def test_killed_an_ablation_goes_on_with_the_variant_that_is_missing_and_leaves_the_checkout_alone(
    ablated: Path,
) -> None:
    code, output = finish(start(ablated, *CHOSEN, script="ablation"))
    assert code == 2
    refused(output, "experiments.no-baseline", "dvc.lock is missing")
    code, output = finish(start(ablated))
    assert code == 0, output
    commit(ablated)
    head = command(ablated, "git", "log", "-1", "--format=%H %D")

    process = start(ablated, *CHOSEN, script="ablation", pause=0.3)
    training = wait_for_second_variant(ablated, 3)
    os.kill(process.pid, signal.SIGKILL)
    finish(process)
    for _ in range(50):
        if not alive(training):
            break
        time.sleep(0.1)
    assert not alive(training)

    # What is edited meanwhile is refused as long as it could change a result.
    (ablated / "README.md").write_text("read me")
    code_file = ablated / "pipelines" / "clips.py"
    text = code_file.read_text()
    code_file.write_text(text + "\n")
    code, output = finish(start(ablated, *CHOSEN, script="ablation"))
    assert code == 2 and "error[experiments.not-committed]: pipelines/clips.py" in output
    code_file.write_text(text)

    code, output = finish(start(ablated, *CHOSEN, script="ablation"))
    assert code == 0, output
    assert output.count("trained already") == 1
    table = ablated / "data" / "pocket" / "ablation" / "ablation.json"
    rows = read_json(table)["rows"]
    assert list(rows) == sorted(["real", "chance", "teacher", "baseline", *CHOSEN])
    assert rows["without-II"]["frechet_video"] == len("bidirectional_dmd")

    client = tracking.connect(ablated)
    runs = client.search_runs([client.get_experiment_by_name(tracking.EXPERIMENT).experiment_id])
    (parent,) = [run for run in runs if run.info.run_name == "ablation pocket"]
    children = {
        r.data.tags["experiment"]: r
        for r in runs
        if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id
    }
    assert set(children) == {f"pocket-{name}" for name in CHOSEN}
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert children["pocket-causal-scores"].data.metrics["first"] >= 3
    assert parent.data.metrics["without-II.frechet_video"] == len("bidirectional_dmd")
    assert "ablation.png" in {
        artifact.path for artifact in client.list_artifacts(parent.info.run_id)
    }

    # Under another seed the baseline is trained too, on the same clips.
    code, output = finish(start(ablated, "without-II", "seed=3", script="ablation"))
    assert code == 0, output
    assert output.count("trained already") == 2 and "stage clips" not in output
    seeded_rows = read_json(table)["rows"]
    assert set(seeded_rows) - set(rows) == {"baseline-seed-3", "without-II-seed-3"}
    assert seeded_rows["baseline"]["minutes"] == len("causal_ode")

    # One variant by name leaves the table with all that are trained, and with what it belongs to.
    code, output = finish(start(ablated, "without-II", script="ablation"))
    assert code == 0, output
    again = read_json(table)
    assert again["rows"] == seeded_rows
    evaluation = folder_digest(ablated / "data" / "pocket" / "evaluation")
    assert again["settings"] == {
        "preset": "pocket",
        "git_commit": head.split()[0],
        "evaluation": evaluation,
    }

    assert command(ablated, "git", "log", "-1", "--format=%H %D") == head
    assert changed_files(ablated) == "?? README.md\n"
    assert command(ablated, "git", "stash", "list") == ""
    assert status(ablated) == "Data and pipelines are up to date.\n"
    assert set(command(ablated, "dvc", "exp", "list", "--name-only").split()) == {
        *(f"pocket-{name}" for name in CHOSEN),
        *("pocket-baseline-seed-3", "pocket-without-II-seed-3"),
    }
    command(ablated, "dvc", "exp", "apply", "pocket-without-II")
    assert (
        ablated / "data" / "pocket" / "self_forcing" / "sum.txt"
    ).read_text() == "bidirectional_dmd"

    # Other data under the same commit, as a user's folder of videos has them: what was trained
    # before is no variant of it.
    command(ablated, "git", "checkout", "--force", "--quiet", ".")
    (ablated / ".work" / "more").touch()
    command(ablated, "dvc", "repro", "--force", "--single-item", "clips")
    code, output = finish(start(ablated))
    assert code == 0, output
    code, output = finish(start(ablated, "without-II", script="ablation"))
    assert code == 0, output
    assert "trained already" not in output
    assert set(read_json(table)["rows"]) == {"real", "chance", "teacher", "baseline", "without-II"}
    code, output = finish(start(ablated, "without-II", script="ablation"))
    assert code == 0, output
    assert output.count("trained already") == 1


def test_a_variant_of_other_data_is_not_finished(ablated: Path) -> None:
    def entry(
        path: str, digest: str, *deps: tuple[str, str], params: str = ""
    ) -> dict[str, object]:
        listed = [{"path": f"data/pocket/{name}", "md5": md5} for name, md5 in deps]
        return {
            "cmd": "x",
            "deps": listed,
            "params": params,
            "outs": [{"path": f"data/pocket/{path}", "md5": digest}],
        }

    def lock(clips: str, teacher: str, evaluation: str, params: str = "") -> dict[str, object]:
        stages = {
            "clips": entry("clips", clips),
            "teacher": entry("teacher", teacher, ("clips", clips), params=params),
            "self_forcing": entry(
                "self_forcing", f"{teacher}{params}", ("teacher", teacher), params=params
            ),
            "evaluate": entry("evaluation", evaluation, ("self_forcing", f"{teacher}{params}")),
        }
        return {"schema": "2.0", "stages": stages}

    (ablated / "dvc.lock").write_text(json.dumps(lock("few", "taught", "timed")))
    commit(ablated)
    head = command(ablated, "git", "rev-parse", "HEAD").strip()
    (ablated / "dvc.lock").write_text(json.dumps(lock("few", "other", "timed", "changed")))
    commit(ablated)
    command(ablated, "git", "update-ref", f"refs/exps/{head[:2]}/{head[2:]}/trial", "HEAD")
    trial = command(ablated, "git", "rev-parse", "HEAD").strip()
    command(ablated, "git", "reset", "-q", "--hard", head)

    def found(**baseline: str) -> str | None:
        values = {"clips": "few", "teacher": "taught", "evaluation": "timed", **baseline}
        (ablated / "dvc.lock").write_text(json.dumps(lock(**values)))
        return Laboratory.open(ablated, ablated / ".work" / "lab", "pocket").find(
            "trial", "self_forcing"
        )

    assert found() == trial
    assert found(evaluation="timed again") == trial
    assert found(clips="more", teacher="taught on more") is None
    # The variant's own teacher came out otherwise in a second run of the same.
    assert found(teacher="again", params="changed") is None


def test_a_cache_that_dvc_cannot_name_is_one_sentence(ablated: Path) -> None:
    (ablated / "dvc.lock").write_text("schema: '2.0'\nstages: {}\n")
    lab = Laboratory.open(ablated, ablated / ".work" / "lab", "pocket")
    shutil.rmtree(ablated / ".dvc")
    with refuses("experiments.dvc-failed", "dvc cache dir"):
        lab.reset()


def test_an_ablation_outside_git_is_one_sentence(project: Path) -> None:
    with refuses("experiments.git-failed", "git status", "not a git repository"):
        Laboratory.open(project, project / ".work" / "lab", "pocket")
