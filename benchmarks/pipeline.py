"""Run a whole pipeline twice, each from scratch: two checkouts, or two settings.

    python -m benchmarks.pipeline --against ../before [--preset pocket] [--foundation] [STAGE ...]
    python -m benchmarks.pipeline --change trainer.moments=bf16 [--change ...] [STAGE ...]

The second run is another checkout's, or this one's with changed keys of its preset. With
``--variant`` both train a variant of the ablation, such as adapters-16. Both are cloned
as they are committed, use the checkout's own environment (`make env` there), and run at the same
time, so that other work weighs on both alike; where one has ended the other has the machine to
itself. With ``--turns`` they run one after the other, on a machine without other work, so that
each has all cores. Prints, of each,

    minutes    by the clock, of each stage as the pipeline records them, and of all
    CPU        minutes of all processes of the run on CPUs, DVC's included
    peak       most memory of all processes of the run during a stage, MB; memory that several
               processes share (PSS) counts once
    figures    sync margin, drift and balls of the streamed student, if the run evaluates one

Stages named are run with all that they need, as by `omniforcing run`. With ``--share`` codec and
teacher train a share of their steps. The folder ``--work`` keeps clones, logs and
``pipeline.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil
from omegaconf import OmegaConf

from benchmarks.checkout import clone_checkout
from omniforcing.core.config import project_root
from omniforcing.core.console import run_command
from omniforcing.core.errors import OmniForcingError
from omniforcing.core.files import write_json
from omniforcing.pipeline.config import Config, load_config
from omniforcing.pipeline.experiments.variants import chosen_variants

# Training steps of the foundation.
FOUNDATION = (
    "codec.video.steps",
    "codec.audio.steps",
    "codec.vocoder.steps",
    "teacher.optim.steps",
)
# What the evaluation found that is shown; drift_margin is the margin at the end of long rollouts.
FIGURES = ("sync_margin", "drift_margin", "ball_present")
# Seconds between two looks at the memory of a run.
PERIOD = 2.0


@dataclass
class Run:
    """What one run of the pipeline took.

    Attributes:
        commit: the commit that ran.
        minutes: by the clock, by stage; ``all`` is the whole run.
        cpu: minutes on CPUs of all its processes.
        peak: bytes, by stage.
        figures: of the streamed student.
    """

    commit: str
    minutes: dict[str, float] = field(default_factory=dict)
    cpu: float = 0.0
    peak: dict[str, int] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)


def clone_ready(checkout: Path, folder: Path) -> str:
    """Clone a checkout as committed, with a link to its environment; return its commit.

    Raises:
        OmniForcingError: if it has no environment, or git refuses.
    """
    if not (checkout / ".venv" / "bin" / "python").is_file():
        raise OmniForcingError(
            "benchmarks.command-failed", f"{checkout} has no environment; run `make env` there"
        )
    commit = clone_checkout(checkout, folder)
    (folder / ".venv").symlink_to((checkout / ".venv").resolve())
    return commit


def shorten(preset: Path, share: float) -> None:
    """Multiply the training steps of codec and teacher, also those that a preset's file leaves out.

    The latter are this checkout's defaults.
    """
    content, defaults = OmegaConf.load(preset), OmegaConf.structured(Config)
    for key in FOUNDATION:
        steps = OmegaConf.select(content, key) or OmegaConf.select(defaults, key)
        OmegaConf.update(content, key, max(1, round(share * steps)))
    preset.write_text(OmegaConf.to_yaml(content), encoding="utf-8")


def change(preset: Path, overrides: list[str]) -> None:
    """Set keys of a preset's file, given as ``key=value``."""
    content = OmegaConf.merge(OmegaConf.load(preset), OmegaConf.from_dotlist(overrides))
    preset.write_text(OmegaConf.to_yaml(content), encoding="utf-8")


def watch(process: int, peak: dict[str, int], done: threading.Event) -> None:
    """Note the most memory of a process and all below it by the stage that runs, until done."""
    run = psutil.Process(process)
    while not done.wait(PERIOD):
        stage, held = "", 0
        for each in [run, *run.children(recursive=True)]:
            try:
                words = each.cmdline()
                held += each.memory_full_info().pss
            except psutil.Error:  # it has ended
                continue
            if "stage" in words[:-1]:
                stage = words[words.index("stage") + 1]
        if stage:
            peak[stage] = max(peak.get(stage, 0), held)


def measure(folder: Path, commit: str, preset: str, options: list[str]) -> Run:
    """Run the pipeline of a clone and return what it took.

    Raises:
        OmniForcingError: if it fails; the last lines are told.
    """
    found = Run(commit)
    programs = folder / ".venv" / "bin"
    environment = {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": f"{folder / 'src'}{os.pathsep}{folder}",
    }
    log = folder.with_suffix(".log")
    words = [str(programs / "python"), "-m", "omniforcing", "run", "--preset", preset, *options]
    began, done = time.time(), threading.Event()
    with log.open("wb") as out:
        process = subprocess.Popen(words, cwd=folder, env=environment, stdout=out, stderr=out)
        watcher = threading.Thread(target=watch, args=(process.pid, found.peak, done), daemon=True)
        watcher.start()
        _, status, usage = os.wait4(process.pid, 0)
        done.set()
    process.returncode = os.waitstatus_to_exitcode(status)
    watcher.join()
    if process.returncode:
        last = log.read_text(encoding="utf-8", errors="replace")[-300:].strip()
        raise OmniForcingError(
            "benchmarks.command-failed",
            f"`{' '.join(words[1:])}` failed in {folder}: {last}; the whole is in {log}",
        )
    found.minutes["all"] = (time.time() - began) / 60
    found.cpu = (usage.ru_utime + usage.ru_stime) / 60
    recorded = json.loads((folder / ".work" / preset / "timings.json").read_text())
    found.minutes |= {name: entry["seconds"] / 60 for name, entry in recorded.items()}
    measures = folder / "data" / preset / "evaluate.metrics.json"
    if measures.is_file():
        student = json.loads(measures.read_text())["models"]["self_forcing"]
        found.figures = {name: student[name] for name in FIGURES if name in student}
    return found


def side_by_side(
    checkouts: list[Path],
    work: Path,
    preset: str,
    options: list[str],
    share: float,
    variant: str,
    overrides: list[str],
    turns: bool = False,
) -> list[Run]:
    """Run the pipelines of all checkouts at the same time; returns what each took, in order.

    Args:
        checkouts: one or two.
        work: folder of their clones and logs.
        preset: the preset.
        options: words of ``omniforcing run``.
        share: of the steps of codec and teacher.
        variant: the ablation's variant that all of them train; "" for the preset itself.
        overrides: what the second one's preset changes, as ``key=value``.
        turns: run one after the other instead.

    Raises:
        OmniForcingError: if one of them fails, after the others have ended.
    """
    names = ["this", "against" if not overrides else "changed"][: len(checkouts)]
    folders = [work / name for name in names]
    commits = [clone_ready(*pair) for pair in zip(checkouts, folders, strict=True)]
    if share < 1:
        for folder in folders:
            shorten(folder / "conf" / "preset" / f"{preset}.yaml", share)
    for folder in folders if variant else ():
        config = load_config([], folder, preset)
        for chosen in chosen_variants(folder, config, [variant]).values():
            change(folder / "conf" / "preset" / f"{preset}.yaml", list(chosen.changes))
    if overrides:
        change(folders[-1] / "conf" / "preset" / f"{preset}.yaml", overrides)
        commits[-1] += "+"
    with ThreadPoolExecutor(1 if turns else len(folders)) as pool:
        runs = [
            pool.submit(measure, folder, commit, preset, options)
            for folder, commit in zip(folders, commits, strict=True)
        ]
    return [run.result() for run in runs]


def table(runs: list[Run]) -> str:
    """Write the runs as lines of text: stages, both checkouts, and the first one's share."""

    def line(name: str, values: list[float], form: str) -> str:
        cells = "".join(f"{format(value, form):>12}" for value in values)
        ratio = f"{values[0] / values[1]:>10.2f}" if len(values) == 2 and values[1] else ""
        return f"{name:<30}{cells}{ratio}"

    heads = "".join(f"{run.commit:>12}" for run in runs)
    lines = [f"{'':<30}{heads}{'ratio':>10}" if len(runs) == 2 else f"{'':<30}{heads}"]
    for name in dict.fromkeys(name for run in runs for name in run.minutes):
        lines.append(line(f"minutes, {name}", [run.minutes.get(name, 0) for run in runs], ".1f"))
    lines.append(line("minutes on CPUs", [run.cpu for run in runs], ".1f"))
    for name in dict.fromkeys(name for run in runs for name in run.peak):
        peaks = [run.peak.get(name, 0) / 1e6 for run in runs]
        lines.append(line(f"peak MB, {name}", peaks, ".0f"))
    for name in dict.fromkeys(name for run in runs for name in run.figures):
        lines.append(line(name, [run.figures[name] for run in runs], ".3f"))
    return "\n".join(lines)


def run() -> None:
    """Read the command line, measure, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("stages", nargs="*", metavar="STAGE", help="the last ones to run")
    parser.add_argument("--against", type=Path, help="another checkout")
    parser.add_argument(
        "--change",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="run this checkout again with it, instead of another one",
    )
    parser.add_argument("--variant", default="", help="of the ablation, for both runs")
    parser.add_argument("--preset", default="pocket")
    parser.add_argument("--foundation", action="store_true", help="train codec and teacher alone")
    parser.add_argument("--share", type=float, default=1.0, help="of codec's and teacher's steps")
    parser.add_argument("--turns", action="store_true", help="one after the other")
    parser.add_argument("--work", type=Path, default=Path(".work/benchmarks/pipeline"))
    options = parser.parse_args()
    if not 0 < options.share <= 1:
        parser.error("--share is above 0 and at most 1")
    if options.against and options.change:
        parser.error("--against and --change exclude each other: leave one out")
    work = options.work.resolve()
    if work.exists() and any(work.iterdir()):
        parser.error(f"{work} is not empty: remove it, or name another folder with --work")
    work.mkdir(parents=True, exist_ok=True)
    others = [options.against.resolve()] if options.against else []
    checkouts = [project_root(), *([project_root()] if options.change else others)]
    words = [*options.stages, *(["--foundation"] if options.foundation else [])]
    runs = side_by_side(
        checkouts,
        work,
        options.preset,
        words,
        options.share,
        options.variant,
        options.change,
        options.turns,
    )
    write_json(work / "pipeline.json", [asdict(run) for run in runs])
    print(table(runs))


if __name__ == "__main__":
    sys.exit(run_command(run))
