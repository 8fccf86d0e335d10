"""Frozen weights in int8: what they compute, what autograd keeps, where they are refused."""

import pytest
import torch
from torch import Tensor, nn

from omniforcing.core.latents import Latents
from omniforcing.core.layout import clip_latents
from omniforcing.distill.sampling import full_view
from omniforcing.model.transformer import DualStream
from omniforcing.pipeline.config import load_config
from omniforcing.training.frozen import Int8Linear, hold_frozen, quantise
from tests.support.refusals import refuses
from tests.support.tiny_adapters import adapted, randomised
from tests.support.tiny_models import GRID, features, latents, tiny_model

pytestmark = pytest.mark.extended

COUNTS = clip_latents(1)
ADAPTERS = [
    "bidirectional_dmd={adapter: {rank: 4}, critic_adapter: {rank: 4}, critic_muon_lr: null}",
    "causal_ode={adapter: {rank: 4}, muon_lr: null}",
    "self_forcing={adapter: {rank: 4}, critic_adapter: {rank: 4}, critic_muon_lr: null}",
]


def velocity(model: DualStream) -> Latents:
    view = full_view(model, COUNTS, GRID)
    return model(latents(COUNTS), 0.5, model.cache_text(features()), view)


@pytest.mark.parametrize("mixed", [False, True])
def test_a_layer_in_int8_is_that_of_its_rounded_weights_and_keeps_those_alone(mixed: bool) -> None:
    torch.manual_seed(0)
    plain, layer = nn.Linear(48, 32), nn.Linear(48, 32)
    layer.load_state_dict(plain.state_dict())
    quantise(layer)
    assert isinstance(layer, Int8Linear) and layer.weight.dtype == torch.int8
    rounded = layer.weight * layer.scale[:, None]
    largest = plain.weight.abs().amax(1, keepdim=True)
    assert ((rounded - plain.weight).abs() <= largest / 254 * 1.001).all()

    kept: list[Tensor] = []
    x, again = (torch.randn(5, 48).requires_grad_() for _ in range(2))
    again.data.copy_(x)

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with (
        torch.autocast("cpu", torch.bfloat16, enabled=mixed),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        out = layer(x)
    assert max((t.numel() for t in kept if t.is_floating_point()), default=0) < layer.weight.numel()
    expected = nn.functional.linear(again, rounded, plain.bias)
    tolerance = 2e-2 if mixed else 1e-5
    torch.testing.assert_close(out.float(), expected, rtol=tolerance, atol=tolerance)
    out.float().square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(x.grad, again.grad, rtol=tolerance, atol=10 * tolerance)


def test_adapters_learn_on_a_base_in_int8_nearly_what_they_do_on_the_whole_one() -> None:
    models = [randomised(adapted(tiny_model())) for _ in range(2)]
    assert models[0].base is not None and models[1].base is not None
    hold_frozen(models[1].base, "int8")
    hold_frozen(models[1].base, "int8")
    found = [velocity(model) for model in models]
    for ours, theirs in zip(found[1], found[0], strict=True):
        error = (ours - theirs).norm() / theirs.norm()
        assert 0 < error < 0.03
    for out in found:
        (out.video.square().sum() + out.audio.square().sum()).backward()
    own = [dict(model.named_parameters()) for model in models]
    for name, parameter in own[1].items():
        if parameter.grad is not None:
            whole = own[0][name].grad
            assert whole is not None
            assert (parameter.grad - whole).norm() < 0.1 * whole.norm() + 1e-6, name


def test_a_quantised_base_is_refused_where_all_weights_train_or_are_sharded() -> None:
    int8 = "trainer.frozen=int8"
    with refuses("config.out-of-range", "trainer.frozen", "bidirectional_dmd.adapter=null"):
        load_config([int8])
    with refuses("config.out-of-range", "self_forcing.critic_adapter=null"):
        load_config([int8, *ADAPTERS[:2], "self_forcing.adapter={rank: 4}"])
    with refuses("config.out-of-range", "trainer.frozen", "cluster.strategy=fsdp"):
        load_config([int8, *ADAPTERS, "cluster.address=auto", "cluster.strategy=fsdp"])
    assert load_config([int8, *ADAPTERS]).trainer.frozen == "int8"
