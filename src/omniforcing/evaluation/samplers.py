"""Samplers of clips from the folders of trained models, all on the same prompts and seeds."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from omniforcing.codec.codec import Codec
from omniforcing.core.latents import Latents, TextFeatures
from omniforcing.core.pair import Media, Pair
from omniforcing.data.config import ClipsConfig
from omniforcing.data.shards import decode_media, read_raw
from omniforcing.data.tars import require_kind, shard_form
from omniforcing.data.tensors import TextTable
from omniforcing.distill.config import SamplerConfig
from omniforcing.distill.sampling import WholeClip, rollout_config, sample_rollout
from omniforcing.evaluation.evaluate import Sampler
from omniforcing.media.mel import resample
from omniforcing.model.config import StudentConfig
from omniforcing.model.transformer import DualStream
from omniforcing.model.weights.student import load_model
from omniforcing.pocket.observe import Clips

# Models in the order of training; the causal ones make clips of any length.
CAUSAL = ("causal_ode", "self_forcing")
MODELS = ("teacher", "bidirectional_dmd", *CAUSAL)

LatentSampler = Callable[[TextFeatures, torch.Generator], Latents]


def split_clips(shards: Path, split: str, count: int) -> Clips:
    """Open the first ``count`` clips of a split of a shard folder; none if it lacks the split."""
    if not require_kind(shards, "shards")["clips"].get(split):
        return Clips([], lambda: iter(()))
    form = shard_form(shards)

    def read(chosen: Container[int] = range(count)) -> Iterator[Media]:
        stored = enumerate(islice(read_raw(shards, split), count))
        return (decode_media(form, path, raw) for index, (path, raw) in stored if index in chosen)

    captions = [raw["txt"].decode() for _, raw in islice(read_raw(shards, split), count)]
    return Clips(captions, read)


@dataclass(frozen=True)
class SamplerFactory:
    """Turn the folders of models into samplers of clips.

    Attributes:
        clips: size and length of the training clips.
        student: how the causal student rolls out, and its few steps.
        teacher_sampler: how the teacher samples.
        batch: clips sampled at a time.
        codec: codec that encodes and decodes the clips.
        text: text features of all captions.
        grid: rows and columns of video tokens.
        device: device to sample on.
    """

    clips: ClipsConfig
    student: StudentConfig
    teacher_sampler: SamplerConfig
    batch: int
    codec: Codec
    text: TextTable
    grid: tuple[int, int]
    device: str

    @classmethod
    def from_config(
        cls,
        clips: ClipsConfig,
        student: StudentConfig,
        teacher_sampler: SamplerConfig,
        batch: int,
        codec: Path,
        latents: Path,
        device: str,
    ) -> SamplerFactory:
        """Read the codec and the captions' features onto a device.

        Args:
            clips: size and length of the training clips.
            student: how the causal student rolls out, and its few steps.
            teacher_sampler: how the teacher samples.
            batch: clips sampled at a time.
            codec: folder of the codec.
            latents: folder of stage ``latents``, which holds the features.
            device: device to sample on.

        Raises:
            OmniForcingError: if one of them is missing or unreadable.
        """
        loaded = Codec.load(codec, device=device)
        grid = loaded.token_grid(clips.height, clips.width)
        text = TextTable.load(latents)
        return cls(clips, student, teacher_sampler, batch, loaded, text, grid, device)

    def reconstruct(self, clip: Media) -> Media:
        """Encode and decode one clip."""
        batch = clip.map(lambda x: torch.as_tensor(x)[None])
        return next(self.decoded(self.codec.encode(batch)))

    def sampler(self, name: str, folder: Path, seconds: int) -> Sampler:
        """Make a sampler of clips.

        The model is loaded when clips are drawn and freed after the last, so that only one model is
        in memory at a time.

        Args:
            name: one of ``MODELS``.
            folder: folder of its weights.
            seconds: length of the clips.
        """

        def sample(captions: list[str], seeds: list[int]) -> Iterator[Media]:
            return self.media(self.draw(name, folder, seconds), captions, seeds)

        return sample

    def media(self, draw: LatentSampler, captions: list[str], seeds: list[int]) -> Iterator[Media]:
        """Sample and decode one clip per caption, in batches.

        Args:
            draw: sampler of latents.
            captions: captions whose text features are stored.
            seeds: a seed for each; the first of a batch gives the noise of the whole batch.
        """
        for start in range(0, len(captions), self.batch):
            features = self.text.of(captions[start : start + self.batch])
            text = features.map(lambda x: x.to(self.device))
            generator = torch.Generator(self.device).manual_seed(seeds[start])
            yield from self.decoded(draw(text, generator))

    def draw(self, name: str, folder: Path, seconds: int) -> LatentSampler:
        """Load a model and make its sampler of latents; arguments as of ``sampler``."""
        student, causal = self.student, name in CAUSAL
        # Sinks and stabiliser come with Stage II; the models before it have none.
        added: dict[str, Any] = {"sinks": 0}
        if causal:
            added = {"sinks": student.sinks, "stabiliser": student.stabiliser}
        model = load_model(folder, device=self.device, **added).eval()
        return self.bind(name, model, seconds)

    def bind(self, name: str, model: DualStream, seconds: int) -> LatentSampler:
        """Make the sampler of latents of a model.

        Args:
            name: one of ``MODELS``, which says how it is sampled.
            model: the model.
            seconds: length of the clips; only causal models make other than the trained length.
        """
        counts = self.clips.latent_counts
        if name in CAUSAL:
            rollout = rollout_config(self.student, counts, self.grid)
            blocks = self.student.table.blocks_for_seconds(seconds)
            return lambda text, generator: sample_rollout(model, text, rollout, blocks, generator)
        clip = WholeClip(model, counts, self.grid)
        if name == "teacher":
            unconditional = self.text.unconditional.map(lambda x: x.to(self.device))
            return lambda text, generator: clip.sample_guided(
                text, unconditional, self.teacher_sampler, generator
            )
        return lambda text, generator: clip.sample_few_step(text, self.student.sigmas, generator)

    def decoded(self, latents: Latents) -> Iterator[Media]:
        """Decode a batch of latents; yields each clip as arrays, its sound at 16 kHz."""
        media = self.codec.decode(latents, self.grid).map(torch.Tensor.cpu)
        media = Pair(media.video, resample(media.audio, self.codec.sample_rate))
        for video, audio in zip(*media, strict=True):
            yield Pair(video.numpy(), audio.numpy())
