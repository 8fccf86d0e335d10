"""Measure what the ingest on the path makes of files: one line of JSON for each.

Run as a script, so that it reads files with any checkout: ``PYTHONPATH=CHECKOUT/src python
measure.py FORM FILE ...``. What a file should be stands in ``FILE.json`` beside it.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import truth  # type: ignore[import-not-found]

SECONDS = 2


def measure(path: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    """Cut all clips of a file and compare them with what they should be.

    Args:
        path: the file.
        wanted: ``stamps`` of its pictures in seconds, on the clock of its sound; ``height`` and
            ``width`` of the upright picture; ``every``, the step of the numbers that are shown;
            ``sound`` is where its sound begins on that clock; ``lost``, whether cuts may be
            rejected, the first one aside.

    Returns:
        ``reject`` with a reason, or the figures of the table.
    """
    try:
        conform: Any = import_module("omniforcing.media.reading.conform")
    except ModuleNotFoundError:  # an older checkout
        conform = import_module("omniforcing.media.conform")
    form = conform.ClipFormat(wanted["height"], wanted["width"], SECONDS)
    begun = time.process_time()
    clips: dict[int, Any] = {}
    rejected: list[int] = []
    try:
        cutter = conform.ClipCutter(path, form)
        for cut in range(cutter.cuts):
            try:
                clips[cut] = cutter.clip(cut)
            except Exception as error:
                if cut == 0 or not wanted.get("lost") or not hasattr(error, "reason"):
                    raise
                rejected.append(cut)
    except Exception as error:
        kind = getattr(error, "reason", None)
        return {"reject": kind} if kind else {"crash": f"{type(error).__name__}"}
    seconds = time.process_time() - begun
    stamps = wanted["stamps"]
    every = wanted["every"]
    first = truth.number_of(clips[0].video[0]) // every
    if first >= len(stamps):
        return {"crash": f"picture {first} of {len(stamps)}"}
    wrong = missing = repeated = frames = 0
    sync: list[float] = []
    colours: list[float] = []
    gains: list[float] = []
    for cut, clip in clips.items():
        start = stamps[first] + cut * SECONDS
        numbers = np.array([truth.number_of(frame) for frame in clip.video])
        if every > 1:
            numbers = np.where(numbers % every, -1, numbers // every)
        due = truth.shown_at(stamps, start + np.arange(len(numbers)) / 24)
        wrong += int((numbers != due).sum())
        missing += len(set(due.tolist()) - set(numbers.tolist()))
        repeated += int(((np.diff(numbers) == 0) & (np.diff(due) > 0)).sum())
        frames += len(numbers)
        beeps = np.array(truth.BEEPS) + wanted.get("sound", 0.0) - start
        beeps = beeps[(beeps > 0.05) & (beeps < SECONDS - 0.1)]
        heard = truth.beeps_of(clip.audio)
        for beep in beeps:
            sync.append(
                1000 * float(heard[np.abs(heard - beep).argmin()] - beep) if len(heard) else np.nan
            )
        colour = truth.corners_of(clip.video[len(numbers) // 2])
        colours.append(float(np.abs(colour - np.array(wanted["corners"])).max()))
        levels = truth.tones_of(clip.audio[:, 1600:-1600])  # without late beginnings
        expected = np.array(wanted["tones"])
        level = 20 * np.log10(np.maximum(levels, 1e-4) / np.maximum(expected, 1e-4))
        gains.append(float(np.abs(level[expected > 0]).max()))
        stray = levels[expected == 0]
        if stray.size and stray.max() > 0.01:
            gains[-1] = np.inf  # a tone on the wrong side
    return {
        "cuts": len(clips),
        "rejected": rejected,
        "sync_ms": max(sync, key=abs) if sync else None,
        "wrong": wrong,
        "missing": missing,
        "repeated": repeated,
        "frames": frames,
        "colour": max(colours),
        "gain_db": max(gains),
        "seconds": seconds,
    }


def main() -> None:
    """Measure the files that are named; print as it goes."""
    warnings.filterwarnings("ignore")
    for name in sys.argv[1:]:
        path = Path(name)
        wanted = json.loads(path.with_name(path.name + ".json").read_text())
        print(json.dumps({"file": path.name, **measure(path, wanted)}), flush=True)


if __name__ == "__main__":
    main()
