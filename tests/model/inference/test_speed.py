"""Speed-ups as switches: what each needs, and the parts of GPU ones that a CPU can check."""

from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import nn

from omniforcing.core.latents import Latents
from omniforcing.core.layout import LAYOUTS
from omniforcing.model.conditioning import prompt_follows_sigma
from omniforcing.model.inference.fast import accelerate
from omniforcing.model.inference.gpu import CudaGraphRunner, Fp8Linear, Recorder
from omniforcing.model.inference.positions import rotate_pairs
from omniforcing.model.options import GPU_ONLY, InferenceOptions
from omniforcing.model.rollout import Rollout, RolloutConfig
from tests.support.refusals import refuses
from tests.support.tiny_models import GRID, TOLERANCE, difference, features, tiny_model

pytestmark = pytest.mark.extended

CONFIG = RolloutConfig(LAYOUTS["prefix"], GRID, (1.0, 0.6), window=2, horizon=3)


def stream(speed: InferenceOptions, blocks: int = 6, **changes: Any) -> list[Latents]:
    model = accelerate(tiny_model(3, **changes), speed)
    return list(
        islice(Rollout(model, features(), CONFIG, torch.Generator().manual_seed(3), speed), blocks)
    )


def test_every_speed_up_can_be_switched_off_alone_and_leaves_the_blocks_equal() -> None:
    speeds = InferenceOptions().without_each()
    assert set(speeds) == {"layers", "conditions", "ring", "recorded"}
    for speed in speeds.values():
        for ours, other in zip(stream(InferenceOptions()), stream(speed), strict=True):
            assert difference(ours, other) < 10 * TOLERANCE


@pytest.mark.parametrize("layers", [False, True])
def test_a_refresh_merged_with_the_next_blocks_first_step_leaves_the_blocks_equal(
    generation: dict[str, Any], layers: bool
) -> None:
    """Past window and horizon, with context noise, over a change of prompt, and where the text
    follows sigma.
    """
    model = accelerate(tiny_model(3, **generation), InferenceOptions(layers=layers))
    config = replace(CONFIG, context_noise=0.1)
    rollouts = [
        Rollout(
            model,
            features(model=model),
            config,
            torch.Generator().manual_seed(3),
            InferenceOptions(merged=merged),
        )
        for merged in (False, True)
    ]
    for index in range(9):
        if index == 5:
            for rollout in rollouts:
                rollout.switch(features(seed=1, model=model))
        apart, merged = (next(rollout) for rollout in rollouts)
        assert difference(apart, merged) < 10 * TOLERANCE


def test_keys_of_a_prompt_are_held_for_the_sigmas_of_the_forwards_alone(
    generation: dict[str, Any],
) -> None:
    """Where the text follows sigma, each sigma's are as large as the prompt's in LTX-2.0."""
    model = tiny_model(3, **generation)
    made: list[int] = []
    projection = model.core.transformer_blocks[0].attn2.to_k
    projection.register_forward_hook(lambda _module, _inputs, keys: made.append(keys.numel()))
    text, width = features(1, model=model), projection.out_features
    for options, sigmas in ((InferenceOptions(), 3), (InferenceOptions(merged=True), 5)):
        made.clear()
        Rollout(model, text, CONFIG, torch.Generator(), options)
        once = text.video.shape[1] * width
        assert sum(made) == (sigmas if prompt_follows_sigma(model.core) else 1) * once


@pytest.mark.parametrize("name", GPU_ONLY)
def test_what_only_a_gpu_has_is_refused_on_a_cpu_in_a_sentence(name: str) -> None:
    speed = InferenceOptions(**{name: True})
    for build in (lambda: accelerate(tiny_model(), speed), lambda: stream(speed)):
        with refuses("device.no-cuda", name, "cpu"):
            build()


def test_a_speed_up_without_what_it_needs_is_refused_and_goes_with_it() -> None:
    cuda = torch.device("cuda")
    with refuses("model.speed-ups-conflict", "compiled", "ring"):
        InferenceOptions(compiled=True, ring=False).check(cuda)
    with refuses("model.speed-ups-conflict", "fp8", "layers"):
        InferenceOptions(fp8=True, layers=False).check(cuda)
    with refuses("model.speed-ups-conflict", "merged", "compiled"):
        InferenceOptions(compiled=True, merged=True).check(cuda)
    for speed in InferenceOptions(compiled=True, concurrent=True, fp8=True).without_each().values():
        speed.check(cuda)


@torch.no_grad()
def test_an_fp8_layer_is_within_a_few_percent_of_its_bf16_one() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(64, 32).to(torch.bfloat16)
    x = torch.randn(2, 25, 64, dtype=torch.bfloat16) * torch.logspace(-2, 2, 25)[:, None]
    found, expected = (
        Fp8Linear(linear)(x.to(torch.bfloat16)).float(),
        linear(x.to(torch.bfloat16)).float(),
    )
    assert found.shape == expected.shape
    error = (found - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert error.max() < 0.06


def record(function: Callable[[], Latents]) -> tuple[Latents, Callable[[], None]]:
    """Runs the function again on the same tensors, as a CUDA graph does."""
    found = function().map(torch.zeros_like)

    def replay() -> None:
        found.map(lambda place, value: place.copy_(value), function())

    return found, replay


@torch.no_grad()
def test_recorded_forwards_replay_what_the_student_computes_and_a_new_prompt_begins_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a new prompt comes a new recorder, whose memory is not that of recordings which are
    gone.
    """
    model, recorders = accelerate(tiny_model(3)), []

    def recorder() -> Recorder:
        recorders.append(Mock(side_effect=record))
        return recorders[-1]

    noise = torch.Generator().manual_seed(3)
    plain = Rollout(model, features(), CONFIG, torch.Generator().manual_seed(3))
    monkeypatch.setattr(model, "runner", lambda: CudaGraphRunner(model, recorder))
    rollout = Rollout(model, features(), CONFIG, noise)
    for index in range(14):
        if index == 10:
            rollout.switch(features(seed=1))
            plain.switch(features(seed=1))
            assert (
                recorders[-1].call_count == 9
            )  # three slots of the ring, two steps and a refresh each
        assert difference(next(rollout), next(plain)) == 0
    assert len(recorders) == 3  # before any prompt, and of each


@torch.no_grad()
def test_recorded_forwards_go_on_from_a_restored_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is restored lies where recordings look for it."""
    model = accelerate(tiny_model(3))
    monkeypatch.setattr(model, "runner", lambda: CudaGraphRunner(model, lambda: record))
    rollout = Rollout(model, features(), CONFIG, torch.Generator().manual_seed(3))
    for _ in range(12):
        next(rollout)
    state = rollout.state()
    first = [next(rollout) for _ in range(3)]
    rollout.restore(state)
    for before, again in zip(first, [next(rollout) for _ in range(3)], strict=True):
        assert difference(before, again) == 0


@torch.no_grad()
@pytest.mark.parametrize("width", [1, 25])
def test_a_turn_by_cosines_and_sines_is_the_complex_product(width: int) -> None:
    x, table = torch.randn(2, width, 32), torch.polar(torch.ones(width, 16), torch.randn(width, 16))
    expected = torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * table).flatten(
        -2
    )
    torch.testing.assert_close(rotate_pairs(x, torch.view_as_real(table)), expected)


@torch.no_grad()
def test_a_student_in_fp8_stays_within_a_tenth_of_the_bf16_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every layer in fp8, by the products that torch also has on a CPU."""
    monkeypatch.setattr("omniforcing.model.options.GPU_ONLY", ())
    wide = {
        "attention_head_dim": 32,
        "cross_attention_dim": 64,
        "audio_attention_head_dim": 16,
        "audio_cross_attention_dim": 32,
    }
    bf16, fp8 = (
        stream(speed, 4, **wide) for speed in (InferenceOptions(), InferenceOptions(fp8=True))
    )
    for ours, other in zip(bf16, fp8, strict=True):
        for a, b in zip(ours, other, strict=True):
            assert 0 < (a - b).norm() / a.norm() < 0.1
