"""The formulas of distillation, and the moves of each stage on tiny models."""

import copy
import csv
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from omniforcing.core.latents import Batch, HeldText
from omniforcing.core.pair import Pair
from omniforcing.core.random import step_generator
from omniforcing.distill.causal_ode import CausalOde, pick
from omniforcing.distill.config import SamplerConfig
from omniforcing.distill.dmd import dmd_gradient, dmd_loss
from omniforcing.distill.guidance import cache_guided, guided_x0
from omniforcing.distill.sampling import WholeClip, full_view, ode_states
from omniforcing.distill.trajectories import refine
from omniforcing.model.rollout import Rollout, predict_x0
from omniforcing.training import checkpoints
from omniforcing.training.adapters import AdaptedStream
from omniforcing.training.config import TrainerConfig, Weights
from omniforcing.training.curves import CURVES
from omniforcing.training.loop import fit
from omniforcing.training.optimisers.averages import Ema
from omniforcing.training.optimisers.muon import Muon
from omniforcing.training.stages import (
    StageModule,
    TrainingOptions,
    by_modality,
    modality_of,
)
from tests.support.refusals import refuses
from tests.support.tiny_models import GRID, features, latents, tiny_model
from tests.support.tiny_stages import (
    ADAPTED,
    COUNTS,
    ROLLOUT,
    SIGMAS,
    STAGES,
    stage_adapted_causal_ode,
    stage_adapted_self_forcing,
    stage_bidirectional_dmd,
    stage_causal_ode,
    stage_self_forcing,
    stage_teacher,
    stage_with_muon,
)


def test_dmd_loss_hands_the_gradient_over_unchanged() -> None:
    x = latents(COUNTS).map(lambda t: t.requires_grad_())
    g = latents(COUNTS, seed=1)
    losses = dmd_loss(x, g)
    (losses.video + losses.audio).backward()
    for value, gradient in zip(x, g, strict=True):
        torch.testing.assert_close(value.grad, gradient / value.numel())


def test_dmd_gradient_is_zero_where_critic_and_teacher_agree_and_scales_per_sample() -> None:
    x, real, fake = (latents(COUNTS, seed=s) for s in range(3))
    assert all(not g.any() for g in dmd_gradient(x, real, real))
    g = dmd_gradient(x, real, fake)
    first = (fake.video - real.video)[0] / (x.video - real.video)[0].abs().mean()
    torch.testing.assert_close(g.video[0], first)


@torch.no_grad()
def test_guidance_of_one_is_the_conditional_model_and_zero_the_unconditional_one() -> None:
    model, x, text, none = tiny_model(), latents(COUNTS), features(), features(batch=1, seed=9)
    view, sigma = full_view(model, COUNTS, GRID), torch.tensor([0.4, 0.9])
    for weight, expected in ((1.0, text), (0.0, none)):
        scale = Pair(torch.full((2,), weight), torch.full((2,), weight))
        guided = guided_x0(model, x, sigma, cache_guided(model, text, none), scale, view)
        plain = predict_x0(model, x, sigma, model.cache_text(expected), view)
        for a, b in zip(guided, plain, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_every_parameter_belongs_to_the_stream_it_writes_into() -> None:
    expected = {
        "core.transformer_blocks.0.attn1.to_q.weight": "video",
        "core.transformer_blocks.0.audio_attn1.to_q.weight": "audio",
        "core.transformer_blocks.0.audio_to_video_attn.to_k.weight": "video",
        "core.transformer_blocks.0.video_to_audio_attn.to_k.weight": "audio",
        "core.transformer_blocks.0.audio_a2v_cross_attn_scale_shift_table": "audio",
        "core.av_cross_attn_audio_v2a_gate.linear.weight": "audio",
        "core.av_cross_attn_video_a2v_gate.linear.weight": "video",
        "core.audio_proj_out.weight": "audio",
        "core.caption_projection.linear_1.weight": "video",
        "sinks": "audio",
        "qk_gain": "audio",
    }
    model = tiny_model(sinks=2)
    model.qk_gain = torch.nn.Parameter(torch.ones(2, 2))
    assert expected.keys() <= dict(model.named_parameters()).keys()
    assert {name: modality_of(name) for name in expected} == expected
    split = by_modality(model)
    assert len(split.video) + len(split.audio) == len(list(model.parameters()))


def test_ema_follows_and_lags() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    ema = Ema(model, 0.5)
    torch.nn.init.ones_(model.weight)
    values = []
    for step in range(100, 104):
        ema.update(model, step)
        values.append(float(ema.model.weight.detach()))
    assert values == [0.5, 0.75, 0.875, 0.9375]


def test_refined_sigmas_hold_the_students_own() -> None:
    fine = refine(SIGMAS, 8)
    assert fine[::4] == [*SIGMAS, 0.0]
    assert all(a > b for a, b in pairwise(fine))
    for steps in (0, 3):
        with refuses("config.inconsistent", f"trajectories.steps is {steps}", "student.sigmas, 2"):
            refine(SIGMAS, steps)


def test_a_point_per_block_is_picked_and_its_perfect_velocity_costs_nothing() -> None:
    ode = stage_causal_ode()
    x0, noise = latents(COUNTS), latents(COUNTS, seed=1)
    sigmas = torch.tensor([*SIGMAS, 0.0])
    states = x0.map(lambda a, n: torch.stack([(1 - s) * a + s * n for s in sigmas], 1), noise)
    spread = ode.spread(torch.tensor([[0, 1, 2], [2, 0, 1]]))
    for name in ("video", "audio"):
        point, state, clean, eps = (getattr(p, name) for p in (spread, states, x0, noise))
        picked = pick(state, point)
        s = sigmas[point].reshape(*point.shape, *[1] * (picked.ndim - 2))
        torch.testing.assert_close(picked, (1 - s) * clean + s * eps)
        assert float(ode.regress(eps - clean, picked, clean, sigmas[point])) < 1e-9
        assert float(ode.regress(clean - eps, picked, clean, sigmas[point])) > 1


def batches(module: StageModule) -> Callable[[int], Iterator[Batch]]:
    def of_epoch(epoch: int) -> Iterator[Batch]:
        for i in range(3):
            x = latents(COUNTS, seed=epoch * 3 + i)
            if isinstance(module, CausalOde):
                x = x.map(lambda t: torch.stack([t, t * 0.5, t * 0.1], 1))
            yield Batch(x, features(seed=epoch * 3 + i))

    return of_epoch


@pytest.mark.extended
@pytest.mark.parametrize(
    "build",
    [stage_teacher, stage_bidirectional_dmd, stage_causal_ode, stage_adapted_causal_ode],
)
@torch.no_grad()
def test_all_that_a_stage_was_built_with_follows_its_model_to_another_device(
    build: Callable[[], StageModule],
) -> None:
    """No numbers are computed on the meta device, but tensors of two devices still do not meet."""
    module = build()
    module.place(torch.device("meta"))
    assert module.device.type == "meta"
    x, text = latents(COUNTS).to("meta"), features().to("meta")
    for sigma in (torch.rand(2, device="meta"), torch.rand(2, 3, device="meta")):
        for model in (module.model, *getattr(module, "frozen", ())):
            if sigma.ndim == 1 or isinstance(module, CausalOde):
                assert model(x, sigma, model.cache_text(text), module.view).video.is_meta


class _Killed(Exception):
    pass


def test_muon_takes_the_matrices_of_the_layers_and_adamw_all_other_parameters_once() -> None:
    module = stage_with_muon()
    optimisers = module.configure_optimizers()
    assert [type(optimiser) for optimiser in optimisers] == [torch.optim.AdamW, Muon] * 2
    for model, (adamw, muon) in ((module.model, optimisers[:2]), (module.critic, optimisers[2:])):
        inside, others = (
            [p for group in o.param_groups for p in group["params"]] for o in (muon, adamw)
        )
        layers = dict(model.core.transformer_blocks.named_parameters())
        assert {id(p) for p in inside} == {
            id(p) for name, p in layers.items() if name.endswith("weight") and p.ndim == 2
        }
        assert sorted(map(id, [*inside, *others])) == sorted(
            id(p) for p in model.parameters() if p.numel()
        )


LEAN = TrainingOptions(averages="bf16", moments="bf16", batched_guidance=False)


@pytest.mark.extended
@pytest.mark.parametrize(
    "build",
    [
        *STAGES,
        *ADAPTED,
        pytest.param(partial(stage_self_forcing, options=LEAN), id="lean"),
        pytest.param(partial(stage_teacher, options=TrainingOptions(averages="cpu")), id="cpu"),
    ],
)
def test_a_stage_broken_off_and_resumed_ends_in_the_same_weights(
    build: Callable[[], StageModule], tmp_path: Path
) -> None:
    trainer = TrainerConfig(checkpoint_every=3, log_every=1, probes=3, accelerator="cpu")

    def train(work: Path, stop_at: int | None = None) -> StageModule:
        module = build()

        def stopping(epoch: int) -> Iterator[Batch]:
            for i, batch in enumerate(batches(module)(epoch)):
                if epoch * 3 + i == stop_at:
                    raise _Killed
                yield batch

        def probe() -> dict[str, float]:
            return {"sync_margin": float(next(module.ema.model.parameters()).sum())}

        fit(module, stopping, steps=6, work=work, trainer=trainer, probe=probe)
        return module

    unbroken = train(tmp_path / "unbroken")
    with pytest.raises(_Killed):
        train(tmp_path / "broken", stop_at=4)
    resumed = train(tmp_path / "broken")
    expected, found = unbroken.state_dict(), resumed.state_dict()
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name
    assert (tmp_path / "unbroken" / CURVES).read_text() == (
        tmp_path / "broken" / CURVES
    ).read_text()
    rows = list(csv.DictReader((tmp_path / "broken" / CURVES).open()))
    assert [bool(row["sync_margin"]) for row in rows] == [False, True] * 3
    start = build().state_dict()
    assert any(not torch.equal(value, start[name]) for name, value in expected.items())


@pytest.mark.extended
@pytest.mark.parametrize("build", STAGES)
def test_a_plain_loop_trains_a_stage_to_the_weights_that_lightning_does(
    build: Callable[[], StageModule], tmp_path: Path
) -> None:
    fitted, plain = build(), build()
    trainer = TrainerConfig(checkpoint_every=3, accelerator="cpu")
    fit(fitted, batches(fitted), steps=3, work=tmp_path, trainer=trainer)
    plain.place(torch.device("cpu"))
    optimisers = plain.configure_optimizers()
    for step, batch in enumerate(batches(plain)(0)):
        logged = plain.training_step(step, batch, optimisers, torch.Tensor.backward)
    found = plain.state_dict()
    for name, value in fitted.state_dict().items():
        assert torch.equal(value, found[name]), name
    row = list(csv.DictReader((tmp_path / CURVES).open()))[-1]
    assert row == {"step": "2", **{name: f"{float(value):.6g}" for name, value in logged.items()}}


def test_the_frozen_teacher_is_no_part_of_a_checkpoint(tmp_path: Path) -> None:
    module, trainer = stage_self_forcing(), TrainerConfig(checkpoint_every=1, accelerator="cpu")
    fit(module, batches(module), steps=1, work=tmp_path, trainer=trainer)
    saved = torch.load(tmp_path / checkpoints.WHOLE, weights_only=False)["state_dict"]
    assert {name.removeprefix("stage.") for name in saved} == set(module.state_dict())
    assert {name.split(".")[1] for name in saved} == {"model", "ema", "critic", "largest_norm"}


@pytest.mark.extended
def test_a_checkpoint_of_adapters_holds_them_and_the_sinks_and_names_the_base(
    tmp_path: Path,
) -> None:
    module, trainer = stage_adapted_self_forcing(), TrainerConfig(checkpoint_every=1)
    fit(module, batches(module), steps=1, work=tmp_path, trainer=trainer)
    saved = torch.load(tmp_path / checkpoints.WHOLE, weights_only=False)["state_dict"]
    kinds = {name.split(".transformer_blocks.")[0].removeprefix("stage.") for name in saved}
    roles = {"model", "critic", "ema.model"}
    owned = {f"{role}.{part}" for role in roles for part in ("sinks", "adapter", "base_digest")}
    assert kinds == owned | {"largest_norm"}
    assert all("lora_" in name for name in saved if "transformer_blocks" in name)

    other = stage_adapted_self_forcing()
    for model in (other.model, other.critic, other.ema.model):
        assert isinstance(model, AdaptedStream)
        model.digest = "ab" * 32
    with refuses("adapter.other-base"):
        fit(other, batches(other), steps=2, work=tmp_path, trainer=trainer)


@pytest.mark.extended
def test_self_forcing_reaches_the_sinks_and_the_text_path_and_never_the_teacher(
    tmp_path: Path,
) -> None:
    module = stage_self_forcing()
    teacher = copy.deepcopy(module.frozen[0].state_dict())
    x, cuts = module.generate(module.model, features(), step_generator(0, 0))
    (x.video.sum() + x.audio.sum()).backward()
    for cut in cuts:
        cut.loss().backward()
    named = dict(module.model.named_parameters())
    for name in (
        "sinks",
        "core.caption_projection.linear_1.weight",
        "core.transformer_blocks.1.attn2.to_k.weight",
        "core.transformer_blocks.0.audio_attn2.to_v.weight",
    ):
        gradient = named[name].grad
        assert gradient is not None and gradient.abs().sum() > 0, name
    fit(
        module,
        batches(module),
        steps=2,
        work=tmp_path,
        trainer=TrainerConfig(checkpoint_every=2, accelerator="cpu"),
    )
    assert all(torch.equal(v, teacher[k]) for k, v in module.frozen[0].state_dict().items())


@pytest.mark.extended
@pytest.mark.parametrize("steered", [0.0, 1.0])
def test_rollouts_that_switch_learn_from_the_switch_on(steered: float) -> None:
    module, text, learning = stage_self_forcing(steered), features(), set()
    weights = [p for p in module.model.parameters() if p.requires_grad]
    for seed in range(8):
        x, cuts = module.generate(module.model, text, step_generator(seed, 0))
        x.video.sum().backward()
        found = []
        for cut in reversed(cuts[:-1]):  # the first block's comes first, without the text path's
            module.model.zero_grad()
            cut.loss().backward()
            found.append(any(p.grad is not None and bool(p.grad.any()) for p in weights))
        learning.add(tuple(found))
    assert learning == (
        {(False, True, True), (False, False, True)} if steered else {(True, True, True)}
    )


@torch.no_grad()
@pytest.mark.parametrize("seed", range(6))
def test_only_rollouts_that_switch_begin_as_the_other_caption_says(seed: int) -> None:
    module, text = stage_self_forcing(0.5), features()
    one = module.generate(module.model, text, step_generator(seed, 0))[0].video
    module.captions = HeldText(features(5, seed=8))
    other = module.generate(module.model, text, step_generator(seed, 0))[0].video
    generator = step_generator(seed, 0)
    torch.randint(len(SIGMAS), (), generator=generator)
    switches = torch.rand((2,), generator=generator) < 0.5
    assert [
        bool((a[0] != b[0]).any()) for a, b in zip(one, other, strict=True)
    ] == switches.tolist()


@torch.no_grad()
def test_a_rollout_in_training_equals_the_stream_for_the_same_noise() -> None:
    """Functional caches and static buffers give the same blocks when the last step is the exit,
    across a switch too.
    """
    from omniforcing.core.latents import concatenate
    from omniforcing.model.rollout import train_rollout

    model, text, other = tiny_model(3), features(), features(seed=5)
    texts = [model.cache_text(text), *2 * [model.cache_text(other)]]
    trained = concatenate(
        train_rollout(model, texts, ROLLOUT, 2, len(SIGMAS) - 1, step_generator(0, 7))
    )
    stream = Rollout(model, text, ROLLOUT, step_generator(0, 7))
    blocks = [next(stream)]
    stream.switch(other)
    streamed = concatenate([*blocks, next(stream), next(stream)])
    for a, b in zip(trained, streamed, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_samplers_end_in_clips_of_the_asked_size_and_depend_on_the_seed_alone() -> None:
    model, text, none = tiny_model(), features(), features(1, seed=9)
    clip, sampler = WholeClip(model, COUNTS, GRID), SamplerConfig(steps=3)
    a, b, c = (clip.sample_guided(text, none, sampler, step_generator(s, 0)) for s in (0, 0, 1))
    assert a.video.shape == (2, 7, 6, 8) and a.audio.shape == (2, 51, 12)
    assert torch.equal(a.video, b.video) and not torch.equal(a.video, c.video)


@torch.no_grad()
def test_trajectories_start_in_noise_and_the_teachers_without_guidance_is_the_students() -> None:
    model, text = tiny_model(), features()
    clip, sigmas = WholeClip(model, COUNTS, GRID), [*SIGMAS, 0.0]
    denoisers = clip.plain(text), clip.guided(text, features(1, seed=9), Weights(1.0, 1.0))
    student, teacher = (
        list(ode_states(d, clip.noise(2, step_generator(0, 0)), sigmas)) for d in denoisers
    )
    assert len(student) == len(teacher) == 3
    for s, t in zip(student, teacher, strict=True):
        torch.testing.assert_close(s.video, t.video, rtol=1e-3, atol=1e-4)
    assert 0.9 < float(student[0].video.std()) < 1.1
