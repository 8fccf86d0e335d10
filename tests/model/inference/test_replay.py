"""Forwards that are replayed: the same numbers as the student's own, and nothing but kernels."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from omniforcing.core.latents import Latents
from omniforcing.core.layout import LAYOUTS, Counts
from omniforcing.model.inference.fast import accelerate
from omniforcing.model.inference.overlay import Overlay
from omniforcing.model.inference.recording import effects_of
from omniforcing.model.options import InferenceOptions
from omniforcing.model.rollout import Rollout, RolloutConfig, new_cache
from omniforcing.model.transformer import DualStream
from tests.support.tiny_loras import tiny_lora
from tests.support.tiny_models import GRID, difference, features, latents, tiny_model

pytestmark = pytest.mark.extended

CONFIG = RolloutConfig(LAYOUTS["prefix"], GRID, (1.0, 0.6), window=2, horizon=3, context_noise=0.1)
REPLAYED = InferenceOptions()
AS_IT_IS = replace(REPLAYED, recorded=False)


def rollout(student: DualStream, options: InferenceOptions, seed: int = 3) -> Rollout:
    noise = torch.Generator().manual_seed(seed)
    return Rollout(student, features(model=student), CONFIG, noise, options)


def assert_equal(ours: Iterator[Latents], others: Iterator[Latents], count: int) -> None:
    for a, b in zip(islice(ours, count), islice(others, count), strict=True):
        assert difference(a, b) == 0


def test_a_replayed_stream_is_the_students_own_bit_for_bit(generation: dict[str, Any]) -> None:
    """Past window and horizon, over a change of prompt, and in the next stream from its start."""
    model = tiny_model(3, **generation)
    replayed, as_it_is = accelerate(model, REPLAYED), accelerate(model, AS_IT_IS)
    for _ in range(2):
        ours, others = rollout(replayed, REPLAYED), rollout(as_it_is, AS_IT_IS)
        assert_equal(ours, others, 6)
        for stream in (ours, others):
            stream.switch(features(seed=1, model=model))
        assert_equal(ours, others, 3)


def test_streams_of_one_student_that_take_turns_do_not_meet() -> None:
    model = tiny_model(3)
    student = accelerate(model, REPLAYED)
    together = [rollout(student, REPLAYED, seed) for seed in (3, 4)]
    alone = [rollout(accelerate(model, AS_IT_IS), AS_IT_IS, seed) for seed in (3, 4)]
    for _ in range(5):
        for ours, others in zip(together, alone, strict=True):
            assert_equal(ours, others, 1)


def test_other_scales_of_an_adapter_are_followed() -> None:
    model = tiny_model(3)
    overlay = Overlay([(tiny_lora(model.core), 1.0)])
    ours, others = (
        rollout(accelerate(model, options, overlay=overlay), options)
        for options in (REPLAYED, AS_IT_IS)
    )
    assert_equal(ours, others, 4)
    for stream in (ours, others):
        stream.settle()
    with overlay.scaled((0.5,)):
        for stream in (ours, others):
            stream.switch(features())
        assert_equal(ours, others, 3)


class Count(TorchDispatchMode):
    """Counts operations, views, tensors made anew and bytes copied."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.views = self.made = self.copied = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        result = function(*arguments, **(options or {}))
        mutates, views = effects_of(function)
        self.operations += 1
        self.views += views
        self.made += not views and not mutates
        if function.overloadpacket is torch.ops.aten.copy_:
            self.copied += arguments[0].nbytes
        return result


@torch.no_grad()
@pytest.mark.parametrize("write", [False, True], ids=["step", "refresh"])
def test_a_replayed_forward_is_kernels_alone(write: bool) -> None:
    """No view, and nothing made or copied but what attention returns and the block's own keys."""
    layers, tokens, text = 2, Counts(3 * 6, 25), 5
    model = accelerate(tiny_model(2))
    student, cache, prompt = model.runner(), new_cache(model, CONFIG, True), features(batch=1)
    cached = model.cache_text(prompt)
    cached.prepare((0.5,), batch=1)
    for index in range(4):
        for again in (False, False, True):
            x = latents(Counts(3, 25) if index else Counts(1, 1), batch=1)
            student(x, 0.5, cached, cache.view(index, write=again))
    view, x = cache.view(4, write), latents(Counts(3, 25), batch=1)
    student(x, 0.5, cached, view)
    with Count() as count:
        student(x, 0.5, cached, view)
    assert prompt.video.shape[1] == text
    attentions = 6 * layers
    # Of two projections more than 64 kernels, with norms, adaLN, RoPE, GELU and residuals.
    assert count.operations <= layers * 145 + 30
    assert count.views == 0
    assert count.made == attentions + 4  # the last norms and the velocity of both streams
    # Keys and values have the width of video's or audio's attention; outputs are copied once.
    video, audio = tokens.video * 48 * 4, tokens.audio * 32 * 4
    cross = (tokens.video + tokens.audio) * 32 * 4
    values = video + audio + cross
    outputs = 2 * (video + audio) + cross
    raw = values if write else 0
    norms = 4 * (tokens.video * 50 + tokens.audio * 34)
    inputs = x.video.nbytes + x.audio.nbytes
    assert count.copied <= layers * (values + outputs + raw) + norms + inputs
