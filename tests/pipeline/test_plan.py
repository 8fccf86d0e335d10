"""The planner: its memory against what torch's allocator hands out, its sizes against LTX-2's, and
what it prints.
"""

import dataclasses
import itertools
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.published.parts import released_diffusion_decoder, released_module
from benchmarks.published.transformer import FACTS
from omniforcing.cli import main
from omniforcing.cli.options import parse_memory
from omniforcing.codec.streaming import StreamingVideoDecoder
from omniforcing.core.latents import Batch
from omniforcing.distill.sampling import rollout_config
from omniforcing.model.cache import FunctionalCache
from omniforcing.model.conditioning import KeyValue
from omniforcing.model.rollout import Rollout, gaussian, new_cache, refresh
from omniforcing.model.weights.architecture import expected_shapes
from omniforcing.model.weights.names import to_diffusers
from omniforcing.model.weights.parts.part import KINDS
from omniforcing.pipeline.config import Config, load_config
from omniforcing.pipeline.planner.cost import MASTER, Cluster, Setting, StageCost
from omniforcing.pipeline.planner.measured import allocated_bytes, held_bytes
from omniforcing.pipeline.planner.networks import BUILDERS, Sizes
from omniforcing.pipeline.planner.plan import advise, make_plans
from omniforcing.pipeline.planner.results import Results
from omniforcing.pipeline.planner.stream import (
    GEMMA,
    latents_memory,
    stream_plans,
    student_numbers,
)
from omniforcing.pipeline.planner.trace import Trace
from omniforcing.pipeline.stages.shared.training import training_options
from omniforcing.training.loop import fit
from omniforcing.training.stages import StageModule
from tests.support.refusals import refused, refuses
from tests.support.tiny_checkpoints import released_tensors

pytestmark = pytest.mark.extended

ROOT = Path(__file__).parents[2]
SMALL = [
    "teacher.model={layers: 2, heads: 2, video_head_dim: 48, audio_head_dim: 32}",
    "clips.height=64",
    "clips.seconds=2",
    "bidirectional_dmd.critic_steps=1",
    "self_forcing.critic_steps=1",
]


def small(*overrides: str) -> Config:
    return load_config([*SMALL, *overrides], ROOT, "smoke")


def measured_bytes(module: StageModule, batch: Batch, config: Config, work: Path) -> int:
    """The most bytes that the CPU allocator had handed out at once during two updates, the module's
    own included.
    """

    def batches(_epoch: int) -> Iterator[Batch]:
        yield from (batch, batch)

    def updates() -> None:
        fit(module, batches, steps=2, work=work, trainer=config.trainer)

    return held_bytes(module) + allocated_bytes(updates, torch.device("cpu"))


def test_measuring_says_nothing() -> None:
    code = (
        "import torch; from omniforcing.pipeline.planner.measured import allocated_bytes; "
        "print(allocated_bytes(lambda: torch.ones(1000), torch.device('cpu')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (int(done.stdout) >= 4000, done.stderr) == (True, "")


KEEP, RECOMPUTE = False, True
QUICK = [
    ("teacher", KEEP, 4),
    ("bidirectional_dmd", KEEP, 1),
    ("causal_ode", RECOMPUTE, 4),
    ("self_forcing", RECOMPUTE, 2),
]
LEAN = "trainer={moments: bf16, averages: bf16, batched_guidance: false}"
ADAPTED = (
    "bidirectional_dmd={adapter: {rank: 8}, muon_lr: null}",
    "causal_ode={adapter: {rank: 8}, muon_lr: null}",
    "self_forcing={adapter: {rank: 8}, critic_adapter: {rank: 8}, muon_lr: null, "
    "critic_muon_lr: null}",
)
INT8 = (
    "bidirectional_dmd={critic_adapter: {rank: 8}, critic_muon_lr: null}",
    "trainer.frozen=int8",
)
OTHERS = [
    case
    for case in itertools.product(BUILDERS, (KEEP, RECOMPUTE), (1, 4))
    if case not in QUICK and case[1:] != (KEEP, 1)
]


@pytest.mark.parametrize(
    ("name", "recompute", "batch", "more"),
    [
        *((*case, ()) for case in QUICK),
        pytest.param("self_forcing", RECOMPUTE, 1, (LEAN,), marks=pytest.mark.slow),
        pytest.param("self_forcing", RECOMPUTE, 2, ADAPTED, marks=pytest.mark.slow),
        pytest.param("causal_ode", RECOMPUTE, 1, (*ADAPTED, *INT8), marks=pytest.mark.slow),
        *(pytest.param(*case, (), marks=pytest.mark.slow) for case in OTHERS),
    ],
)
def test_planned_memory_is_that_of_a_real_training_step(
    name: str, recompute: bool, batch: int, more: tuple[str, ...], tmp_path: Path
) -> None:
    config = small(
        *("trainer.checkpoint_every=2", "trainer.accelerator=cpu", "self_forcing.steered=0.5"),
        *more,
    )
    sizes = Sizes.from_config(config, ROOT)
    planned = StageCost(name, config, sizes).bytes(
        Setting("none", recompute, batch), 1, foreach=False
    )
    real = dataclasses.replace(sizes, device="cpu", checkpoint_activations=recompute)
    module = BUILDERS[name](config, real, torch.float32, training_options(config))
    states = len(config.student.sigmas) + 1 if name == "causal_ode" else 0
    found = measured_bytes(module, real.batch(config, batch, states), config, tmp_path)
    assert sum(planned.values()) == pytest.approx(found, rel=0.1)


@pytest.mark.parametrize("name", ["causal_ode", "self_forcing"])
def test_a_trace_is_the_same_whether_results_are_remembered_or_worked_out(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small("self_forcing.steered=0.5")

    def trace() -> Trace:
        return StageCost(name, config, Sizes.from_config(config, ROOT)).traced(True, 2, 1)

    remembered = trace()
    monkeypatch.setattr(
        Results, "__call__", lambda _, function, args, kwargs: function(*args, **kwargs)
    )
    assert trace() == remembered


def test_adapters_take_the_base_once() -> None:
    config = small(*ADAPTED)
    sizes = Sizes.from_config(config, ROOT)
    whole = StageCost("self_forcing", small(), sizes).parameters["teacher"]
    for name in ("causal_ode", "self_forcing"):
        cost = StageCost(name, config, sizes)
        assert cost.parameters["teacher"] == whole
        assert cost.parameters["weights"] < 0.2 * whole
        assert cost.moment_bytes < 0.5 * MASTER * whole


def test_the_bytes_of_the_caches_are_those_of_a_rollout() -> None:
    config = small()
    sizes = dataclasses.replace(Sizes.from_config(config, ROOT), device="cpu")
    planned = StageCost("self_forcing", config, sizes).caches(2)
    rollout, generator = (
        rollout_config(config.student, config.clips.latent_counts, sizes.grid),
        torch.Generator().manual_seed(0),
    )
    student = sizes.network(config.student.sinks)
    text, cache = student.cache_text(sizes.text(2)), new_cache(student, rollout, static=False)
    assert isinstance(cache, FunctionalCache)
    written: list[KeyValue] = []
    for index in range(config.horizon):
        refresh(
            student,
            rollout,
            cache,
            text,
            index,
            gaussian(student, config.student.table.counts(index), sizes.grid, 2, generator),
            generator,
        )
        written += cache.blocks[index].values()
    assert planned == sum(t.numel() * 4 for pair in written for t in pair)


@pytest.mark.parametrize(
    "name", ["causal_ode", pytest.param("self_forcing", marks=pytest.mark.slow)]
)
def test_depth_is_carried_on_from_two_small_networks(name: str) -> None:
    config = small()
    stages = [
        StageCost(name, config, Sizes.from_config(config, ROOT), depths)
        for depths in ((1, 2), None)
    ]
    setting = Setting("all", True)
    few, whole = (stage.bytes(setting, 8) for stage in stages)
    assert sum(few.values()) == pytest.approx(sum(whole.values()), rel=0.03)
    few_s, whole_s = (stage.seconds(setting, Cluster(8, 80e9)) for stage in stages)
    assert few_s == pytest.approx(whole_s, rel=0.01)


def test_a_plan_is_the_same_every_time_and_no_part_of_it_is_negative() -> None:
    config, settings = (
        small(),
        [Setting(way, recompute) for way in ("none", "all") for recompute in (False, True)],
    )
    plans = []
    for _ in range(2):
        stages = [
            StageCost(name, config, Sizes.from_config(config, ROOT))
            for name in ("causal_ode", "teacher")
        ]
        plans.append(
            [stage.bytes(s, 1 if s.sharding == "none" else 8) for stage in stages for s in settings]
        )
    assert plans[0] == plans[1]
    assert all(part >= 0 for plan in plans[0] for part in plan.values())


@pytest.mark.parametrize(
    ("preset", "release"), [("ltx2", "2.0"), ("ltx23", "2.3"), ("ltx25", "2.5")]
)
def test_sizes_of_a_preset_are_those_of_the_release(
    preset: str, release: str, tmp_path: Path
) -> None:
    sizes = Sizes.from_config(load_config(root=ROOT, preset=preset), tmp_path)
    released = {to_diffusers(n): tuple(s) for n, s in released_tensors(release).items()}
    assert expected_shapes(sizes.core, preset) == released
    tensors, parameters = FACTS["counts"][release]
    assert (len(released), sum(map(math.prod, released.values()))) == (tensors, parameters)
    assert sizes.grid == (16, 24)
    # Captions of 2.0 are projected in the transformer, later ones in the connectors.
    assert tuple(sizes.caption) == ((3840, 3840) if release == "2.0" else (4096, 2048))


@pytest.mark.parametrize(
    ("preset", "release"), [("ltx2", "2.0"), ("ltx23", "2.3"), ("ltx25", "2.5")]
)
def test_a_stream_takes_every_part_of_the_release_and_half_in_bf16(
    preset: str, release: str, tmp_path: Path
) -> None:
    config = load_config(root=ROOT, preset=preset)
    plans = stream_plans(config, Sizes.from_config(config, tmp_path))
    parts = {kind.name: released_module(kind, release)[1] for kind in KINDS}
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    whole, half, freed = plans.values()
    connectors = counts.pop("connectors")
    assert half.codec == whole.codec == 4 * sum(counts.values())
    assert half.text == 2 * (GEMMA + connectors) and freed.text == 0
    assert half.student == 2 * FACTS["counts"][release][1]
    # Keys and values of 1024 tokens in 48 layers: from 2.3 on, of each sigma and of the refresh.
    assert half.prompt == (1 if release == "2.0" else 5) * 2 * 2 * 48 * 1024 * (4096 + 2048)
    in_fp32 = half.codec + half.decoder
    assert half.total - in_fp32 == (whole.total - in_fp32) / 2
    assert half.decoder == whole.decoder == 4 * kept_by_decoder(parts["vae"], (16, 24))
    assert stream_plans(small(), Sizes.from_config(small(), tmp_path)) == {}


def kept_by_decoder(vae: Any, grid: tuple[int, int]) -> int:
    """Numbers that a released decoder keeps between two blocks of a stream."""
    with torch.device("meta"), torch.inference_mode():
        stream = StreamingVideoDecoder(vae)
        for count in (1, 3, 3, 3, 3):
            stream.push(torch.zeros(1, 128, count, *grid))
    places = 2  # two counts, which are no numbers of the picture
    return sum(tensor.numel() for tensor in stream.state().values()) - places


def test_a_stream_by_the_diffusion_decoder_takes_its_weights_and_keeps_latents_alone(
    tmp_path: Path,
) -> None:
    told = ["codec.video_decoder=diffusion"]
    plain, config = (load_config(more, ROOT, "ltx25") for more in ([], told))
    sizes = Sizes.from_config(config, tmp_path)
    module = released_diffusion_decoder()[1]
    count = sum(p.numel() for p in module.parameters())
    one, other = (stream_plans(c, sizes)["bf16"] for c in (plain, config))
    assert other.codec == one.codec + 4 * count
    assert other.decoder == 4 * 128 * (6 + 4) * 16 * 24
    assert latents_memory(config)["codec"] == other.codec


def test_the_cache_of_a_planned_stream_is_what_a_rollout_holds() -> None:
    config = small()
    sizes = dataclasses.replace(Sizes.from_config(config, ROOT), device="cpu")
    settings = rollout_config(config.student, config.clips.latent_counts, sizes.grid)
    student = sizes.network(config.student.sinks)
    rollout = Rollout(student, sizes.text(1), settings, torch.Generator().manual_seed(0))
    for _ in range(3):
        next(rollout)
    held = sum(t.numel() for name, t in rollout.state().items() if t.ndim > 1)
    numbers = student_numbers(
        sizes.core, settings.table, settings.window, settings.grid, sizes.length
    )
    # The sinks' own keys and values are left out: 16 tokens beside a picture's thousands.
    assert 0 <= held - numbers["cache"] < 0.1 * held


@pytest.fixture(scope="module")
def stage() -> StageCost:
    config = small()
    return StageCost("causal_ode", config, Sizes.from_config(config, ROOT))


def test_sharding_divides_states_and_recomputing_shrinks_activations(stage: StageCost) -> None:
    one, eight = (stage.bytes(Setting("all", False), shards) for shards in (1, 8))
    for part in ("weights", "ema", "moments"):
        assert one[part] == 8 * eight[part] > 0
    assert one["moments"] == 2 * one["weights"]
    assert one["gathered"] == 0 < eight["gathered"]
    assert stage.bytes(Setting("all", True), 8)["activations"] < eight["activations"]


def test_plans_keep_the_global_batch_and_say_what_fits(stage: StageCost) -> None:
    cluster = Cluster(16, 1e9)
    plans = make_plans(stage, cluster, batch=32)
    ways = {(p.setting.sharding, p.setting.recompute) for p in plans}
    assert ways == set(itertools.product(("none", "node", "all"), (False, True)))
    assert all(p.fits and (p.setting.batch, p.setting.accumulation) == (2, 1) for p in plans)
    assert "2 per GPU x 1" in advise(stage, cluster, plans)
    between = sum(sorted(p.total for p in plans)[-2:]) / 2 / 0.92
    tight = make_plans(stage, Cluster(16, between), batch=32)
    assert [p.setting.accumulation for p in tight if p.setting == Setting("none", False, 1, 2)] == [
        2
    ]
    least = min(p.total for p in make_plans(stage, Cluster(16, 1))) / 0.92
    none, some = Cluster(16, 0.99 * least), Cluster(16, 1.01 * least)
    assert "nothing fits" in advise(stage, none, make_plans(stage, none))
    assert "1 per GPU" in advise(stage, some, make_plans(stage, some))


def test_sharding_that_comes_to_the_same_is_planned_once(stage: StageCost) -> None:
    assert {p.setting.sharding for p in make_plans(stage, Cluster(8, 1e9))} == {"none", "node"}
    assert {p.setting.sharding for p in make_plans(stage, Cluster(1, 1e9))} == {"none"}


def test_the_command_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["plan", "--preset", "smoke", "--gpus", "2", "--stage", "causal_ode", "--json"])
    assert end.value.code == 0
    found = json.loads(capsys.readouterr().out)
    plan = found["stages"]["causal_ode"]["plans"][0]
    assert plan["total"] == pytest.approx(sum(plan["bytes"].values()))
    assert found["cluster"]["gpus"] == 2


@pytest.mark.parametrize("text", ["eighty", "0GB", "80TB", "-1"])
def test_a_memory_that_is_no_size_is_refused(text: str) -> None:
    with refuses("option.malformed", text):
        parse_memory(text)


def test_sizes_of_memory() -> None:
    assert parse_memory("80GB") == parse_memory("80") == 80e9
    assert parse_memory("1.5GiB") == 1.5 * 2**30


def test_an_unknown_stage_is_refused_and_the_nearest_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["plan", "--preset", "smoke", "--stage", "self_forcin"])
    assert end.value.code == 2
    assert "'self_forcing'" in capsys.readouterr().err


def test_no_gpus_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["plan", "--preset", "smoke", "--gpus", "0"])
    assert end.value.code == 2
    refused(capsys.readouterr().err, "option.out-of-range", "--gpus")
