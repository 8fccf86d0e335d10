"""Every trained transformer stage over tiny models of two seconds."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from omniforcing.core.latents import HeldText
from omniforcing.core.layout import LAYOUTS, clip_latents
from omniforcing.distill.bidirectional_dmd import BidirectionalDmd
from omniforcing.distill.causal_ode import CausalOde
from omniforcing.distill.config import CausalOdeConfig, DmdConfig, SelfForcingConfig, TeacherConfig
from omniforcing.distill.sampling import full_view
from omniforcing.distill.self_forcing import SelfForcing
from omniforcing.distill.teacher import Teacher
from omniforcing.model.attention import Masked
from omniforcing.model.rollout import RolloutConfig
from omniforcing.model.student import positions_for
from omniforcing.model.transformer import DualStream
from omniforcing.training.config import OptimiserConfig, Weights
from omniforcing.training.stages import StageModule, TrainingOptions
from tests.support.tiny_adapters import adapted
from tests.support.tiny_models import GRID, features, tiny_model

COUNTS, TABLE, SIGMAS = clip_latents(2), LAYOUTS["prefix"], (1.0, 0.6)
ROLLOUT = RolloutConfig(TABLE, GRID, SIGMAS, window=1, horizon=2)
OPTIM = OptimiserConfig(steps=6, batch=2, warmup=1)
PLAIN = TrainingOptions()


def stage_teacher(options: TrainingOptions = PLAIN, recompute: bool = False) -> Teacher:
    model = tiny_model(checkpoint_activations=recompute)
    return Teacher(
        model,
        TeacherConfig(optim=OPTIM),
        full_view(model, COUNTS, GRID),
        features(1, seed=9),
        seed=0,
        options=options,
    )


def models(sinks: int, recompute: bool) -> list[DualStream]:
    return [tiny_model(count, checkpoint_activations=recompute) for count in (sinks, 0, 0)]


def stage_bidirectional_dmd(
    options: TrainingOptions = PLAIN,
    recompute: bool = False,
    sigmas: tuple[float, ...] = SIGMAS,
    **rates: Any,
) -> BidirectionalDmd:
    three = models(0, recompute)
    config = DmdConfig(optim=OPTIM, critic_steps=2, **rates)
    view, none = full_view(three[1], COUNTS, GRID), features(1, seed=9)
    return BidirectionalDmd(
        *three,
        config=config,
        view=view,
        unconditional=none,
        sigmas=sigmas,
        counts=COUNTS,
        grid=GRID,
        seed=0,
        options=options,
    )


def stage_causal_ode(
    options: TrainingOptions = PLAIN, recompute: bool = False, sigmas: tuple[float, ...] = SIGMAS
) -> CausalOde:
    model = tiny_model(3, checkpoint_activations=recompute)
    view = Masked(positions_for(model, COUNTS, GRID, sinks=True), TABLE, 3, None, 2)
    return CausalOde(model, CausalOdeConfig(optim=OPTIM), sigmas, TABLE, view, 0, options)


def stage_self_forcing(
    steered: float = 0.5,
    options: TrainingOptions = PLAIN,
    recompute: bool = False,
    sigmas: tuple[float, ...] = SIGMAS,
) -> SelfForcing:
    three = models(3, recompute)
    config = SelfForcingConfig(optim=OPTIM, critic_steps=2, steered=steered)
    rest: dict[str, Any] = {
        "view": full_view(three[1], COUNTS, GRID),
        "unconditional": features(1, seed=9),
        "captions": HeldText(features(5, seed=3)),
    }
    return SelfForcing(
        *three,
        config=config,
        rollout=replace(ROLLOUT, sigmas=sigmas),
        blocks=3,
        seed=0,
        options=options,
        **rest,
    )


def stage_with_muon(options: TrainingOptions = PLAIN, recompute: bool = False) -> BidirectionalDmd:
    """Student and critic of two optimisers each."""
    rates: dict[str, Any] = {"muon_lr": Weights(1e-3, 1e-3), "critic_muon_lr": 2e-3}
    return stage_bidirectional_dmd(options, recompute, **rates)


def stage_adapted_causal_ode(
    options: TrainingOptions = PLAIN, recompute: bool = False
) -> CausalOde:
    """Stage II of an adapter and of sinks."""
    model = adapted(tiny_model(checkpoint_activations=recompute), sinks=3)
    view = Masked(positions_for(model, COUNTS, GRID, sinks=True), TABLE, 3, None, 2)
    return CausalOde(model, CausalOdeConfig(optim=OPTIM), SIGMAS, TABLE, view, 0, options)


def stage_adapted_self_forcing(
    options: TrainingOptions = PLAIN, recompute: bool = False
) -> SelfForcing:
    """Stage III with all three roles on the teacher's weights."""
    teacher = tiny_model(checkpoint_activations=recompute)
    student, critic = adapted(teacher, sinks=3), adapted(teacher, seed=1)
    return SelfForcing(
        *(student, teacher, critic),
        config=SelfForcingConfig(optim=OPTIM, critic_steps=2, steered=0.5),
        rollout=ROLLOUT,
        blocks=3,
        view=full_view(teacher, COUNTS, GRID),
        unconditional=features(1, seed=9),
        captions=HeldText(features(5, seed=3)),
        seed=0,
        options=options,
    )


ADAPTED: list[Callable[..., StageModule]] = [stage_adapted_causal_ode, stage_adapted_self_forcing]
STAGES: list[Callable[..., StageModule]] = [
    stage_teacher,
    stage_bidirectional_dmd,
    stage_causal_ode,
    stage_self_forcing,
    stage_with_muon,
]
