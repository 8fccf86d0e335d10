"""The student compiled by ``torch.compile``: equal blocks, and compiled once for all layers, blocks
and students.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from benchmarks.gpu.networks import GENERATIONS
from omniforcing.core.latents import Latents
from omniforcing.core.layout import LAYOUTS
from omniforcing.model.inference.fast import COMPILED_SHAPES, accelerate
from omniforcing.model.options import InferenceOptions
from omniforcing.model.rollout import Rollout, RolloutConfig
from tests.support.tiny_models import GRID, TOLERANCE, difference, features, tiny_model

CONFIG = RolloutConfig(LAYOUTS["prefix"], GRID, (1.0, 0.6), window=2, horizon=3, context_noise=0.1)
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _compile_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    counters.clear()
    yield
    torch.compiler.set_default_backend(None)


def stream(speed: InferenceOptions, blocks: int = 6, **changes: Any) -> list[Latents]:
    model = tiny_model(3, **changes)
    text, noise = features(model=model), torch.Generator().manual_seed(3)
    return list(islice(Rollout(accelerate(model, speed), text, CONFIG, noise, speed), blocks))


@pytest.mark.parametrize(("release", "backend"), [("2.0", "eager"), ("2.5", "inductor")])
def test_a_compiled_stream_equals_the_students_own_past_window_and_horizon(
    release: str, backend: str
) -> None:
    """Each release as it is captured, and one of them in C++, which takes minutes."""
    torch.compiler.set_default_backend(backend)
    changes = GENERATIONS[release]
    for ours, compiled in zip(
        stream(InferenceOptions(), **changes),
        stream(InferenceOptions(compiled=True), **changes),
        strict=True,
    ):
        assert difference(ours, compiled) < 10 * TOLERANCE


def test_layers_and_later_blocks_share_what_was_compiled() -> None:
    """Otherwise 48 layers would take 48 times as long to begin, and a stream would stop to compile
    on its way.
    """
    counts = []
    # What is compiled is the same, and nobody waits for C++.
    torch.compiler.set_default_backend("eager")
    for layers, blocks in ((2, 6), (3, 9)):
        stream(InferenceOptions(compiled=True), blocks, num_layers=layers)
        counts.append(counters["stats"]["unique_graphs"])
    assert counts[0] > 0 and counts[1] == counts[0]


def test_forwards_in_another_thread_may_compile_as_much() -> None:
    """Torch's settings hold for the thread that sets them, and an engine builds in another one."""
    fast = accelerate(tiny_model(3), InferenceOptions(compiled=True))
    limits = []

    def run() -> None:
        limits.append(torch._dynamo.config.recompile_limit)
        with fast.kernels.context(torch.device("cpu")):  # as every forward does
            limits.append(torch._dynamo.config.recompile_limit)

    thread = Thread(target=run)
    thread.start()
    thread.join()
    assert limits[0] < limits[1] == COMPILED_SHAPES
