"""Flow matching's formulas against one another and against LTX-2's own numbers."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from omniforcing.core.latents import noise_like
from omniforcing.core.pair import Pair
from omniforcing.core.random import step_generator
from omniforcing.core.schedule import (
    add_noise,
    euler,
    guide,
    sample_sigma,
    sampling_sigmas,
    shift_sigma,
    to_x0,
    velocity,
)

SHAPE = (2, 5, 3)


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    """x0 and noise, [2, 5, 3]."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(SHAPE, generator=generator), torch.randn(SHAPE, generator=generator)


@pytest.mark.parametrize(
    "sigma",
    [0.3, torch.tensor([0.2, 0.9]), torch.rand(2, 5, generator=torch.Generator().manual_seed(1))],
)
def test_x0_comes_back_from_noise_and_velocity(
    pair: tuple[torch.Tensor, torch.Tensor], sigma: torch.Tensor | float
) -> None:
    x0, noise = pair
    x = add_noise(x0, noise, sigma)
    torch.testing.assert_close(to_x0(x, velocity(x0, noise), sigma), x0)


def test_noise_is_per_latent_where_sigma_is(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    x0, noise = pair
    sigma = torch.zeros(2, 5)
    sigma[0, 1], sigma[1, 4] = 1, 0.5
    x = add_noise(x0, noise, sigma)
    assert torch.equal(x[0, 0], x0[0, 0])
    assert torch.equal(x[0, 1], noise[0, 1])
    torch.testing.assert_close(x[1, 4], (x0[1, 4] + noise[1, 4]) / 2)


def test_euler_with_the_true_velocity_follows_the_straight_path(
    pair: tuple[torch.Tensor, torch.Tensor],
) -> None:
    x0, noise = pair
    x, sigmas = noise, sampling_sigmas(7, 1.3)
    for sigma, following in pairwise(sigmas):
        x = euler(x, velocity(x0, noise), sigma, following)
        torch.testing.assert_close(x, add_noise(x0, noise, following), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(x, x0, rtol=1e-5, atol=1e-5)


def test_guidance_of_one_is_the_conditional_and_zero_the_unconditional(
    pair: tuple[torch.Tensor, torch.Tensor],
) -> None:
    c, u = pair
    assert torch.equal(guide(c, u, 1.0), c)
    torch.testing.assert_close(guide(c, u, 0.0), u)
    scale = torch.tensor([3.0, 5.0])
    torch.testing.assert_close(guide(c, u, scale)[1], c[1] + 4 * (c[1] - u[1]))


def test_guiding_x0_equals_guiding_the_velocity(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    c, u = pair
    x, sigma = torch.ones(SHAPE), 0.7
    torch.testing.assert_close(
        guide(to_x0(x, c, sigma), to_x0(x, u, sigma), 3.0), to_x0(x, guide(c, u, 3.0), sigma)
    )


@given(st.floats(-3, 4), st.floats(0, 1))
def test_a_shift_keeps_the_ends_and_the_order(shift: float, sigma: float) -> None:
    low, high = shift_sigma(
        torch.tensor([sigma, min(1.0, sigma + 0.1)], dtype=torch.float64), shift
    )
    assert 0 <= low <= high <= 1 + 1e-12
    ends = shift_sigma(torch.tensor([0.0, 1.0]), shift)
    assert ends.tolist() == pytest.approx([0.0, 1.0], abs=1e-6)
    inverse = shift_sigma(low, -shift)
    assert math.isclose(float(inverse), sigma, abs_tol=1e-9)


@given(st.integers(1, 60), st.floats(-1, 3))
def test_sampling_sigmas_fall_from_one_to_zero(steps: int, shift: float) -> None:
    sigmas = sampling_sigmas(steps, shift)
    assert len(sigmas) == steps + 1
    assert (sigmas[0], sigmas[-1]) == (pytest.approx(1.0), 0.0)
    assert all(a > b for a, b in pairwise(sigmas))


def test_ltx2s_own_schedule_ends_at_its_terminal_sigma() -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    ours = sampling_sigmas(40, 2.05, 0.1)
    assert math.isclose(ours[-2], 0.1, abs_tol=1e-9)
    theirs = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05,
        base_image_seq_len=1024, max_image_seq_len=4096, shift_terminal=0.1,
    )  # fmt: skip
    theirs.set_timesteps(sigmas=torch.linspace(1, 1 / 40, 40).tolist(), mu=2.05)
    assert theirs.sigmas[0] == 1.0
    assert ours[:-1] == pytest.approx(theirs.sigmas[:-1].tolist(), abs=1e-5)


@given(st.integers(0, 1000))
def test_training_sigmas_stay_in_range_and_repeat_with_the_seed(seed: int) -> None:
    first = sample_sigma(64, 0.02, 0.98, 0.4, torch.Generator().manual_seed(seed))
    assert first.dtype is torch.float32
    assert first.min() >= 0.02
    assert first.max() <= 0.98
    assert torch.equal(
        first, sample_sigma(64, 0.02, 0.98, 0.4, torch.Generator().manual_seed(seed))
    )


def test_step_generators_differ_by_seed_step_and_stream_alone() -> None:
    def draw(*key: object) -> list[float]:
        return torch.rand(3, generator=step_generator(*key)).tolist()  # type: ignore[arg-type]

    assert draw(0, 1, "a") == draw(0, 1, "a")
    assert (
        len({tuple(draw(*key)) for key in [(0, 1, "a"), (1, 1, "a"), (0, 2, "a"), (0, 1, "b")]})
        == 4
    )


def test_noise_of_a_pair_is_drawn_video_first() -> None:
    latents = Pair(torch.zeros(1, 4, 2, 3), torch.zeros(1, 26, 3))
    noise = noise_like(latents, torch.Generator().manual_seed(5))
    assert torch.equal(
        noise.video, torch.randn(1, 4, 2, 3, generator=torch.Generator().manual_seed(5))
    )
    assert noise.audio.shape == (1, 26, 3)
