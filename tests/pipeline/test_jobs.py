"""A stage as a Ray job: its log, its MLflow run and its exit code come back, DVC runs it so, and
refusals are sentences.
"""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from yaml import safe_load

from benchmarks.local_cluster import LocalCluster
from omniforcing.core.environment import JOB_VARIABLE
from omniforcing.pipeline import tracking
from omniforcing.pipeline.cluster import jobs
from omniforcing.pipeline.cluster.jobs import HEAVY, goes_to_cluster, job_variables, submit_stage
from omniforcing.pipeline.cluster.kuberay import manifest
from omniforcing.pipeline.config import Config, load_config
from omniforcing.pipeline.declaration import stage_names
from tests.support.answering import answering, black_hole
from tests.support.ray_cluster import ROOT, environment
from tests.support.refusals import refused, refuses

pytestmark = pytest.mark.extended

ray_test = pytest.mark.ray
SCHEMA = Path(__file__).parent / "data" / "rayjob.schema.json"


@pytest.fixture
def checkout(repository: Path, ray_cluster: LocalCluster) -> Path:
    """The toy project with the cluster as ``ray``."""
    (repository / "conf" / "cluster" / "ray.yaml").write_text(
        f"address: auto\njobs: {ray_cluster.jobs}\nworkers: 2\n"
    )
    (repository / ".rayignore").write_text("data/\n.work/\nmlflow.db\nmlruns/\n")
    # The code that a job takes along: the package, as the project's own checkout has it.
    shutil.rmtree(repository / "src")
    (repository / "src").symlink_to(ROOT / "src")
    return repository


def run(folder: Path, *words: str, **changed: str) -> tuple[int, str]:
    """Run python on ``words`` in a checkout, as a user with the cluster's token does."""
    variables = environment() | {"PYTHONPATH": str(ROOT / "src"), "SHELL": "/bin/sh"} | changed
    answer = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=variables,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    return answer.returncode, answer.stdout


@ray_test
def test_a_job_brings_back_log_run_output_and_exit_code(checkout: Path) -> None:
    code, said = run(checkout, "-m", "omniforcing", "stage", "clips")
    assert code == 0, said
    script = checkout / "pipelines" / "teacher.py"
    script.write_text(
        script.read_text().replace("    total =", '    print("counting", flush=True)\n    total =')
    )
    code, said = run(checkout, "-m", "omniforcing", "job", "teacher", "cluster=ray")
    assert code == 0, said
    assert "counting" in said and "succeeded, exit code 0; MLflow run" in said
    # The output lies in the checkout, not in the copy that the job ran from, and so does the run.
    assert (checkout / "data" / "pocket" / "teacher" / "sum.txt").read_text() == "3"
    found = tracking.connect(checkout).get_run(said.split("MLflow run ")[1].split()[0])
    assert (found.info.status, found.data.tags["stage"]) == ("FINISHED", "teacher")


@ray_test
def test_a_job_that_fails_fails_here_with_its_code_and_sentence(checkout: Path) -> None:
    code, said = run(checkout, "-m", "omniforcing", "job", "teacher", "cluster=ray")
    assert code == 2, said
    assert "error[file.missing]: data/pocket/clips" in said
    assert "failed, exit code 2" in said


@ray_test
def test_dvc_runs_heavy_stages_as_jobs_and_light_ones_here(checkout: Path) -> None:
    code, said = run(checkout, "-m", "dvc", "repro", OMNIFORCING_CLUSTER="ray")
    assert code == 0, said
    assert said.count("at http://127.0.0.1") == 1 and "stage teacher, preset pocket" in said
    assert (checkout / "data" / "pocket" / "teacher" / "sum.txt").read_text() == "3"
    code, said = run(checkout, "-m", "dvc", "repro")
    assert "Stage 'teacher' didn't change, skipping" in said


@ray_test
def test_a_submitter_that_is_killed_leaves_a_job_that_the_next_one_follows(checkout: Path) -> None:
    assert run(checkout, "-m", "omniforcing", "stage", "clips")[0] == 0
    script = checkout / "pipelines" / "teacher.py"
    script.write_text(script.read_text().replace('os.environ.get("TOY_PAUSE", "0")', "0.7"))
    variables = environment() | {"PYTHONPATH": str(ROOT / "src")}
    words = [sys.executable, "-m", "omniforcing", "job", "teacher", "cluster=ray"]
    first = subprocess.Popen(words, cwd=checkout, env=variables, text=True, stdout=subprocess.PIPE)
    assert first.stdout is not None
    for line in first.stdout:
        if line.startswith("mlflow run: "):
            break
    first.kill()
    first.wait()
    code, said = run(checkout, *words[1:])
    assert code == 0, said
    assert "is under way from before: following it" in said
    assert (checkout / "data" / "pocket" / "teacher" / "sum.txt").read_text() == "3"
    assert len(tracking.connect(checkout).search_runs(["1"], "tags.stage = 'teacher'")) == 1


@ray_test
def test_another_token_is_refused(checkout: Path) -> None:
    code, said = run(
        checkout,
        "-m",
        "omniforcing",
        "job",
        "clips",
        "cluster=ray",
        RAY_AUTH_TOKEN="another-token-0123456789abcdef0123456789",
    )
    assert code == 2
    refused(said, "cluster.refused-token", "RAY_AUTH_MODE=token")


def test_an_address_without_a_cluster_is_refused(project: Path) -> None:
    config = load_config(["cluster.jobs=http://127.0.0.1:1"], project)
    with refuses("cluster.unreachable", "cluster.jobs=http://127.0.0.1:1"):
        submit_stage("clips", config, project, [])


@pytest.mark.parametrize("variable", ["RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"])
def test_the_named_cluster_is_asked_and_never_the_environments(
    project: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    with answering(503) as other, answering(200, b'{"ray_version": "1.0"}') as named:
        monkeypatch.setenv(variable, other.url)
        monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
        config = load_config([f"cluster.jobs={named.url}"], project)
        with refuses("cluster.unreachable", named.url):  # its Ray is too old for jobs
            submit_stage("clips", config, project, [])
        assert other.asked == [] and other.tokens == []
        assert len(named.asked) > 1
        assert os.environ[variable] == other.url


@pytest.mark.parametrize(
    ("status", "body", "fact"),
    [
        (503, b"", "HTTP 503"),
        (500, b"oh", "HTTP 500"),
        (404, b"", "HTTP 404"),
        (200, b"<html>hello</html>", "no version of Ray"),
        (200, b'{"version": "1"}', "no version of Ray"),
        (200, b"[]", "no version of Ray"),
    ],
)
def test_a_server_that_is_no_ray_dashboard_is_one_sentence(
    project: Path, status: int, body: bytes, fact: str
) -> None:
    with answering(status, body) as server:
        code, said = run(project, "-m", "omniforcing", "job", "clips", f"cluster.jobs={server.url}")
    assert code == 2
    refused(said, "cluster.not-ray", f"cluster.jobs={server.url}", fact)


def test_a_dashboard_that_never_answers_is_given_up(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "ASKED", 0.5)
    with black_hole() as url, refuses("cluster.not-ray", url, "did not answer within 0.5 seconds"):
        submit_stage("clips", load_config([f"cluster.jobs={url}"], project), project, [])


def test_a_dashboard_that_is_lost_on_the_way_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(jobs, "PATIENCE", 0.2)
    monkeypatch.setattr(jobs, "PAUSE", 0.05)
    asked = []

    class Lost:
        def get_job_status(self, job: str) -> None:
            asked.append(job)
            raise RuntimeError("Request failed with status code 503: .")

    with refuses("cluster.lost", "http://here", "job-1", "503"):
        jobs.follow(Lost(), "job-1", "http://here")
    assert len(asked) > 1


def test_jobs_need_an_address(project: Path) -> None:
    code, said = run(project, "-m", "omniforcing", "job", "clips")
    assert code == 2 and said.count("\n") == 1
    refused(said, "config.missing-value", "cluster.jobs", "cluster=ray")


def test_heavy_stages_go_to_the_cluster_that_takes_jobs_but_not_from_a_job(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(JOB_VARIABLE, raising=False)
    here, there = (load_config([f"cluster={name}"], ROOT) for name in ("local", "ray"))
    assert set(stage_names(ROOT)) > HEAVY
    assert [goes_to_cluster(name, there) for name in ("latents", "clips", "export")] == [
        True,
        False,
        False,
    ]
    assert not goes_to_cluster("latents", here)
    monkeypatch.setenv(JOB_VARIABLE, "1")
    assert not goes_to_cluster("latents", there)


def test_a_cluster_is_named_by_override_or_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_config(root=ROOT).cluster.address is None
    assert load_config(["cluster=ray", "cluster.workers=5"], ROOT).cluster.workers == 5
    monkeypatch.setenv("OMNIFORCING_CLUSTER", "ray")
    assert load_config(root=ROOT).cluster.jobs == "http://127.0.0.1:8265"
    assert load_config(["cluster=local"], ROOT).cluster.jobs is None
    with refuses("config.unknown-cluster", "'nowhere'", "kuberay, local, ray"):
        load_config(["cluster=nowhere"], ROOT)


@pytest.mark.parametrize(
    ("override", "facts"),
    [
        ("cluster.data_root=data", ["cluster.data_root is 'data'", "absolute"]),
        ("cluster.jobs=127.0.0.1:8265", ["cluster.jobs is '127.0.0.1:8265'", "http://"]),
    ],
)
def test_a_place_that_cannot_be_is_refused(override: str, facts: list[str]) -> None:
    with refuses("config.out-of-range", *facts):
        load_config([override], ROOT)


def test_a_job_has_absolute_data_and_no_token_in_its_environment(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    variables = job_variables(load_config(root=project), project)
    assert variables["OMNIFORCING_DATA_ROOT"] == str(project)
    assert variables["MLFLOW_TRACKING_URI"] == f"sqlite:///{project / 'mlflow.db'}"
    assert "secret" not in variables.values()


def test_a_job_takes_all_code_along_and_nothing_that_was_made(tmp_path: Path) -> None:
    from ray._private.runtime_env.packaging import create_package

    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    code = {
        name for name in listed.split("\0") if name.endswith((".py", ".yaml", ".toml", ".html"))
    }
    made = {
        "data/pocket/latents/0.tar",
        ".work/last.ckpt",
        ".venv/bin/python",
        ".dvc/cache/x",
        "mlruns/1",
        "mlflow.db",
        "weights/w",
        "videos/a.mp4",
    }
    for name in (*code, *made, ".rayignore", ".gitignore"):
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).write_bytes(
            (ROOT / name).read_bytes() if name not in made else b"made"
        )
    create_package(str(tmp_path / "root"), tmp_path / "package.zip", include_gitignore=True)
    with zipfile.ZipFile(tmp_path / "package.zip") as package:
        taken = set(package.namelist())
    assert code and not code - taken
    assert not made & taken


def rendered(*overrides: str) -> dict[str, Any]:
    words = ["cluster=kuberay", *overrides]
    config: Config = load_config(words, ROOT, "ltx2")
    return manifest("self_forcing", config, words)


def test_the_manifest_fits_kuberays_schema() -> None:
    found = rendered()
    jsonschema.validate(found, json.loads(SCHEMA.read_text()))
    spec = found["spec"]["rayClusterSpec"]
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["workerGroupSpecs"][0]["replicas"] == 8
    container = spec["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    assert container["resources"]["limits"] == {
        "cpu": "16",
        "memory": "128Gi",
        "nvidia.com/gpu": "1",
    }
    assert (
        "python -m omniforcing stage self_forcing --preset ltx2 cluster=kuberay"
        in found["spec"]["entrypoint"]
    )


@pytest.mark.parametrize(
    "spoil",
    [
        lambda m: m["spec"].update(entryPoint="x"),
        lambda m: m["spec"]["rayClusterSpec"]["workerGroupSpecs"][0].update(replicas="8"),
        lambda m: m["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"].update(
            {"num-cpus": 0}
        ),
        lambda m: m["spec"]["rayClusterSpec"].pop("headGroupSpec"),
        lambda m: m["metadata"].update(name="with_underscore"),
    ],
)
def test_the_schema_refuses_a_wrong_manifest(spoil: Any) -> None:
    found = rendered()
    spoil(found)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(found, json.loads(SCHEMA.read_text()))


def test_the_manifest_is_yaml_that_the_command_prints() -> None:
    code, said = run(
        ROOT,
        "-m",
        "omniforcing",
        "kuberay",
        "latents",
        "cluster=kuberay",
        "cluster.workers=3",
    )
    assert code == 0, said
    assert safe_load(said)["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replicas"] == 3


def test_a_manifest_needs_a_data_root() -> None:
    with refuses("config.missing-value", "cluster.data_root"):
        rendered("cluster.data_root=null")


def test_make_names_the_stage_it_wants() -> None:
    answer = subprocess.run(
        ["make", "-n", "ray-job", "STAGE=self_forcing", "PRESET=smoke"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ,
    )
    assert "omniforcing job self_forcing --preset smoke cluster=ray" in answer.stdout
