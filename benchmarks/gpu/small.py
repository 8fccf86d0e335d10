"""Preset small, the pocket world at 128 px from scratch: each training stage for a minute.

Data are random, of the preset's shapes: rows say how fast a stage trains, what memory it takes and
how many hours a whole training would be, nothing about how good a model becomes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.rows import Figures, Measurement
from benchmarks.gpu.setup import Setup, preset
from benchmarks.gpu.training import Updates, random_batch
from omniforcing.codec.networks import build_audio_vae, build_video_vae, build_vocoder
from omniforcing.core.config import project_root
from omniforcing.core.layout import HOP, MEL_RATE
from omniforcing.media.mel import MEL_BINS
from omniforcing.pipeline.config import Config
from omniforcing.pipeline.planner.networks import BUILDERS, Sizes
from omniforcing.training.codec import training
from omniforcing.training.codec.training import (
    AudioVaeTraining,
    CodecTraining,
    VideoVaeTraining,
    VocoderTraining,
)

STAGES = ("self_forcing", "bidirectional_dmd", "causal_ode", "teacher")
MINUTE = 60.0
WARM_UP = 2  # updates


def measurements(setup: Setup) -> list[Measurement]:
    """A row per training stage; the codec's three networks have one each."""
    does = "train it for up to a minute"
    parts = {"codec, video VAE": video, "codec, audio VAE": audio, "codec, vocoder": sound}
    rows = [(name, partial(transformer, setup, name)) for name in STAGES]
    rows += [(name, partial(train, setup)) for name, train in parts.items()]

    def timed(place: int, run: partial[Figures]) -> Callable[[], Figures]:
        return lambda: run(seconds=_share(setup, len(rows) - place))

    return [Measurement(name, timed(place, run), does) for place, (name, run) in enumerate(rows)]


def _share(setup: Setup, rows: int) -> float:
    """Seconds to train for: a minute, or an equal part of two thirds of the time that is left."""
    return 1.0 if setup.small else min(MINUTE, max(2.0, 0.65 * setup.left / rows))


def transformer(setup: Setup, name: str, seconds: float) -> Figures:
    """The teacher or one of the three stages at the preset's batch."""
    config = preset("smoke" if setup.small else "small")
    sizes = _on(setup, Sizes.from_config(config, project_root()))
    section = getattr(config, name)
    module = BUILDERS[name](config, sizes, torch.float32)
    updates = Updates(setup, config, module, random_batch(config, sizes, name, section.optim.batch))
    updates.run(WARM_UP)
    return _rate(setup, lambda: updates.run(1), section.optim.steps, seconds)


def _on(setup: Setup, sizes: Sizes) -> Sizes:
    from dataclasses import replace

    return replace(sizes, device=setup.device)


def _rate(setup: Setup, update: Callable[[], Any], steps: int, seconds: float) -> Figures:
    """Updates a second over ``seconds``, and what follows for a whole training."""
    began, updates = time.perf_counter(), 0
    while updates < 2 or time.perf_counter() - began < seconds:
        update()
        updates += 1
    took = time.perf_counter() - began
    return _figures(setup, took / updates, steps, updates)


def _figures(setup: Setup, each: float, steps: int, updates: int) -> Figures:
    hours = steps * each / 3600
    found: Figures = {
        "updates_per_s": 1 / each,
        "hours": hours,
        "steps": steps,
        "measured_updates": updates,
    }
    return {**found, **({"peak_gb": torch.cuda.max_memory_allocated() / 1e9} if setup.cuda else {})}


def video(setup: Setup, seconds: float) -> Figures:
    """The video VAE over its whole curriculum of crops: each leg counts by its share of the steps."""
    config = preset("smoke" if setup.small else "small")
    own = config.codec.video
    frames = torch.randint(
        256, (4, config.clips.frames, config.clips.height, config.clips.width, 3), dtype=torch.uint8
    )
    draw = training.video_crops(frames, own, config.seed)
    part = _Trained(
        setup, VideoVaeTraining(build_video_vae(own), own, config.seed), training.PRECISION
    )
    begun, total, updates = 0.0, 0.0, 0
    for crop in own.crops:
        at = int((begun + crop.share / 2) * own.steps)
        begun += crop.share
        leg = _rate(setup, partial(part.at, at, draw), own.steps, seconds / len(own.crops))
        total, updates = (
            total + crop.share / leg["updates_per_s"],
            updates + leg["measured_updates"],
        )
    return _figures(setup, total / begun, own.steps, updates)


def audio(setup: Setup, seconds: float) -> Figures:
    """The audio VAE on random log-mels."""
    config = preset("smoke" if setup.small else "small")
    own = config.codec.audio
    draw = training.mel_crops(_mels(config), own, config.seed)
    part = _Trained(
        setup, AudioVaeTraining(build_audio_vae(own), own, config.seed), training.PRECISION
    )
    return _rate(setup, part.following(draw), own.steps, seconds)


def sound(setup: Setup, seconds: float) -> Figures:
    """The vocoder on random log-mels and samples."""
    config = preset("smoke" if setup.small else "small")
    own, mels = config.codec.vocoder, _mels(config)
    samples = torch.rand(len(mels), 2, HOP * mels.shape[2]) - 0.5
    draw = training.sound_crops(mels, mels, samples, own, config.seed)
    part = _Trained(
        setup,
        VocoderTraining(build_vocoder(own), own, config.seed),
        training.PRECISION,
    )
    return _rate(setup, part.following(draw), own.steps, seconds)


def _mels(config: Config) -> Tensor:
    return torch.randn(16, 2, 1 + MEL_RATE * config.clips.seconds, MEL_BINS)


class _Trained:
    """One network of the codec, trained without a trainer."""

    def __init__(self, setup: Setup, module: CodecTraining, precision: str) -> None:
        self.setup, self.module = setup, module.to(setup.torch_device)
        self.optimiser, self.schedule = module.configure_optimizers()
        self.mixed = precision == "bf16-mixed"
        if setup.cuda:
            torch.cuda.reset_peak_memory_stats()

    def update(self, step: int, batch: Any) -> None:
        """One step on a batch that lies on the CPU, as a loader gives it."""
        moved = (
            tuple(x.to(self.setup.device) for x in batch)
            if isinstance(batch, tuple)
            else batch.to(self.setup.device)
        )
        with torch.autocast(self.setup.device, torch.bfloat16, enabled=self.mixed):
            loss, _ = self.module.training_step(step, moved)
        self.optimiser.zero_grad()
        loss.backward()
        self.module.clip()
        self.optimiser.step()
        self.schedule.step()
        if self.setup.cuda:
            torch.cuda.synchronize()

    def at(self, step: int, draw: Callable[[int], Any]) -> None:
        """One step of a training, on its own batch."""
        self.update(step, draw(step))

    def following(self, draw: Callable[[int], Any]) -> Callable[[], None]:
        """Steps from the first one on, one at each call."""
        steps = count()
        return lambda: self.at(next(steps), draw)
