"""A part of the GPU check in which everything goes wrong that can: for tests of its runner."""

from __future__ import annotations

import os
import signal
import time

from benchmarks.gpu.rows import Figures, Measurement, OutOfBounds
from benchmarks.gpu.settings import PartSettings


def measurements(settings: PartSettings) -> list[Measurement]:
    """Measurements that succeed, fail, die and hang, and one that uses another's figures."""

    def row(name: str, run: object, **more: object) -> Measurement:
        return Measurement(name, run, f"be {name}", **{"packages": (), **more})  # type: ignore[arg-type]

    return [
        row("fine", lambda: {"figure": 1.0}),
        row("raising", raising),
        row("wrong", wrong),
        row("dying", lambda: os.kill(os.getpid(), signal.SIGKILL)),
        row("hanging", lambda: time.sleep(600), limit=1.0),
        row("without a package", dict, packages=("no_such_package",)),
        row("without a card", dict, cuda=True),
        row("last", lambda: {"figure": 2 * settings.figure("faulty", "fine", "figure")}),
    ]


def raising() -> Figures:
    raise ValueError("a sentence\nand a traceback")


def wrong() -> Figures:
    raise OutOfBounds({"figure": 3.0}, "above 2")
