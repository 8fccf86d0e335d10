"""Stages in processes that a server with the libraries loaded forks."""

import os
import resource
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from omniforcing.core.environment import FORKS_VARIABLE
from omniforcing.pipeline.forking import LIBRARIES, READ_AT_IMPORT
from tests.support.checkout import ENVIRONMENT, alive, make_repository
from tests.support.toy_project import write_project

pytestmark = [
    pytest.mark.extended,
    pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux alone"),
]

# Writes who it is, and then does what the environment says.
BODY = """
import os, resource, sys, time
from pathlib import Path

def run(stage):
    about = [os.getpid(), os.getcwd(), "lightning" in sys.modules, "torch" in sys.modules]
    about += [resource.getrlimit(resource.RLIMIT_NOFILE)[0]]
    Path("about.txt").write_text("\\n".join(map(str, about)))
    print("on stdout", flush=True)
    time.sleep(float(os.environ.get("TOY_PAUSE", "0")))
    if "TOY_CODE" in os.environ:
        os._exit(int(os.environ["TOY_CODE"]))
    with stage.publish() as folder:
        (folder / "numbers.txt").write_text("1 ")
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A toy project whose stage clips says in what process it runs."""
    write_project(tmp_path)
    (tmp_path / "pipelines" / "clips.py").write_text(BODY)
    return make_repository(tmp_path)


def start(
    project: Path, interrupt: signal.Handlers = signal.SIG_DFL, **environment: str
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "omniforcing", "stage", "clips"],
        cwd=project,
        env={**ENVIRONMENT, **environment},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=partial(signal.signal, signal.SIGINT, interrupt),
    )


def about(project: Path) -> list[str]:
    """What the stage wrote of itself: process id, folder, whether Lightning and torch are there,
    the files that it may have open.
    """
    return (project / "about.txt").read_text().splitlines()


def wait_for(project: Path) -> int:
    """Wait until the stage has begun; its process id."""
    deadline = time.monotonic() + 120
    while not (project / "about.txt").exists() or len(about(project)) < 5:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return int(about(project)[0])


def gone(process: int) -> bool:
    deadline = time.monotonic() + 30
    while alive(process) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not alive(process)


def test_a_stage_begins_with_the_libraries_loaded_in_the_clients_place(project: Path) -> None:
    process = start(project)
    printed, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    pid, folder, *loaded, _ = about(project)
    assert int(pid) != process.pid and folder == str(project)
    assert loaded == ["True", "True"] and "lightning" in LIBRARIES
    assert "on stdout" in printed


CALLING = """
import os, sys, time
from pathlib import Path

def call(name, pause):
    loaded, added = "lightning" in sys.modules, "TORCH_ADDED" in os.environ
    Path(name).write_text(f"{os.getpid()} {loaded} {added}")
    time.sleep(pause)
"""
CALLS = """
import os
from pathlib import Path
from calling import call
from omniforcing.pipeline.processes import run_in_processes

def run(stage):
    os.environ["TORCH_ADDED"] = "1"  # as libraries do
    pause = float(os.environ.get("TOY_PAUSE", "0"))
    Path("stage.txt").write_text(str(os.getpid()))
    run_in_processes([(call, (f"{name}.txt", pause)) for name in "ab"], "not all were made")
    with stage.publish() as folder:
        (folder / "numbers.txt").write_text("1 ")
"""


@pytest.fixture
def calling(project: Path) -> Path:
    """The project, whose stage starts two processes of its own."""
    (project / "calling.py").write_text(CALLING)
    (project / "pipelines" / "clips.py").write_text(CALLS)
    return project


def calls_of(project: Path) -> list[list[str]]:
    """What the calls of the stage wrote of themselves, once both have begun."""
    deadline = time.monotonic() + 120
    files = [project / f"{name}.txt" for name in "ab"]
    while any(not file.exists() or not file.read_text().endswith("e") for file in files):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return [file.read_text().split() for file in files]


def test_a_stages_own_processes_begin_with_the_libraries_loaded_too(calling: Path) -> None:
    process = start(calling)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    first, second = calls_of(calling)
    assert first[1:] == second[1:] == ["True", "True"] and first[0] != second[0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_stages_own_processes_end_with_it(calling: Path, number: signal.Signals) -> None:
    process = start(calling, TOY_PAUSE="60")
    calls = [int(pid) for pid, *_ in calls_of(calling)]
    os.kill(int((calling / "stage.txt").read_text()), number)
    process.communicate(timeout=60)
    assert process.returncode == (143 if number == signal.SIGTERM else -number)
    assert all(gone(pid) for pid in calls)


def test_a_client_ends_as_its_stage_did(project: Path) -> None:
    failed = start(project, TOY_CODE="7")
    failed.communicate(timeout=120)
    assert failed.returncode == 7
    (project / "about.txt").unlink()
    killed = start(project, TOY_PAUSE="60")
    os.kill(wait_for(project), signal.SIGKILL)
    killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL
    (project / "conf" / "config.yaml").write_text("preset: [")
    refused = start(project)
    assert "error[" in refused.communicate(timeout=120)[1] and refused.returncode == 2


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_the_client_stops_the_stage(
    project: Path, number: signal.Signals, code: int
) -> None:
    process = start(project, TOY_PAUSE="60")
    stage = wait_for(project)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == code and gone(stage)


def test_a_stage_ignores_what_its_client_ignores(project: Path) -> None:
    process = start(project, signal.SIG_IGN, TOY_PAUSE="1")
    wait_for(project)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 0


def test_a_stage_dies_with_a_client_that_is_killed(project: Path) -> None:
    process = start(project, TOY_PAUSE="60")
    stage = wait_for(project)
    process.kill()
    process.communicate(timeout=60)
    assert gone(stage)


@pytest.mark.parametrize(
    "environment",
    [{"HF_ENDPOINT": "http://127.0.0.1:1"}, {FORKS_VARIABLE: "/nowhere"}, {FORKS_VARIABLE: ""}],
)
def test_without_a_server_that_can_stand_for_it_a_stage_runs_in_its_own_process(
    project: Path, environment: dict[str, str]
) -> None:
    process = start(project, signal.SIG_DFL, **environment)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert about(project)[0] == str(process.pid) and about(project)[2] == "False"


@pytest.mark.parametrize("hard", [False, True])
def test_a_stage_keeps_the_limits_of_its_client(project: Path, hard: bool) -> None:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    fewer = (200, 300 if hard else most)
    subprocess.run(
        [sys.executable, "-m", "omniforcing", "stage", "clips"],
        cwd=project,
        env=ENVIRONMENT,
        preexec_fn=partial(resource.setrlimit, resource.RLIMIT_NOFILE, fewer),
        capture_output=True,
        check=True,
    )
    _, _, *loaded, files = about(project)
    assert files == "200"
    # Libraries that were loaded under another hard limit cannot stand for it.
    assert loaded == [str(not hard)] * 2


COUNTED = """
import os, resource, subprocess, sys, time
from omniforcing.pipeline.forking import fork_server

with fork_server(threads=1):
    subprocess.run([sys.executable, "-m", "omniforcing", "stage", "clips"], check=True)
    time.sleep(1)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime + used.ru_stime, file=sys.stderr)
"""


BUSY = """
    from mlflow.telemetry import get_telemetry_client
    Path("telemetry.txt").write_text(str(get_telemetry_client()))
    while time.process_time() < 10:
        pass
"""


def test_the_time_of_a_stage_counts_and_mlflow_reports_nothing(project: Path) -> None:
    path = project / "pipelines" / "clips.py"
    path.write_text(BODY.replace("def run(stage):\n", f"def run(stage):{BUSY}"))
    unset = (FORKS_VARIABLE, "MLFLOW_DISABLE_TELEMETRY")
    process = subprocess.run(
        [sys.executable, "-c", COUNTED],
        cwd=project,
        env={name: value for name, value in ENVIRONMENT.items() if name not in unset},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    assert about(project)[2] == "True"
    assert float(process.stderr.splitlines()[-1]) > 10
    assert (project / "telemetry.txt").read_text() == "None"


READ = """
import importlib, os, sys

names = set()

class Recorded(os._Environ):
    def __getitem__(self, name):
        names.add(name)
        return super().__getitem__(name)

os.environ.__class__ = Recorded
for library in sys.argv[1:]:
    importlib.import_module(library)
print(*sorted(name for name in names if isinstance(name, str)))
"""


def test_no_variable_of_mlflow_or_ray_that_may_differ_is_read_when_libraries_are_loaded() -> None:
    words = [sys.executable, "-c", READ, *LIBRARIES]
    kept = {"PATH": os.environ["PATH"], "MLFLOW_DISABLE_TELEMETRY": "true"}
    names = subprocess.run(words, env=kept, capture_output=True, text=True, check=True).stdout
    found = [name for name in names.split() if name.startswith(("MLFLOW", "RAY"))]
    # The default of an argument of Lightning's MLFlowLogger, which nothing here uses, and a key
    # that a server of MLflow encrypts its webhooks' secrets with.
    unused = {"MLFLOW_TRACKING_URI", "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY"}
    assert {name for name in found if not name.startswith(READ_AT_IMPORT)} == unused
