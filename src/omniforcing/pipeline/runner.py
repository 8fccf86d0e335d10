"""A pipeline run: ``dvc repro`` of a preset under one MLflow parent run, and a table of minutes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from omniforcing.core.environment import (
    COMMIT_VARIABLE,
    PARENT_VARIABLE,
    die_with_parent,
    git_commit,
    git_fault,
)
from omniforcing.core.errors import OmniForcingError
from omniforcing.core.files import atomic_write, read_json
from omniforcing.pipeline import tracking
from omniforcing.pipeline.config import Config, load_config
from omniforcing.pipeline.declaration import (
    dvc_target,
    pipeline_file,
    read_declaration,
    stage_names,
)
from omniforcing.pipeline.forking import fork_server
from omniforcing.pipeline.generate import CODE, ensure_pipeline
from omniforcing.pipeline.stage import exclusive
from omniforcing.pocket import foundation
from omniforcing.pocket import student as kept_student


def start_python(
    command: Sequence[str], root: Path, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run this interpreter as a child process and wait; it dies with this process.

    Args:
        command: arguments of the interpreter.
        root: working folder.
        options: as of ``subprocess.run``; ``env`` is added to this process's environment.
    """
    # Stages are started as `python`: put this interpreter first, in case its virtual environment
    # is not activated.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1", "PATH": path, **options.pop("env", {})}
    if git_fault(root) is not None:
        environment["DVC_SYSTEM_CONFIG_DIR"] = str(_config_without_git(root))
    bind_to_parent = partial(die_with_parent, os.getpid())
    words = [sys.executable, *command]
    return subprocess.run(words, cwd=root, env=environment, preexec_fn=bind_to_parent, **options)


def _config_without_git(root: Path) -> Path:
    """Write a configuration for DVC, which otherwise refuses a checkout without git."""
    folder = root / ".work" / "dvc_without_git"
    atomic_write(folder / "config", "[core]\n    no_scm = true\n")
    return folder


def call_python(command: Sequence[str], root: Path, **environment: str) -> None:
    """Run this interpreter as a child process and check that it succeeds.

    Args:
        command: arguments of the interpreter.
        root: working folder.
        environment: variables to add to this process's environment.

    Raises:
        OmniForcingError: if it fails; its own output says why.
    """
    completed = start_python(command, root, env=environment)
    if completed.returncode:
        shown = " ".join(command)
        raise OmniForcingError(
            "pipeline.command-failed",
            f"`{shown}` failed, see above; "
            "mend it and run the same command again, it continues there",
        )


def _reproduce(root: Path, config: Config, stages: Sequence[str]) -> None:
    targets = [dvc_target(root, config.preset, stage) for stage in stages]
    if config.clips.source == "folder":
        # DVC does not watch a folder outside the project: run `clips` again in any case. If its
        # output is the same, the stages after it are up to date. `code` goes first because `clips`
        # depends on the digest that it writes.
        listing = [dvc_target(root, config.preset, name) for name in (CODE, "clips")]
        call_python(["-m", "dvc", "repro", "--force", "--single-item", *listing], root)
    all_stages = [pipeline_file(root, config.preset)]
    call_python(["-m", "dvc", "repro", *(targets or all_stages)], root)


def _train_foundation(root: Path, preset: str) -> None:
    # Not with DVC from the codec on: the preset itself takes the kept foundation, and dvc.lock must
    # not record outputs that were made with values other than those in conf/.
    call_python(["-m", "dvc", "repro", dvc_target(root, preset, "shards")], root)
    overrides = ["codec.source=train", "teacher.source=train"]
    for stage in ("codec", "latents", "teacher"):
        command = ["-m", "omniforcing", "stage", stage, "--preset", preset, *overrides]
        call_python(command, root)
    config = load_config(overrides, root, preset)
    sections = {"codec": config.codec, "teacher": config.teacher}
    data = root / "data" / preset
    foundation.publish(data, sections, config.clips, config.seed, git_commit(root))


def _keep_student(root: Path, config: Config) -> None:
    """Bring the artifact up to date, so that this commit made it, and copy it into the package.

    Raises:
        OmniForcingError: for another preset than ``pocket``, whose student the package keeps.
    """
    if config.preset != "pocket":
        raise OmniForcingError(
            "pipeline.not-kept",
            f"the package keeps the student of preset pocket, not of {config.preset}; give --keep "
            "with --preset pocket, or hand the artifact on as a folder",
        )
    _reproduce(root, config, ["export"])
    names = ("student", "bidirectional_dmd", "trajectories", "causal_ode", "self_forcing", "export")
    sections = {name: getattr(config, name) for name in names}
    kept_student.publish(root / "data" / config.preset, sections, config.seed, git_commit(root))
    print(f"kept: {kept_student.student_folder()}")


def _parent_run(root: Path, preset: str) -> tracking.Run:
    """Return the run that `mlflow run` created, or the pipeline's own, continued after a kill."""
    client = tracking.connect(root)
    run_id = os.environ.get("MLFLOW_RUN_ID")
    if run_id:
        return tracking.Run(client, run_id)
    tags = {"preset": preset, "git_commit": git_commit(root)}
    record = root / ".work" / preset / "parent.json"
    return tracking.open_run(client, f"pipeline {preset}", record, tags, {})


def minutes_table(root: Path, preset: str, since: float) -> str:
    """Return a table of the minutes of every stage that has run.

    Args:
        root: the checkout.
        preset: name of the preset.
        since: start of this pipeline run, in seconds of the epoch; stages that ended before it are
            marked as up to date.
    """
    path = root / ".work" / preset / "timings.json"
    timings = read_json(path) if path.is_file() else {}
    lines, total = [f"{'stage':<20}{'minutes':>9}"], 0.0
    for name in stage_names(root):
        if name not in timings:
            continue
        seconds, note = timings[name]["seconds"], "  (up to date)"
        if timings[name]["ended"] >= since:
            total += seconds
            note = ""
        lines.append(f"{name:<20}{seconds / 60:>9.1f}{note}")
    return "\n".join([*lines, f"{'this run':<20}{total / 60:>9.1f}"])


def run_pipeline(
    root: Path,
    preset: str | None,
    stages: Sequence[str] = (),
    *,
    train_foundation: bool = False,
    keep_student: bool = False,
) -> None:
    """Bring stages of a preset up to date, and print a table of their minutes.

    Args:
        root: the checkout.
        preset: name of the preset; the tracked one if None.
        stages: names of stages, brought up to date with all that they need; all if empty.
        train_foundation: train codec and teacher instead, and keep them in the package.
        keep_student: keep the artifact in the package too.

    Raises:
        OmniForcingError: for an unknown preset or stage, a preset that lacks a section, a stale
            ``dvc.yaml``, an old ``dvc.lock``, another pipeline run in this checkout, a stage that
            fails, or an artifact that the package cannot keep.
    """
    began = time.time()
    for stage in stages:
        read_declaration(stage, root, "")  # refuses an unknown name
    with exclusive(root / ".work" / "pipeline.lock", "a pipeline run in this checkout"):
        # Read once, for all stages: DVC writes the tracked dvc.lock as it goes, and from the second
        # stage on the commit would be marked `-dirty`.
        os.environ[COMMIT_VARIABLE] = git_commit(root)
        config = load_config(root=root, preset=preset)
        ensure_pipeline(root, config.preset, stages)
        forks = fork_server(config.trainer.threads)
        with tracking.closing(_parent_run(root, config.preset)) as parent, forks:
            os.environ[PARENT_VARIABLE] = parent.id
            if train_foundation:
                _train_foundation(root, config.preset)
            elif keep_student:
                _keep_student(root, config)
            else:
                _reproduce(root, config, stages)
    print(f"\n{minutes_table(root, config.preset, began)}\n")
    print(f"outputs: data/{config.preset}   runs: make ui   measures: dvc metrics show")
