"""Adapters in training: what they own, what they share, and that they learn as peft's own do."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from omniforcing.core.config import FieldError
from omniforcing.core.latents import Latents
from omniforcing.core.layout import clip_latents
from omniforcing.distill.config import CausalOdeConfig, DmdConfig
from omniforcing.distill.sampling import full_view
from omniforcing.model.transformer import DualStream
from omniforcing.model.weights.checkpoint import open_checkpoint
from omniforcing.model.weights.lora import merged, read_lora, weights_digest, write_lora
from omniforcing.model.weights.student import load_model, save_model
from omniforcing.model.weights.writing import write_diffusers
from omniforcing.training.adapters import AdaptedStream, build_layers, check_targets
from omniforcing.training.config import AdapterConfig, Weights
from omniforcing.training.stages import Ema, by_modality
from tests.support.refusals import refuses
from tests.support.tiny_adapters import adapted, randomised
from tests.support.tiny_models import GRID, TOLERANCE, difference, features, latents, tiny_model

pytestmark = pytest.mark.extended

COUNTS = clip_latents(1)


def velocity(model: DualStream) -> Latents:
    view = full_view(model, COUNTS, GRID)
    return model(latents(COUNTS), 0.5, model.cache_text(features()), view)


def test_a_fresh_adapter_is_its_base_bit_for_bit() -> None:
    base = tiny_model()
    for ours, theirs in zip(velocity(adapted(base)), velocity(base), strict=True):
        assert torch.equal(ours, theirs)


def test_an_adapter_computes_and_learns_what_peft_injected_into_the_model_does() -> None:
    config = AdapterConfig(rank=3, alpha=6.0)
    model = randomised(adapted(tiny_model(), config))
    theirs = tiny_model()
    settings = peft.LoraConfig(
        r=3,
        lora_alpha=6,
        target_modules=[f"transformer_blocks.{n}" for n in layer_names(model)],
    )
    peft.inject_adapter_in_model(settings, theirs.core)
    state = {n.removeprefix("adapter."): p for n, p in model.named_parameters() if "lora" in n}
    missing = theirs.core.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys and not any("lora" in n for n in missing.missing_keys)
    again = type(theirs)(theirs.core)  # blocks look their layers up when they are built
    ours, other = velocity(model), velocity(again)
    assert difference(ours, other) == 0
    for out in (ours, other):
        (out.video.square().sum() + out.audio.square().sum()).backward()
    grads = {n: p.grad for n, p in again.core.named_parameters() if "lora" in n}
    assert len(grads) == len(state)
    for name, parameter in state.items():
        assert grads[name] is not None
        torch.testing.assert_close(parameter.grad, grads[name], rtol=0, atol=TOLERANCE)


def layer_names(model: AdaptedStream) -> list[str]:
    names = [n.partition(".lora_A")[0] for n, _ in model.named_parameters() if "lora_A" in n]
    return [n.removeprefix("adapter.transformer_blocks.") for n in names]


def test_roles_share_every_weight_of_the_base_and_own_their_adapter_and_sinks() -> None:
    base = tiny_model()
    student, critic = adapted(base, sinks=3), adapted(base, seed=1)
    assert student.core is critic.core is base.core
    own = [{id(p) for p in model.parameters()} for model in (student, critic, base)]
    assert not own[0] & own[1] and not own[0] & own[2]
    assert set(dict(student.named_parameters(recurse=False))) == {"sinks"}
    assert not any(name.startswith("core.") for name in student.state_dict())
    groups = by_modality(student)
    assert sum(map(len, groups)) == len([p for p in student.parameters() if p.requires_grad])
    assert all(not p.requires_grad for p in base.parameters())
    names = {id(p): n for n, p in student.named_parameters()}
    assert all("audio_ff" not in names[id(p)] for p in groups.video)


def test_two_roles_in_one_graph_do_not_disturb_each_other() -> None:
    base = tiny_model()
    one, two = (randomised(adapted(base, seed=seed), seed) for seed in (1, 2))
    alone = velocity(one)
    both = [velocity(model) for model in (one, two, one)]
    assert difference(both[0], alone) == difference(both[2], alone) == 0
    (both[0].video.sum() + both[1].video.sum()).backward()
    together = {n: p.grad.clone() for n, p in one.named_parameters() if p.grad is not None}
    one.zero_grad()
    velocity(one).video.sum().backward()
    for name, grad in together.items():
        again = one.get_parameter(name).grad
        assert again is not None and torch.equal(grad, again), name


def test_the_average_copies_the_adapter_and_shares_the_base() -> None:
    model = randomised(adapted(tiny_model(), sinks=3))
    ema = Ema(model, 0.5)
    assert ema.model.core is model.core
    for name, parameter in model.named_parameters():
        twin = ema.model.get_parameter(name)
        assert twin is not parameter and torch.equal(twin, parameter) and not twin.requires_grad
    assert difference(velocity(ema.model), velocity(model)) == 0
    randomised(model, seed=5)
    ema.update(model, 100)
    assert difference(velocity(ema.model), velocity(model)) > 0


def test_recomputed_activations_and_dropout_draw_the_same_masks() -> None:
    """Otherwise gradients would be those of another forward."""
    grads = []
    for recompute in (False, True):
        base = tiny_model(checkpoint_activations=recompute)
        model = randomised(adapted(base, AdapterConfig(rank=2, dropout=0.5))).train()
        torch.manual_seed(0)
        velocity(model).video.square().sum().backward()
        grads.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
        with torch.no_grad():
            assert difference(velocity(model), velocity(model)) == 0
        assert difference(velocity(model), velocity(model)) > 0
    for name, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][name], rtol=0, atol=TOLERANCE)


def test_an_adapter_goes_to_a_file_and_back_and_merged_it_computes_the_same(
    tmp_path: Path,
) -> None:
    save_model(tiny_model(), tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    config = AdapterConfig(rank=2, alpha=3.0)
    model = randomised(adapted(load_model(tmp_path, 0), config, weights_digest(checkpoint)))
    write_lora(model.lora(tmp_path / "adapter.safetensors", "tiny"), tmp_path / "a.safetensors")
    lora = read_lora(tmp_path / "a.safetensors")
    assert lora.facts["base"] == "tiny" and lora.facts["rank"] == "2"

    again = adapted(load_model(tmp_path, 0), config, weights_digest(checkpoint))
    again.take(lora)
    assert difference(velocity(again), velocity(model)) < TOLERANCE

    (tmp_path / "merged").mkdir()
    write_diffusers(merged(checkpoint, [(lora, 1.0)]), tmp_path / "merged")
    whole = load_model(tmp_path / "merged", 0)
    assert difference(velocity(whole), velocity(model)) < TOLERANCE


def test_an_adapter_for_another_base_rank_or_layers_is_refused(tmp_path: Path) -> None:
    model = adapted(tiny_model(), AdapterConfig(rank=2))
    lora = model.lora(tmp_path / "x.safetensors", "tiny")
    with refuses("adapter.other-base", "x.safetensors"):
        adapted(tiny_model(), AdapterConfig(rank=2), "ab" * 32).take(lora)
    with refuses("adapter.other-rank", "x.safetensors", "rank 2", "expected 3"):
        adapted(tiny_model(), AdapterConfig(rank=3)).take(lora)
    for targets in (["to_q"], ["to_q", "to_k"]):
        few = adapted(tiny_model(), AdapterConfig(rank=2, targets=targets))
        with refuses("adapter.other-targets", "x.safetensors"):
            few.take(lora)
        with refuses("adapter.other-targets", "lacks"):
            model.take(few.lora(tmp_path / "few.safetensors", "tiny"))
    with refuses("adapter.other-base"):
        model.load_state_dict(adapted(tiny_model(), AdapterConfig(rank=2), "ab" * 32).state_dict())


def test_ranks_and_targets_that_a_base_does_not_have_are_refused_before_it_is_read(
    tmp_path: Path,
) -> None:
    save_model(tiny_model(), tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    check_targets(AdapterConfig(rank=32), checkpoint, "causal_ode.adapter")
    with refuses("adapter.rank-too-large", "causal_ode.adapter", "rank 33", "32"):
        check_targets(AdapterConfig(rank=33), checkpoint, "causal_ode.adapter")
    bad: dict[str, Any]
    for bad in ({"rank": 0}, {"targets": ["to_z"]}, {"targets": []}, {"dropout": 1.0}):
        with pytest.raises(FieldError):
            AdapterConfig(**bad)
    with pytest.raises(FieldError) as refused:
        AdapterConfig(targets=["to_q", "q_proj"])
    assert refused.value.key == "targets" and "q_proj" in str(refused.value)


def test_muon_is_refused_for_adapters() -> None:
    adapter = AdapterConfig(rank=2)
    for make, key in (
        (lambda: DmdConfig(adapter=adapter, muon_lr=Weights(1e-3, 1e-3)), "muon_lr"),
        (lambda: DmdConfig(critic_adapter=adapter, critic_muon_lr=1e-3), "critic_muon_lr"),
        (lambda: CausalOdeConfig(adapter=adapter, muon_lr=Weights(1e-3, 1e-3)), "muon_lr"),
    ):
        with pytest.raises(FieldError) as refused:
            make()
        assert refused.value.key == key
    DmdConfig(adapter=adapter, critic_muon_lr=1e-3)


def test_layers_start_from_the_seed_and_leave_other_random_numbers_alone() -> None:
    base, config = tiny_model(), AdapterConfig(rank=2)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    one, two, other = (build_layers(base, config, seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)
