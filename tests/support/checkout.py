"""The toy project as a checkout, and its commands as a user gives them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

MAIN = Path(__file__).parents[2] / "pipelines" / "main.py"
ENVIRONMENT = {
    **os.environ,
    "DVC_NO_ANALYTICS": "1",
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    # DVC runs a stage through $SHELL; the plainest one keeps a process of its own between the two
    # unless told otherwise.
    "SHELL": "/bin/sh",
}


def make_repository(project: Path) -> Path:
    """Make a toy project a git and DVC repository with the real command line of the pipeline."""
    shutil.copy(MAIN, project / "pipelines" / "main.py")
    (project / ".gitignore").write_text(".work/\nmlruns/\nmlflow.db*\ndata/*\n")
    (project / ".dvcignore").write_text(".work/\nmlruns/\n")
    for command in (["git", "init", "-q"], ["dvc", "init", "-q"]):
        subprocess.run(command, cwd=project, env=ENVIRONMENT, check=True)
    commit(project)
    return project


def commit(repository: Path) -> None:
    """Commit everything that git does not ignore."""
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@t"]
    subprocess.run(["git", "add", "-A"], cwd=repository, check=True)
    subprocess.run([*git, "commit", "-qm", "toy"], cwd=repository, check=True)


def start(
    repository: Path, *words: str, script: str = "main", pause: float = 0.0
) -> subprocess.Popen[str]:
    """Start a script of ``pipelines``; its slow stages pause between steps."""
    command = [sys.executable, f"pipelines/{script}.py", *words]
    environment = {**ENVIRONMENT, "TOY_PAUSE": str(pause)}
    return subprocess.Popen(
        command,
        cwd=repository,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """The exit code and everything that was printed."""
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


def status(repository: Path) -> str:
    """What ``dvc status`` prints."""
    command = ["dvc", "status"]
    return subprocess.run(
        command, cwd=repository, env=ENVIRONMENT, check=True, capture_output=True, text=True
    ).stdout


def changed_files(repository: Path) -> str:
    """What git calls changed."""
    command = ["git", "status", "--porcelain"]
    return subprocess.run(
        command, cwd=repository, check=True, capture_output=True, text=True
    ).stdout


def alive(process: int) -> bool:
    """Whether a process still runs."""
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False
