"""The child's side: measures one part and reports rows as JSON lines on standard output."""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from importlib.util import find_spec
from typing import Any, NamedTuple

from benchmarks.gpu.rows import (
    FAILED,
    MISSING,
    OK,
    SKIPPED,
    STOPPED,
    WRONG,
    Figures,
    Measurement,
    OutOfBounds,
    Row,
)
from benchmarks.gpu.settings import PartSettings
from omniforcing.core.environment import die_with_parent

LEAST = 1.0  # seconds; no measurement begins with less
BROKEN = 3  # exit code of a process whose CUDA context an error has spoilt
CUDA_ERRORS = ("CUDA error", "AcceleratorError")


class Part(NamedTuple):
    """One part of the check.

    Attributes:
        module: has ``measurements(settings)``.
        share: of all minutes.
        title: of its table.
    """

    module: str
    share: float
    title: str


# Most valuable first.
PARTS = {
    "machine": Part("benchmarks.gpu.machine", 0.03, "The machine in this run"),
    "parity": Part("benchmarks.gpu.parity", 0.14, "Parity with the fp32 oracle on the CPU"),
    "student": Part("benchmarks.gpu.student", 0.50, "The 19B student, random bf16 weights"),
    "training": Part("benchmarks.gpu.training", 0.14, "One update of each stage at LTX-2's width"),
    "small": Part("benchmarks.gpu.small", 0.10, "Preset small: its training stages"),
    "decode": Part("benchmarks.gpu.decode", 0.06, "Decoding and muxing"),
    "pocket": Part("benchmarks.gpu.pocket", 0.03, "The pocket student"),
}


def serve(part: str, module: str, parent: int, settings: PartSettings, done: set[str]) -> None:
    """Run a part's measurements and send their rows.

    A CUDA error spoils the process: it ends with ``BROKEN``, and the parent starts another.

    Args:
        part: its name.
        module: name of the module that has its measurements.
        parent: id of the parent process; this one ends with it.
        settings: of the part.
        done: names of measurements to leave out.
    """
    die_with_parent(parent)
    send = _open_channel()
    if not settings.cuda:
        import torch

        torch.set_num_threads(1)  # leaves the other cores to what else runs here
    try:
        measurements: list[Measurement] = importlib.import_module(module).measurements(settings)
    except ImportError as error:
        send({"row": asdict(Row(part, part, MISSING, why=_missing(error)))})
        return
    send({"names": [measurement.name for measurement in measurements]})
    for measurement in measurements:
        if measurement.name in done:
            continue
        send({"begin": measurement.name, "limit": measurement.limit})
        row = _measure(part, measurement, settings)
        send({"row": asdict(row)})
        if row.state == FAILED and any(word in row.why for word in CUDA_ERRORS):
            sys.exit(BROKEN)
        _free_memory(settings)


def _open_channel() -> Callable[[dict[str, Any]], None]:
    """Take standard output for messages; what libraries print goes to standard error."""
    lines = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def send(message: dict[str, Any]) -> None:
        lines.write(json.dumps(message, allow_nan=True) + "\n")
        lines.flush()

    return send


def _measure(part: str, measurement: Measurement, settings: PartSettings) -> Row:
    name, does = measurement.name, measurement.does
    if measurement.cuda and not settings.cuda:
        return Row(part, name, SKIPPED, why=f"needs a CUDA device; would {does}")
    for package in measurement.packages:
        if find_spec(package) is None:
            why = f"needs the package {package} (pip install {package}); would {does}"
            return Row(part, name, MISSING, why=why)
    if settings.left < LEAST:
        return Row(part, name, STOPPED, why=f"the part's time was up; would {does}")
    start = time.perf_counter()
    figures: Figures = {}
    state, why = OK, ""
    try:
        figures = measurement.run()
    except OutOfBounds as error:
        figures, state, why = error.figures, WRONG, str(error)
    except ImportError as error:
        state, why = MISSING, f"{_missing(error)}; would {does}"
    except Exception as error:  # one failure must not cost the part's other measurements
        state, why = FAILED, describe(error)
        traceback.print_exception(error, file=sys.stderr)
    why = figures.pop("remark", why)
    return Row(part, name, state, figures, why, round(time.perf_counter() - start, 2))


def describe(error: BaseException) -> str:
    """Write an error as one line: its class and the first line of its message."""
    import torch

    if isinstance(error, torch.OutOfMemoryError):
        free, total = torch.cuda.mem_get_info() if torch.cuda.is_available() else (0, 0)
        return f"out of memory: {free / 1e9:.0f} of {total / 1e9:.0f} GB were free when it was told"
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300] if lines else 'no message'}"


def _missing(error: ImportError) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name:
        package = error.name.split(".")[0]
        return f"needs the package {package} (pip install {package})"
    return f"cannot import what it needs: {str(error).splitlines()[0]}"


def _free_memory(settings: PartSettings) -> None:
    gc.collect()
    if settings.cuda:
        import torch

        torch.cuda.empty_cache()
