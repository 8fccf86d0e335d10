"""States in half the bytes: what they change, and that they change nothing where they must not."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from omniforcing.core.latents import Latents
from omniforcing.core.random import step_generator
from omniforcing.pipeline.config import load_config
from omniforcing.training.config import TrainerConfig
from omniforcing.training.optimisers.averages import Ema
from omniforcing.training.optimisers.bf16 import AdamW, store
from omniforcing.training.stages import TrainingOptions
from tests.support.refusals import refuses
from tests.support.tiny_models import difference, features, latents
from tests.support.tiny_stages import COUNTS, stage_self_forcing

BF16 = torch.bfloat16


def scored(precision: bool = True, **options: Any) -> Latents:
    module = stage_self_forcing(options=TrainingOptions(**options))
    with torch.no_grad():  # a critic like the teacher would give no gradient
        for parameter in module.critic.parameters():
            parameter.mul_(1.1)
    with torch.autocast("cpu", BF16, enabled=precision):
        return module.score(latents(COUNTS), features(), step_generator(0, 0))


def test_a_teacher_held_in_bf16_scores_the_same_under_autocast() -> None:
    module = stage_self_forcing(options=TrainingOptions(frozen="bf16"))
    held = {p.dtype: 0 for p in module.teacher.parameters()}
    for parameter in module.teacher.core.transformer_blocks.parameters():
        held[parameter.dtype] += parameter.numel()
    assert held[BF16] > 10 * held[torch.float32] > 0
    assert module.teacher.core.proj_in.weight.dtype == torch.float32
    assert all(p.dtype == torch.float32 for p in module.critic.parameters())
    for ours, theirs in zip(scored(frozen="bf16"), scored(), strict=True):
        assert torch.equal(ours, theirs)


def test_guidance_in_turn_scores_as_in_one_batch() -> None:
    both, in_turn = scored(False), scored(False, batched_guidance=False)
    assert both.video.abs().max() > 1e-3
    assert difference(both, in_turn) < 1e-4


def test_rounding_at_random_keeps_the_mean_and_what_bf16_can_hold() -> None:
    value = torch.tensor([1 + 2**-10, -3 - 2**-8, 0.5, 0.0, 1e-30]).repeat(4096, 1)
    held = torch.empty_like(value, dtype=BF16)
    store(held, value.clone(), step_generator(0, 0))
    torch.testing.assert_close(held.float().mean(0), value[0], rtol=2e-4, atol=0)
    assert torch.equal(held[:, 2:4].float(), value[:, 2:4])
    assert {float(v) for v in held[:, 0].unique()} == {1.0, 1 + 2**-7}


def fit(kind: type[torch.optim.AdamW]) -> tuple[Tensor, torch.optim.Optimizer]:
    """Weights after 300 noisy updates towards a line, at the rates of AdamW's slow second decay."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.zeros(64))
    optimiser = kind([weight], lr=3e-3, betas=(0.9, 0.999), weight_decay=0.01)
    target = torch.linspace(-1, 1, 64)
    for _ in range(300):
        optimiser.zero_grad()
        (weight - target + 0.1 * torch.randn(64)).square().sum().backward()
        optimiser.step()
    return weight.detach(), optimiser


def test_moments_in_bf16_lead_where_those_in_fp32_do() -> None:
    ours, optimiser = fit(AdamW)
    theirs, plain = fit(torch.optim.AdamW)
    assert float((ours - theirs).abs().max()) < 0.05 * float(theirs.abs().max())
    (state,), (expected,) = optimiser.state.values(), plain.state.values()
    assert state["exp_avg"].dtype == state["exp_avg_sq"].dtype == BF16
    # Rounded to the nearest, the mean of squares would stand still after some updates.
    ratio = state["exp_avg_sq"].float().sum() / expected["exp_avg_sq"].sum()
    assert float(ratio) == pytest.approx(1, abs=0.05)


def test_an_average_in_bf16_follows_a_slow_model() -> None:
    model = torch.nn.Linear(64, 64, bias=False)
    torch.nn.init.constant_(model.weight, 1.0)
    averages = [Ema(copy.deepcopy(model), 0.999, held) for held in ("fp32", "bf16", "cpu")]
    torch.nn.init.constant_(model.weight, 1.1)
    for step in range(10_000, 10_100):
        for average in averages:
            average.update(model, step)
    exact, rounded, kept = (average.model.weight.float().mean().item() for average in averages)
    assert kept == exact == pytest.approx(1.1 - 0.1 * 0.999**100)
    assert rounded == pytest.approx(exact, abs=1e-3)
    assert averages[1].model.weight.dtype == BF16


def test_an_average_in_main_memory_stays_there_when_its_stage_moves() -> None:
    module = stage_self_forcing(options=TrainingOptions(averages="cpu"))
    module.to("meta")
    assert {p.device.type for p in module.ema.model.parameters()} == {"cpu"}
    assert {p.device.type for p in module.model.parameters()} == {"meta"}


def test_a_setting_that_cannot_be_is_refused() -> None:
    with refuses("config.out-of-range", "trainer.frozen", "bf16", "32-true"):
        load_config(["trainer.frozen=bf16"])
    with refuses("config.out-of-range", "trainer.averages", "cpu", "cluster"):
        load_config(["trainer.averages=cpu", "cluster.address=auto"])
    assert TrainerConfig(precision="bf16-mixed", frozen="bf16").frozen == "bf16"
