"""One pipeline run: ``dvc repro`` for a preset under one MLflow parent run, and the table of minutes at its end."""

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
)
from omniforcing.core.errors import OmniForcingError
from omniforcing.core.files import read_json
from omniforcing.pipeline import tracking
from omniforcing.pipeline.config import Config, load_config
from omniforcing.pipeline.declaration import (
    dvc_target,
    pipeline_file,
    read_declaration,
    stage_names,
)
from omniforcing.pipeline.generate import CODE, ensure_pipeline
from omniforcing.pipeline.stage import exclusive
from omniforcing.pocket import foundation


def start_python(
    command: Sequence[str], root: Path, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run our interpreter on ``command`` in the folder ``root``, with options of ``subprocess.run``; it dies with us."""
    # The children find the interpreter that runs us as `python`, whether or not its environment is activated.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1", "PATH": path, **options.pop("env", {})}
    mortal = partial(die_with_parent, os.getpid())
    return subprocess.run(
        [sys.executable, *command], cwd=root, env=environment, preexec_fn=mortal, **options
    )


def call_python(command: Sequence[str], root: Path, **environment: str) -> None:
    """Run our interpreter on ``command`` in the folder ``root``, with additions to our environment.

    Raises:
        OmniForcingError: if it fails; what it printed says why.
    """
    answer = start_python(command, root, env=environment)
    if answer.returncode:
        shown = " ".join(command)
        raise OmniForcingError(
            "pipeline.command-failed",
            f"`{shown}` failed, see above; mend it and run the same command again, it continues there",
        )


def _reproduce(root: Path, config: Config, stages: Sequence[str]) -> None:
    targets = [dvc_target(root, config.preset, stage) for stage in stages]
    if config.clips.source == "folder":
        # DVC does not watch a folder outside the project, so list it anew; if it is as it was, the
        # stages that follow are up to date. The listing depends on the digest of its code.
        clips = [dvc_target(root, config.preset, name) for name in (CODE, "clips")]
        call_python(["-m", "dvc", "repro", "--force", "--single-item", *clips], root)
    whole = [pipeline_file(root, config.preset)]
    call_python(["-m", "dvc", "repro", *(targets or whole)], root)


def _train_foundation(root: Path, preset: str) -> None:
    call_python(["-m", "dvc", "repro", dvc_target(root, preset, "shards")], root)
    for stage in ("codec", "latents", "teacher"):
        call_python(
            [
                *("-m", "omniforcing", "stage", stage, "--preset", preset),
                "codec.source=train",
                "teacher.source=train",
            ],
            root,
        )
    config = load_config(["codec.source=train", "teacher.source=train"], root, preset)
    sections = {"codec": config.codec, "teacher": config.teacher}
    data = root / "data" / preset
    foundation.publish(data, sections, config.clips, config.seed, git_commit(root))


def _parent_run(root: Path, preset: str) -> tracking.Run:
    """The run that `mlflow run` began for us, or our own, continued after a kill."""
    client = tracking.connect(root)
    given = os.environ.get("MLFLOW_RUN_ID")
    if given:
        return tracking.Run(client, given)
    tags = {"preset": preset, "git_commit": git_commit(root)}
    return tracking.open_run(
        client, f"pipeline {preset}", root / ".work" / preset / "parent.json", tags, {}
    )


def minutes_table(root: Path, preset: str, since: float) -> str:
    """Minutes of every stage that has run; those that ended before ``since`` (epoch seconds) were up to date."""
    path = root / ".work" / preset / "timings.json"
    timings = read_json(path) if path.is_file() else {}
    lines, total = [f"{'stage':<20}{'minutes':>9}"], 0.0
    for name in stage_names(root):
        if name in timings:
            now = timings[name]["ended"] >= since
            total += timings[name]["seconds"] if now else 0
            lines.append(
                f"{name:<20}{timings[name]['seconds'] / 60:>9.1f}{'' if now else '  (up to date)'}"
            )
    return "\n".join([*lines, f"{'this run':<20}{total / 60:>9.1f}"])


def run_pipeline(
    root: Path, preset: str | None, stages: Sequence[str] = (), *, train_foundation: bool = False
) -> None:
    """Bring ``stages`` (default: all) of a preset (default: the tracked one) up to date.

    Raises:
        OmniForcingError: for an unknown preset or stage, a preset that lacks a section, a stale ``dvc.yaml``, an old
            ``dvc.lock``, another pipeline run in this checkout, or a stage that fails.
    """
    began = time.time()
    for stage in stages:
        read_declaration(stage, root, "")
    with exclusive(root / ".work" / "pipeline.lock", "a pipeline run in this checkout"):
        os.environ[COMMIT_VARIABLE] = git_commit(root)
        config = load_config(root=root, preset=preset)
        ensure_pipeline(root, config.preset, stages)
        with tracking.closing(_parent_run(root, config.preset)) as parent:
            os.environ[PARENT_VARIABLE] = parent.id
            if train_foundation:
                _train_foundation(root, config.preset)
            else:
                _reproduce(root, config, stages)
    print(f"\n{minutes_table(root, config.preset, began)}\n")
    print(f"outputs: data/{config.preset}   runs: make ui   measures: dvc metrics show")
