"""Benches for the student's rows: as many layers as the card holds, and the fastest speed-ups."""

from __future__ import annotations

from dataclasses import asdict, replace

import torch

from benchmarks.gpu.fitting import layers_that_fit
from benchmarks.gpu.rows import Figures
from benchmarks.gpu.settings import PartSettings
from benchmarks.student.bench import StudentBench
from benchmarks.student.cases import Case, random_student
from omniforcing.core.layout import LAYOUTS
from omniforcing.model.options import InferenceOptions
from omniforcing.pipeline.planner.stream import student_numbers

USABLE = 0.94  # of a card's memory
ACTIVATIONS = 3e9  # bytes at the widest moment of a block at 512x768, an estimate
CANDIDATES = ("compiled", "concurrent", "fp8")  # speed-ups that `best_options` chooses from
FASTER = 1.02  # times eager's frames per second: less is noise


def open_bench(
    settings: PartSettings, case: Case, options: InferenceOptions, release: bool
) -> tuple[StudentBench, Figures]:
    """Build a bench with as many of the case's layers as the card's memory holds.

    Returns:
        The bench, and a remark for its row, empty if all layers fit.
    """
    remark: Figures = {}
    if settings.cuda:
        usable = USABLE * torch.cuda.mem_get_info()[1]

        def bytes_of(layers: int) -> float:
            return memory_needed(case.with_layers(layers), release)

        layers = layers_that_fit(bytes_of, case.layers, usable)
        if layers < case.layers:
            remark["remark"] = (
                f"{layers} of {case.layers} layers: all of them need "
                f"{bytes_of(case.layers) / 1e9:.0f} GB, {usable / 1e9:.0f} are usable"
            )
            case = case.with_layers(layers)
    device = settings.torch_device
    return StudentBench(case, random_student(case, device), device, options, release), remark


def memory_needed(case: Case, release: bool) -> float:
    """Return the bytes that a stream takes: weights, K/V caches, text and activations.

    Args:
        case: what is streamed.
        release: whether the projections that fast layers join are kept in joined form alone.
    """
    rollout = case.rollout
    numbers = student_numbers(
        case.core, rollout.table, rollout.window, rollout.grid, case.text_tokens
    )
    if release:
        numbers["joined"] = 0
    return float(case.dtype.itemsize * sum(numbers.values())) + ACTIVATIONS


def best_options(settings: PartSettings) -> InferenceOptions:
    """Switch on the speed-ups that were measured to be at least 2 % faster by themselves."""
    usual = InferenceOptions()
    eager_fps = settings.figure("student", "eager", "fps")
    if not (settings.cuda and eager_fps):
        return usual
    faster = {}
    for name in CANDIDATES:
        fps = settings.figure("student", name, "fps") or 0.0  # 0: not measured, stays off
        if fps > FASTER * eager_fps:
            faster[name] = True
    return replace(usual, **faster)


def switched(options: InferenceOptions) -> str:
    """Name the speed-ups beyond the usual ones."""
    usual = asdict(InferenceOptions())
    names = [name for name, on in asdict(options).items() if on and not usual[name]]
    return " ".join(names) or "usual"


def in_layout(case: Case, layout: str) -> Case:
    """Return a case in another block table, window and horizon as many seconds long."""
    table = LAYOUTS[layout]
    per_second = len(table.cycle)
    window, horizon = case.rollout.window * per_second, case.rollout.horizon * per_second
    return replace(case, rollout=replace(case.rollout, table=table, window=window, horizon=horizon))
