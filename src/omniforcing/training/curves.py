"""What a training writes down of itself, named without loading the loop and with it Lightning."""

from __future__ import annotations

from collections.abc import Callable

CURVES = "curves.csv"
# Called with the logged values and the step.
Log = Callable[[dict[str, float], int], None]
# Measures the trained module.
Probe = Callable[[], dict[str, float]]
