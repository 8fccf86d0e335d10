"""Adapters laid over a streaming student: what they compute is what merged weights would."""

from itertools import islice
from typing import Any

import pytest
import torch

from omniforcing.core.latents import Latents
from omniforcing.core.layout import LAYOUTS
from omniforcing.model.config import ADAPTABLE
from omniforcing.model.inference.fast import accelerate
from omniforcing.model.inference.overlay import Overlay
from omniforcing.model.options import InferenceOptions
from omniforcing.model.rollout import Rollout, RolloutConfig
from omniforcing.model.transformer import DualStream
from tests.support.refusals import refuses
from tests.support.tiny_loras import add, tiny_lora
from tests.support.tiny_models import GRID, TOLERANCE, difference, features, tiny_model

pytestmark = pytest.mark.extended

CONFIG = RolloutConfig(LAYOUTS["prefix"], GRID, (1.0, 0.6), window=1, horizon=2)
PLAIN, FAST = InferenceOptions(layers=False), InferenceOptions()


def blocks(model: DualStream, options: InferenceOptions, count: int = 3) -> list[Latents]:
    noise = torch.Generator().manual_seed(3)
    return list(islice(Rollout(model, features(model=model), CONFIG, noise, options), count))


@pytest.mark.parametrize("options", [PLAIN, FAST], ids=["plain", "fast"])
@pytest.mark.parametrize("ends", [ADAPTABLE, ("to_k", "audio_ff.net.2")], ids=["all", "some"])
def test_an_overlay_is_the_merged_student(
    options: InferenceOptions, ends: tuple[str, ...], generation: dict[str, Any]
) -> None:
    """Of two adapters, on all layers and on parts of those that fast blocks join."""
    model, merged = (tiny_model(3, **generation) for _ in range(2))
    loras = [tiny_lora(model.core, ends, rank, seed=rank) for rank in (2, 3)]
    for lora, scale in zip(loras, (0.5, -1.0), strict=True):
        add(merged.core, lora, scale)
    overlay = Overlay([(loras[0], 0.5), (loras[1], -1.0)])
    ours = blocks(accelerate(model, options, overlay=overlay), options)
    for found, expected in zip(ours, blocks(merged, PLAIN), strict=True):
        assert difference(found, expected) < 20 * TOLERANCE


@pytest.mark.parametrize("options", [PLAIN, FAST], ids=["plain", "fast"])
def test_scales_are_those_of_the_thread_and_zero_is_the_student_itself(
    options: InferenceOptions,
) -> None:
    model = tiny_model(3)
    lora = tiny_lora(model.core)
    overlay = Overlay([(lora, 1.0)])
    overlaid = accelerate(model, options, overlay=overlay)
    with overlay.scaled((0.0,)):
        none = blocks(overlaid, options)
    half = Overlay([(lora, 0.5)])
    expected = blocks(accelerate(model, options, overlay=half), options)
    with overlay.scaled((0.5,)):
        assert difference(blocks(overlaid, options)[-1], expected[-1]) == 0
    assert difference(blocks(overlaid, options)[-1], expected[-1]) > 1e-3
    if options is PLAIN:
        for found, own in zip(none, blocks(model, options), strict=True):
            assert difference(found, own) == 0


def test_layers_outside_of_the_blocks_scales_that_are_no_numbers_and_compilation_are_refused() -> (
    None
):
    model = tiny_model(3)
    with refuses("adapter.cannot-overlay", "proj_in", "merge-lora"):
        Overlay([(tiny_lora(model.core, ["proj_in"]), 1.0)])
    for scale in (float("nan"), float("inf")):
        with refuses("adapter.bad-scale", "tiny.safetensors"):
            Overlay([(tiny_lora(model.core), scale)])
    with refuses("model.speed-ups-conflict", "merge-lora"):
        overlay = Overlay([(tiny_lora(model.core), 1.0)])
        accelerate(model, InferenceOptions(compiled=True), overlay=overlay)
