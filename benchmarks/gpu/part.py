"""The child's side: one part's measurements, one after the other, reported as JSON lines on standard output."""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib.util import find_spec
from typing import Any

from benchmarks.gpu.rows import (
    FAILED,
    MISSING,
    OK,
    SKIPPED,
    STOPPED,
    WRONG,
    Measurement,
    Row,
    Wrong,
)
from benchmarks.gpu.setup import Setup
from omniforcing.core.environment import die_with_parent

LEAST = 1.0  # seconds without which no measurement begins
BROKEN = 3  # exit code of a process whose CUDA context is of no use any more
Send = Callable[[dict[str, Any]], None]

# Part: (module, share of the minutes, title). Most valuable first.
PARTS = {
    "machine": ("benchmarks.gpu.machine", 0.03, "The machine in this run"),
    "parity": ("benchmarks.gpu.parity", 0.14, "Parity with the fp32 oracle on the CPU"),
    "student": ("benchmarks.gpu.student", 0.50, "The 19B student, random bf16 weights"),
    "training": ("benchmarks.gpu.training", 0.14, "One update of each stage at LTX-2's width"),
    "small": ("benchmarks.gpu.small", 0.10, "Preset small: its training stages"),
    "decode": ("benchmarks.gpu.decode", 0.06, "Decoding and muxing"),
    "pocket": ("benchmarks.gpu.pocket", 0.03, "The pocket student"),
}


def serve(part: str, module: str, parent: int, setup: Setup, done: set[str]) -> None:
    """Run the measurements of a part, of a module, that are not ``done`` and send their rows.

    A CUDA error spoils the process: it ends with ``BROKEN``, and the parent starts another.

    Args:
        parent: id of the process that started this one, which ends with it.
    """
    die_with_parent(parent)
    lines = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no row

    def send(message: dict[str, Any]) -> None:
        lines.write(json.dumps(message, allow_nan=True) + "\n")
        lines.flush()

    if not setup.cuda:
        import torch

        torch.set_num_threads(1)  # what runs beside it has the other cores
    try:
        measurements: list[Measurement] = importlib.import_module(module).measurements(setup)
    except ImportError as error:
        send({"row": asdict(Row(part, part, MISSING, why=_missing(error)))})
        return
    send({"names": [m.name for m in measurements if m.name not in done]})
    for measurement in measurements:
        if measurement.name not in done:
            send({"begin": measurement.name, "limit": measurement.limit})
            row = _measure(part, measurement, setup)
            send({"row": asdict(row)})
            if row.state == FAILED and ("CUDA error" in row.why or "AcceleratorError" in row.why):
                sys.exit(BROKEN)
            _tidy(setup)


def _measure(part: str, measurement: Measurement, setup: Setup) -> Row:
    name, does = measurement.name, measurement.does
    if measurement.cuda and not setup.cuda:
        return Row(part, name, SKIPPED, why=f"needs a CUDA device; would {does}")
    for package in measurement.packages:
        if find_spec(package) is None:
            why = f"needs the package {package} (pip install {package}); would {does}"
            return Row(part, name, MISSING, why=why)
    if setup.left < LEAST:
        return Row(part, name, STOPPED, why=f"the part's time was up; would {does}")
    began = time.perf_counter()
    try:
        figures, state, why = measurement.run(), OK, ""
    except Wrong as error:
        figures, state, why = error.figures, WRONG, str(error)
    except ImportError as error:
        figures, state, why = {}, MISSING, f"{_missing(error)}; would {does}"
    except Exception as error:  # whatever one measurement meets, the others go on
        figures, state, why = {}, FAILED, sentence(error)
        _trace(error)
    why = figures.pop("remark", why)
    return Row(part, name, state, figures, why, round(time.perf_counter() - began, 2))


def sentence(error: BaseException) -> str:
    """An error as one line: its kind and the first line of what it says."""
    import torch

    if isinstance(error, torch.OutOfMemoryError):
        free, total = (
            (x / 1e9 for x in torch.cuda.mem_get_info()) if torch.cuda.is_available() else (0, 0)
        )
        return f"out of memory: {free:.0f} of {total:.0f} GB were free when it was told"
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300] if lines else 'without a word'}"


def _trace(error: BaseException) -> None:
    import traceback

    traceback.print_exception(error, file=sys.stderr)


def _missing(error: ImportError) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name:
        package = error.name.split(".")[0]
        return f"needs the package {package} (pip install {package})"
    return f"cannot import what it needs: {str(error).splitlines()[0]}"


def _tidy(setup: Setup) -> None:
    gc.collect()
    if setup.cuda:
        import torch

        torch.cuda.empty_cache()
