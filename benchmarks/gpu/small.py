"""Preset small, the pocket world at 128 px from scratch: each training stage for a minute.

Data are random, of the preset's shapes: nothing here says how good a model becomes. Figures:
`updates_per_s`, `hours` of a whole training of `steps`, `measured_updates`, `peak_gb` of memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.rows import Figures, Measurement
from benchmarks.gpu.settings import PartSettings
from benchmarks.gpu.training import Updates, random_batch
from benchmarks.presets import load_preset
from benchmarks.timing import Clock
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
SHARE = 0.65  # of the time that is left: the rest builds the networks
WARM_UP = 2  # updates


def measurements(settings: PartSettings) -> list[Measurement]:
    """List a row per training stage; the codec's three networks have one each."""
    rows: list[tuple[str, partial[Figures]]] = []
    for name in STAGES:
        rows.append((name, partial(train_stage, settings, name)))
    rows.append(("codec, video VAE", partial(train_video_vae, settings)))
    rows.append(("codec, audio VAE", partial(train_audio_vae, settings)))
    rows.append(("codec, vocoder", partial(train_vocoder, settings)))

    def timed(place: int, train: partial[Figures]) -> Callable[[], Figures]:
        # The share is taken when the row begins, of what the rows before have left.
        return lambda: train(seconds=_seconds_each(settings, len(rows) - place))

    does = "train it for up to a minute"
    return [
        Measurement(name, timed(place, train), does) for place, (name, train) in enumerate(rows)
    ]


def _seconds_each(settings: PartSettings, rows: int) -> float:
    """Return the seconds to train for: a minute, or an equal share of the time that is left."""
    return 1.0 if settings.small else min(MINUTE, max(2.0, SHARE * settings.left / rows))


def _preset(settings: PartSettings) -> Config:
    return load_preset("smoke" if settings.small else "small")


def train_stage(settings: PartSettings, name: str, seconds: float) -> Figures:
    """Train the teacher or a stage of the student at the preset's batch size."""
    config = _preset(settings)
    sizes = replace(Sizes.from_config(config, project_root()), device=settings.device)
    optim = getattr(config, name).optim
    module = BUILDERS[name](config, sizes, torch.float32)
    updates = Updates(settings, config, module, random_batch(config, sizes, name, optim.batch))
    updates.run(WARM_UP)
    measured, each = time_updates(settings, lambda: updates.run(1), seconds)
    return training_figures(settings, each, optim.steps, measured)


def time_updates(
    settings: PartSettings, update: Callable[[], object], seconds: float
) -> tuple[int, float]:
    """Run updates for some seconds, at least two; return their number and the seconds of each."""
    clock, updates = Clock(settings.torch_device), 0
    while updates < 2 or clock.elapsed() < seconds:
        update()
        updates += 1
    return updates, clock.elapsed() / updates


def training_figures(settings: PartSettings, each: float, steps: int, measured: int) -> Figures:
    """Return a row's figures.

    Args:
        settings: of the part.
        each: seconds of an update.
        steps: of a whole training.
        measured: number of updates that were timed.
    """
    figures: Figures = {
        "updates_per_s": 1 / each,
        "hours": steps * each / 3600,
        "steps": steps,
        "measured_updates": measured,
    }
    if settings.cuda:
        figures["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return figures


def train_video_vae(settings: PartSettings, seconds: float) -> Figures:
    """Train the video VAE over its curriculum of crops; each counts by its share of the steps."""
    config = _preset(settings)
    video = config.codec.video
    shape = (4, config.clips.frames, config.clips.height, config.clips.width, 3)
    frames = torch.randint(256, shape, dtype=torch.uint8)
    draw = training.video_crops(frames, video, config.seed)
    module = VideoVaeTraining(build_video_vae(video), video, config.seed)
    network = CodecUpdates(settings, module)
    shares = each = 0.0
    updates = 0
    for crop in video.crops:
        middle = int((shares + crop.share / 2) * video.steps)  # a step within the crop's share
        shares += crop.share
        repeat = partial(network.update_at, middle, draw)
        measured, crop_each = time_updates(settings, repeat, seconds / len(video.crops))
        each += crop.share * crop_each
        updates += measured
    return training_figures(settings, each / shares, video.steps, updates)


def train_audio_vae(settings: PartSettings, seconds: float) -> Figures:
    """Train the audio VAE on random log-mels."""
    config = _preset(settings)
    audio = config.codec.audio
    draw = training.mel_crops(_random_mels(config), audio, config.seed)
    module = AudioVaeTraining(build_audio_vae(audio), audio, config.seed)
    network = CodecUpdates(settings, module)
    measured, each = time_updates(settings, network.following(draw), seconds)
    return training_figures(settings, each, audio.steps, measured)


def train_vocoder(settings: PartSettings, seconds: float) -> Figures:
    """Train the vocoder on random log-mels and samples."""
    config = _preset(settings)
    vocoder, mels = config.codec.vocoder, _random_mels(config)
    samples = torch.rand(len(mels), 2, HOP * mels.shape[2]) - 0.5
    draw = training.sound_crops(mels, mels, samples, vocoder, config.seed)
    module = VocoderTraining(build_vocoder(vocoder), vocoder, config.seed)
    network = CodecUpdates(settings, module)
    measured, each = time_updates(settings, network.following(draw), seconds)
    return training_figures(settings, each, vocoder.steps, measured)


def _random_mels(config: Config) -> Tensor:
    """Draw log-mels of 16 stereo clips ``[16, 2, T, bins]``."""
    return torch.randn(16, 2, 1 + MEL_RATE * config.clips.seconds, MEL_BINS)


class CodecUpdates:
    """Trains one network of the codec without a trainer."""

    def __init__(self, settings: PartSettings, module: CodecTraining) -> None:
        self.device, self.module = settings.device, module.to(settings.torch_device)
        self.optimiser, self.schedule = module.configure_optimizers()
        self.mixed = training.PRECISION == "bf16-mixed"
        if settings.cuda:
            torch.cuda.reset_peak_memory_stats()

    def update_at(self, step: int, draw: Callable[[int], Any]) -> None:
        """Run one training step on its own batch, drawn on the CPU as a loader does."""
        batch = draw(step)
        if isinstance(batch, tuple):
            batch = tuple(tensor.to(self.device) for tensor in batch)
        else:
            batch = batch.to(self.device)
        with torch.autocast(self.device, torch.bfloat16, enabled=self.mixed):
            loss, _ = self.module.training_step(step, batch)
        self.optimiser.zero_grad()
        loss.backward()
        self.module.clip()
        self.optimiser.step()
        self.schedule.step()

    def following(self, draw: Callable[[int], Any]) -> Callable[[], None]:
        """Return a function that runs the next step at each call, from step 0 on."""
        steps = count()
        return lambda: self.update_at(next(steps), draw)
