"""The engine owns a stream: it rolls the student out block by block and decodes each block as soon as it is there."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from omniforcing.codec.codec import Codec
from omniforcing.codec.streaming import StreamingDecoder
from omniforcing.config import Stabiliser
from omniforcing.model.fast import FastStudent
from omniforcing.model.rollout import Rollout
from omniforcing.model.student import load_model
from omniforcing.seeding import step_generator
from omniforcing.stream.artifact import Artifact, ArtifactError
from omniforcing.stream.request import Request
from omniforcing.stream.speed import BlockTiming
from omniforcing.text.encoder import TextEncoder


@dataclass(frozen=True)
class Chunk:
    """What one block adds to the stream.

    Attributes:
        block: its index.
        frames: uint8 ``[T, H, W, 3]``; chunks follow each other without gap or overlap.
        samples: float32 ``[2, N]``; behind the picture by the codec's look-ahead, level with it at the end.
        first_frame: frames before this chunk.
        first_sample: samples before this chunk.
        timing: what it cost.
    """

    block: int
    frames: np.ndarray
    samples: np.ndarray
    first_frame: int
    first_sample: int
    timing: BlockTiming


class Engine:
    """A loaded artifact; ``stream`` may be called any number of times, and streams do not disturb each other.

    Raises:
        OmniForcingError: if a part of the artifact is missing, does not fit, or its codec cannot be streamed.
    """

    def __init__(self, artifact: Artifact | Path, device: str = "cpu") -> None:
        self.artifact = artifact if isinstance(artifact, Artifact) else Artifact.open(artifact)
        folder, self.settings = self.artifact.folder, self.artifact.settings
        self.device = device
        self._rollout = self.settings.rollout
        stabiliser = Stabiliser(self.settings.stabiliser)
        self._student = FastStudent(load_model(folder, self.settings.sinks, device, stabiliser=stabiliser))
        self._codec = Codec.load(folder / "codec", device=device)
        self._text = TextEncoder.load(folder / "text", device=device)
        self._refuse_misfit()

    def _refuse_misfit(self) -> None:
        """The parts came from one training, or they do not belong together."""
        settings, core = self.settings, self._student.core.config
        tokens, *channels = self._codec.latent_shape(settings.height, settings.width)
        rows, columns = settings.grid
        for what, found, needed in (
            ("the grid of streaming.json", rows * columns, tokens),
            ("the student's video channels", core.in_channels, channels[0]),
            ("the student's audio channels", core.audio_in_channels, channels[1]),
        ):
            if found != needed:
                place = self.artifact.folder
                raise ArtifactError(f"{what}: {found}, but its codec has {needed}; {place} mixes parts, export it again")

    def stream(self, prompt: str, seconds: float, seed: int = 0) -> Iterator[Chunk]:
        """Yield the stream block by block; the same prompt, length and seed give the same chunks.

        Raises:
            RequestError: at once, for an empty prompt, a length that is not positive and finite, or a bad seed.
        """
        return self._chunks(Request(prompt, seconds, seed))

    def _chunks(self, request: Request) -> Iterator[Chunk]:
        asked = time.perf_counter()
        rollout = self._start(request)
        decoder = StreamingDecoder(self._codec, self._rollout.grid)
        blocks = request.blocks(self._rollout.table)
        frames = samples = 0
        for block in blocks:
            began = time.perf_counter()
            latents = next(rollout)
            if latents.video.is_cuda:  # else only the launch would be timed
                torch.cuda.synchronize()
            generated = time.perf_counter()
            media = decoder.push(latents)
            sound = media.audio if block is not blocks[-1] else torch.cat([media.audio, decoder.flush()], 2)
            picture = media.video[0, : request.frames - frames].cpu().numpy()
            waveform = sound[0, :, : request.samples - samples].cpu().numpy()
            decoded = time.perf_counter()
            timing = BlockTiming(len(picture), generated - began, decoded - generated, decoded - asked)
            yield Chunk(block.index, picture, waveform, frames, samples, timing)
            frames, samples = frames + len(picture), samples + waveform.shape[1]

    def _start(self, request: Request) -> Rollout:
        generator = step_generator(request.seed, 0, "stream", self.device)
        return Rollout(self._student, self._text.encode([request.prompt]), self._rollout, generator)
