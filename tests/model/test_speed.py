"""Speed-ups as switches: what each needs, and the parts of GPU ones that a CPU can hold to account."""

from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
import torch
from torch import nn

from omniforcing.errors import OmniForcingError
from omniforcing.latents import Latents
from omniforcing.layout import LAYOUTS
from omniforcing.model.fast import FastStudent, accelerate
from omniforcing.model.gpu import Fp8Linear, Graphs
from omniforcing.model.rollout import Rollout, RolloutConfig
from omniforcing.model.speed import GPU_ONLY, Speed
from tests.model.conftest import GRID, features, tiny_model
from tests.model.test_transformer import TOLERANCE, difference

CONFIG = RolloutConfig(LAYOUTS["prefix"], GRID, (1.0, 0.6), window=2, horizon=3)


def stream(speed: Speed, blocks: int = 6) -> list[Latents]:
    model = accelerate(tiny_model(3), speed)
    return list(islice(Rollout(model, features(), CONFIG, torch.Generator().manual_seed(3), speed), blocks))


def test_every_speed_up_can_be_switched_off_alone_and_leaves_the_blocks_equal() -> None:
    speeds = Speed().without_each()
    assert set(speeds) == {"layers", "conditions", "ring"}
    for speed in speeds.values():
        for ours, other in zip(stream(Speed()), stream(speed), strict=True):
            assert difference(ours, other) < 10 * TOLERANCE


@pytest.mark.parametrize("layers", [False, True])
def test_a_refresh_merged_with_the_next_blocks_first_step_leaves_the_blocks_equal(
    generation: dict[str, Any], layers: bool
) -> None:
    """Past window and horizon, with context noise, over a change of prompt, and where the text follows sigma."""
    model = accelerate(tiny_model(3, **generation), Speed(layers=layers))
    config = replace(CONFIG, context_noise=0.1)
    rollouts = [
        Rollout(model, features(model=model), config, torch.Generator().manual_seed(3), Speed(merged=merged))
        for merged in (False, True)
    ]
    for index in range(9):
        if index == 5:
            for rollout in rollouts:
                rollout.switch(features(seed=1, model=model))
        apart, merged = (next(rollout) for rollout in rollouts)
        assert difference(apart, merged) < 10 * TOLERANCE


@pytest.mark.parametrize("name", GPU_ONLY)
def test_what_only_a_gpu_has_is_refused_on_a_cpu_in_a_sentence(name: str) -> None:
    speed = Speed(**{name: True})
    for build in (lambda: accelerate(tiny_model(), speed), lambda: stream(speed)):
        with pytest.raises(OmniForcingError, match=f"speed-up {name} needs a CUDA device, found cpu"):
            build()


def test_a_speed_up_without_what_it_needs_is_refused_and_goes_with_it() -> None:
    cuda = torch.device("cuda")
    with pytest.raises(OmniForcingError, match="needs conditions and ring"):
        Speed(graphs=True, ring=False).check(cuda)
    with pytest.raises(OmniForcingError, match="they need layers"):
        Speed(fp8=True, layers=False).check(cuda)
    for speed in Speed(graphs=True, concurrent=True, fp8=True).without_each().values():
        speed.check(cuda)


@torch.no_grad()
def test_an_fp8_layer_is_within_a_few_percent_of_its_bf16_one() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(64, 32).to(torch.bfloat16)
    x = torch.randn(2, 25, 64, dtype=torch.bfloat16) * torch.logspace(-2, 2, 25)[:, None]
    found, expected = Fp8Linear(linear)(x.to(torch.bfloat16)).float(), linear(x.to(torch.bfloat16)).float()
    assert found.shape == expected.shape
    error = (found - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert error.max() < 0.06


@torch.no_grad()
def test_recorded_forwards_replay_what_the_student_computes_and_a_new_prompt_begins_anew() -> None:
    """The recorder of this test runs the function again on the same tensors, as a CUDA graph does."""
    model, recorded = FastStudent(tiny_model(3)), []

    def record(function):
        found = function().map(torch.zeros_like)

        def replay() -> None:
            found.map(lambda place, value: place.copy_(value), function())

        recorded.append(replay)
        return found, replay

    noise = torch.Generator().manual_seed(3)
    rollout = Rollout(model, features(), CONFIG, noise)
    rollout._student = Graphs(model, record)
    plain = Rollout(model, features(), CONFIG, torch.Generator().manual_seed(3))
    for index in range(14):
        if index == 10:
            rollout.switch(features(seed=1))
            plain.switch(features(seed=1))
            assert len(recorded) == 9  # three slots of the ring, two steps and a refresh each
        assert difference(next(rollout), next(plain)) == 0
