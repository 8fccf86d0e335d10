"""Students of three, two and one sigmas, from Stage I to the stream."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from omniforcing.core.latents import Batch, Latents, TextFeatures, concatenate
from omniforcing.core.pair import Pair
from omniforcing.core.random import step_generator
from omniforcing.distill.sampling import WholeClip, ode_states
from omniforcing.distill.trajectories import refine
from omniforcing.model.inference.fast import accelerate
from omniforcing.model.options import InferenceOptions
from omniforcing.model.rollout import Rollout
from omniforcing.model.transformer import DualStream
from omniforcing.pipeline.config import load_config
from omniforcing.training.config import TrainerConfig
from omniforcing.training.curves import CURVES
from omniforcing.training.loop import fit
from tests.support.group import read_rows
from tests.support.refusals import refuses
from tests.support.tiny_models import GRID, difference, features, latents, tiny_model
from tests.support.tiny_stages import (
    COUNTS,
    ROLLOUT,
    stage_bidirectional_dmd,
    stage_causal_ode,
    stage_self_forcing,
)

pytestmark = pytest.mark.extended

FEWER = [(1.0, 0.909375, 0.725), (1.0, 0.725), (1.0,)]
NAMES = ["3", "2", "1"]


@torch.no_grad()
def trajectories(model: DualStream, sigmas: tuple[float, ...], text: TextFeatures) -> Latents:
    """States at the student's sigmas and at 0, ``[B, K, T, ...]``, by two Euler steps for each."""
    clip, fine = WholeClip(model, COUNTS, GRID), refine(sigmas, 2 * len(sigmas))
    states = list(ode_states(clip.plain(text), clip.noise(2, step_generator(0, 0)), fine))[::2]
    return states[0].map(lambda *parts: torch.stack(parts, 1), *states[1:])


@pytest.mark.parametrize("sigmas", FEWER, ids=NAMES)
def test_every_stage_trains_and_streams_agree(sigmas: tuple[float, ...], tmp_path: Path) -> None:
    trainer = TrainerConfig(checkpoint_every=2, log_every=1, accelerator="cpu")
    text = features()
    first = stage_bidirectional_dmd(sigmas=sigmas)
    states = trajectories(first.model, sigmas, text)
    assert states.video.shape[1] == len(sigmas) + 1
    for module in (first, stage_causal_ode(sigmas=sigmas), stage_self_forcing(sigmas=sigmas)):
        x = states if module is not first and not hasattr(module, "critic") else latents(COUNTS)

        def batches(_epoch: int, x: Latents = x) -> Iterator[Batch]:
            yield from 2 * [Batch(x, text)]

        work = tmp_path / type(module).__name__
        fit(module, batches, steps=2, work=work, trainer=trainer)
        assert len(read_rows(work / CURVES)) == 2

    config = replace(ROLLOUT, sigmas=sigmas)

    def stream(model: DualStream, options: InferenceOptions) -> Latents:
        rollout = Rollout(model, text, config, step_generator(0, 7), options)
        return concatenate(list(islice(rollout, 5)))

    student = tiny_model(3)
    off = InferenceOptions(layers=False, conditions=False, ring=False)
    plain = stream(student, off)
    fast = accelerate(tiny_model(3))
    for options in (InferenceOptions(), InferenceOptions(merged=True)):
        assert difference(plain, stream(fast, options)) < 1e-4
    known = Rollout(student, text, config, step_generator(0, 7)).begin(plain.video[:, :1])
    assert torch.equal(known.video[:, :1], plain.video[:, :1])
    assert isinstance(known, Pair)


def test_trajectories_that_do_not_fit_the_sigmas_are_refused_before_anything_runs() -> None:
    three = "student.sigmas=[1.0,0.909375,0.725]"
    with refuses("config.out-of-range", "trajectories.steps", "student.sigmas, 3"):
        load_config([three], preset="pocket")
    assert load_config([three, "trajectories.steps=3"], preset="pocket").trajectories.steps == 3
