"""Rehearse a release of LTX-2 from its published files to a stream, with tiny random weights.

`python -m benchmarks.rehearsal` writes weights as each release is published, imports them, and runs
every stage of its preset on ten short clips: two updates in each of the three stages, evaluation,
artifact with a stream of five seconds, and a server that gives its page and a stream. Stages are
tracked in an MLflow store of their own, and run in this process; with `--dvc` they run as a user
runs them, by `omniforcing run` in a copy of the project. It prints the seconds (on the clock and on
CPUs) and the largest resident memory of each step. Nothing is learnt; whether the parts of a
release fit together is what it shows.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import av
import numpy as np
import torch
from omegaconf import OmegaConf
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from benchmarks.page import serving
from benchmarks.published.parts import save_gemma, save_published
from omniforcing.core.config import flatten, project_root
from omniforcing.core.console import run_command
from omniforcing.core.environment import DATA_ROOT_VARIABLE, PARENT_VARIABLE
from omniforcing.core.files import write_json
from omniforcing.core.layout import SAMPLE_RATE, clip_frames, clip_samples
from omniforcing.core.pair import Pair
from omniforcing.media.files import write_mp4
from omniforcing.model.weights.command import import_whole
from omniforcing.pipeline import tracking
from omniforcing.pipeline.config import load_config
from omniforcing.pipeline.declaration import pipeline_file, stage_names
from omniforcing.pipeline.dry_run import COPIED, OUTER_VARIABLES
from omniforcing.pipeline.stage import run_stage
from omniforcing.serving.protocol.messages import SUBPROTOCOL
from omniforcing.streaming.engine import Engine

PRESETS = {"2.0": "ltx2", "2.3": "ltx23", "2.5": "ltx25"}
PROMPT = "a ball bounces on the floor"
# A fifth of a folder is held out, whole files, and an evaluation needs two clips.
VIDEOS, CUTS, HELDOUT, SECONDS, STREAM_SECONDS = 5, 2, 2, 2, 5.0
STATUS = Path("/proc/self/status")
RESET_PEAK = Path("/proc/self/clear_refs")  # 5 resets VmHWM (proc(5))


@dataclass(frozen=True)
class Row:
    """What a step took.

    Attributes:
        step: its name.
        seconds: on the clock.
        cpu: seconds on CPUs.
        megabytes: largest resident memory of this process meanwhile.
    """

    step: str
    seconds: float
    cpu: float
    megabytes: float


def rehearse(
    release: str,
    folder: Path,
    diffusion: bool = False,
    dvc: bool = False,
    videos: Path | None = None,
) -> Iterator[Row]:
    """Run all steps of a release below an empty folder, one after the other.

    Args:
        release: 2.0, 2.3 or 2.5.
        folder: an empty folder; data and MLflow's store come to lie in it, or with ``dvc`` in its
            ``project``.
        diffusion: decode pictures by LTX-2.5's diffusion decoder.
        dvc: run the stages by `omniforcing run` in a copy of the project.
        videos: folder of five or more videos, which get captions that the tiny text encoder
            takes; None: make some.

    Yields:
        What each step took.
    """
    with timed("publish") as row:
        source = save_published(release, folder / "published")
        # LTX-2.5's files bring their text encoder.
        gemma = None if release == "2.5" else save_gemma(release, folder / "gemma")
        take_clips(videos, folder / "clips") if videos else make_clips(folder / "clips")
    yield row[0]
    with timed("import") as row:
        import_whole(source, folder / "weights", [], gemma, copy=False, rope=None)
    yield row[0]
    changed, preset = small(folder), PRESETS[release]
    if diffusion:
        changed["codec"]["video_decoder"] = "diffusion"
    if dvc:
        data = folder / "project"
        yield from run_by_dvc(preset, changed, data)
    else:
        data = folder
        yield from run_here(preset, changed, data)
    with timed("page") as row:
        show_page(data / "data" / preset / "artifact")
    yield row[0]


def small(folder: Path) -> dict[str, dict[str, Any]]:
    """Values that make a preset of LTX-2 small in everything but the path that it takes."""
    once = {"steps": 2, "batch": 1}
    return {
        "clips": {
            "folder": str(folder / "clips"),
            "seconds": SECONDS,
            "height": 64,
            "width": 64,
            "heldout": HELDOUT,
        },
        "codec": {"path": str(folder / "weights"), "report_clips": 1},
        "teacher": {"path": str(folder / "weights" / "transformer"), "sampler": {"steps": 2}},
        "student": {"sigmas": [1.0, 0.725], "sinks": 4, "window": 1},
        "bidirectional_dmd": {"optim": once, "critic_steps": 1},
        "trajectories": {"count": 2, "steps": 2, "batch": 2},
        "causal_ode": {"optim": once},
        "self_forcing": {"optim": once, "critic_steps": 1, "steered": 0.5},
        "evaluate": {"clips": HELDOUT, "seeds": 1, "batch": 2, "page_clips": 1, "train_clips": 2},
        "export": {"prompt": PROMPT, "seconds": STREAM_SECONDS},
        "trainer": {"accelerator": "cpu", "checkpoint_every": 2, "log_every": 1, "threads": 1},
    }


def run_here(preset: str, changed: dict[str, Any], folder: Path) -> Iterator[Row]:
    """Run the stages in this process, each as an MLflow run below one of the pipeline.

    Args:
        preset: name of the preset.
        changed: values that differ from its own.
        folder: place of data and MLflow's store.

    Yields:
        What each stage took.
    """
    root = project_root()
    overrides = [f"{key}={json.dumps(value)}" for key, value in flatten(changed).items()]
    config = load_config(overrides, root, preset)
    before = dict(os.environ)
    for name in OUTER_VARIABLES:
        os.environ.pop(name, None)
    os.environ[DATA_ROOT_VARIABLE] = str(folder)
    try:
        record, tags = folder / ".work" / "parent.json", {"preset": preset}
        client = tracking.connect(root)
        with tracking.closing(
            tracking.open_run(client, f"pipeline {preset}", record, tags, {})
        ) as parent:
            os.environ[PARENT_VARIABLE] = parent.id
            for name in stage_names(root):
                with timed(name) as row:
                    run_stage(name, config, root)
                yield row[0]
    finally:
        os.environ.clear()
        os.environ.update(before)


def run_by_dvc(preset: str, changed: dict[str, Any], project: Path) -> Iterator[Row]:
    """Run `omniforcing run --preset`, which is DVC, in a copy of the project.

    Args:
        preset: name of the preset, whose file in the copy says what differs.
        changed: values that differ from its own.
        project: the new copy.

    Yields:
        What the run took.

    Raises:
        RuntimeError: if DVC finds something out of date after it.
    """
    root = project_root()
    for name in (*COPIED, ".dvc"):
        left_out = shutil.ignore_patterns("__pycache__", "cache", "tmp")
        shutil.copytree(root / name, project / name, ignore=left_out)
    shutil.copy(root / ".dvcignore", project)
    file = project / "conf" / "preset" / f"{preset}.yaml"
    OmegaConf.save(OmegaConf.merge(OmegaConf.load(file), changed), file)
    environment = {k: v for k, v in os.environ.items() if k not in OUTER_VARIABLES}
    environment["PYTHONPATH"] = str(project / "src")

    def call(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", *words]
        return subprocess.run(
            command, cwd=project, env=environment, check=True, text=True, **options
        )

    with timed("run") as row:
        call("omniforcing", "run", "--preset", preset)
    yield row[0]
    call("dvc", "config", "core.no_scm", "true")
    told = call("dvc", "status", pipeline_file(project, preset), capture_output=True).stdout
    if "up to date" not in told:
        raise RuntimeError(f"after `omniforcing run --preset {preset}` DVC says: {told}")


def take_clips(videos: Path, folder: Path) -> None:
    """Link to the videos of a folder, with captions beside them."""
    folder.mkdir()
    for index, file in enumerate(sorted(videos.glob("*.mp4"))):
        (folder / file.name).symlink_to(file.resolve())
        (folder / file.name).with_suffix(".txt").write_text(_caption(index))


def _caption(index: int) -> str:
    return PROMPT if index % 2 else "a ball bounces"


def make_clips(folder: Path) -> None:
    """Write videos of a drifting pattern with a tone, each with its caption."""
    folder.mkdir()
    for index in range(VIDEOS):
        random = np.random.default_rng(index)
        picture = np.kron(random.integers(0, 256, (8, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
        count = clip_frames(CUTS * SECONDS)
        frames = np.stack([np.roll(picture, frame, axis=1) for frame in range(count)])
        times = np.arange(clip_samples(CUTS * SECONDS)) / SAMPLE_RATE
        tone = 0.3 * np.sin(2 * np.pi * (200 + 100 * index) * times)
        path = folder / f"{index}.mp4"
        write_mp4(path, Pair(frames, np.stack([tone, tone]).astype(np.float32)))
        path.with_suffix(".txt").write_text(_caption(index))


def show_page(artifact: Path) -> None:
    """Serve an artifact, fetch its page, and play a stream as the page does.

    Raises:
        RuntimeError: if the page is not there, or the stream has not all of its frames.
    """
    with serving(Engine(artifact)) as address:
        with urlopen(address, timeout=60) as answer:
            shown = b"<video" in answer.read()
        place = address.replace("http", "ws") + "/stream"
        with connect(place, subprotocols=[Subprotocol(SUBPROTOCOL)], compression=None) as client:
            media = _play(client)
    with av.open(io.BytesIO(media)) as clip:
        frames = sum(1 for _ in clip.decode(video=0))
    if not shown or frames != clip_frames(int(STREAM_SECONDS)):
        raise RuntimeError(f"the page {'is' if shown else 'is not'} there, with {frames} frames")


def _play(client: ClientConnection) -> bytes:
    """Start a stream and take its media until it has ended."""
    media, start = b"", {"type": "start", "prompt": PROMPT, "seconds": STREAM_SECONDS}
    client.send(json.dumps({**start, "paced": False}))
    while True:
        data = client.recv(timeout=300)
        if isinstance(data, bytes):
            media += data
        elif json.loads(data)["type"] in ("ended", "error"):
            return media


@contextmanager
def timed(step: str) -> Iterator[list[Row]]:
    """Measure the body as one step; the row is there when it has ended."""
    rows: list[Row] = []
    if RESET_PEAK.exists():
        RESET_PEAK.write_text("5")
    began, cpu = time.monotonic(), cpu_seconds()
    yield rows
    rows.append(Row(step, time.monotonic() - began, cpu_seconds() - cpu, peak_megabytes()))


def cpu_seconds() -> float:
    """Seconds of this process and its ended children on CPUs."""
    return sum(os.times()[:4])


def peak_megabytes() -> float:
    """Largest resident memory since the last reset; since the start where it cannot be reset."""
    if STATUS.exists():
        found = re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text())
        if found:
            return int(found[1]) / 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def table(rows: dict[str, list[Row]]) -> str:
    """Write the rows of all releases as a table of Markdown."""
    heads = [f"{name}: s | CPU s | MB" for name in rows]
    lines = [f"| step | {' | '.join(heads)} |", "|---" * (1 + 3 * len(rows)) + "|"]
    for steps in zip(*rows.values(), strict=True):
        cells = [f"{r.seconds:.1f} | {r.cpu:.1f} | {r.megabytes:.0f}" for r in steps]
        lines.append(f"| {steps[0].step} | {' | '.join(cells)} |")
    sums = [
        f"{sum(r.seconds for r in own):.0f} | {sum(r.cpu for r in own):.0f} "
        f"| {max(r.megabytes for r in own):.0f}"
        for own in rows.values()
    ]
    return "\n".join([*lines, f"| all | {' | '.join(sums)} |"])


def main() -> None:
    """Parse the arguments, rehearse and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--releases", nargs="+", choices=PRESETS, default=list(PRESETS))
    parser.add_argument(
        "--diffusion", action="store_true", help="decode 2.5's pictures by its diffusion decoder"
    )
    parser.add_argument(
        "--dvc", action="store_true", help="run the stages by `omniforcing run` in a copy of this"
    )
    parser.add_argument("--clips", type=Path, help="folder of MP4 files (default: made)")
    parser.add_argument("--json", type=Path, help="write the rows to this file too")
    arguments = parser.parse_args()

    def run() -> None:
        torch.set_num_threads(1)
        rows: dict[str, list[Row]] = {}
        for release in arguments.releases:
            place = Path(tempfile.mkdtemp(prefix="omniforcing-rehearsal-"))
            try:
                rows[release] = []
                diffusion = arguments.diffusion and release == "2.5"
                for row in rehearse(release, place, diffusion, arguments.dvc, arguments.clips):
                    print(f"{release} {row.step}: {row.seconds:.1f} s", file=sys.stderr, flush=True)
                    rows[release].append(row)
            finally:
                shutil.rmtree(place)
        print(table(rows))
        if arguments.json:
            write_json(arguments.json, {k: [vars(r) for r in v] for k, v in rows.items()})

    sys.exit(run_command(run))


if __name__ == "__main__":
    main()
