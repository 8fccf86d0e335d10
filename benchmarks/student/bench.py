"""A student on a device: streams it block by block and takes the time and memory of every block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice

import numpy as np
import torch

from benchmarks.student.cases import Case
from benchmarks.student.plain import PlainStudent
from benchmarks.timing import Clock, peak_bytes, seconds_of
from omniforcing.codec.codec import Codec
from omniforcing.codec.streaming import StreamingDecoder
from omniforcing.core.latents import Latents, TextFeatures
from omniforcing.core.pair import Pair
from omniforcing.model.inference.fast import accelerate
from omniforcing.model.options import InferenceOptions
from omniforcing.model.rollout import Rollout, gaussian
from omniforcing.model.transformer import DualStream

CLIP_BLOCKS = 5  # merged layout: 16 video latents


class TimedRollout(Rollout):
    """A rollout that records the seconds of its cache refresh; 0 if the first step includes it."""

    def __next__(self) -> Latents:
        self.refresh_seconds = 0.0
        return super().__next__()

    def settle(self) -> None:
        clock = Clock(self.model.sinks.device)
        super().settle()
        self.refresh_seconds = clock.elapsed()


@dataclass(frozen=True)
class BlockCost:
    """Time and memory of one block.

    Attributes:
        steps: seconds of the denoising steps.
        refresh: seconds of writing the previous block's clean keys and values into the cache.
        decode: seconds of decoding; 0 for a case without a codec.
        elapsed: seconds from the start of the stream until the block is there.
        frames: video frames of the block.
        memory: bytes; the allocator's peak on a GPU, the process's memory on a CPU.
    """

    steps: float
    refresh: float
    decode: float
    elapsed: float
    frames: int
    memory: int

    @property
    def generate(self) -> float:
        """Seconds of the latents."""
        return self.steps + self.refresh

    @property
    def total(self) -> float:
        """Seconds of the whole block."""
        return self.generate + self.decode


@dataclass(frozen=True)
class StreamCost:
    """Costs of a stream's blocks.

    Attributes:
        blocks: all of them.
        first: index of the first block in steady state.
    """

    blocks: list[BlockCost]
    first: int

    @property
    def steady(self) -> list[BlockCost]:
        """Blocks in steady state; the last one alone if the stream ends before."""
        return self.blocks[self.first :] or self.blocks[-1:]

    @property
    def fps(self) -> float:
        """Frames per second of work, in steady state."""
        frames = sum(block.frames for block in self.steady)
        return frames / sum(block.total for block in self.steady)

    @property
    def ttfc(self) -> float:
        """Seconds until block 1 is there: block 0 is a single frame, which does not move."""
        return self.blocks[min(1, len(self.blocks) - 1)].elapsed

    def percentile(self, percent: float) -> float:
        """Return a percentile of the seconds of a block in steady state."""
        return _percentile(self.steady, percent)

    def median(self, name: str) -> float:
        """Return the median of a field of ``BlockCost`` in steady state."""
        return float(np.median([getattr(block, name) for block in self.steady]))

    @property
    def flatness(self) -> float:
        """p95 of the last ten blocks over p95 of the first eleven in steady state."""
        return _percentile(self.blocks[-10:], 95) / _percentile(self.steady[:11], 95)


def _percentile(blocks: list[BlockCost], percent: float) -> float:
    return float(np.percentile([block.total for block in blocks], percent))


@dataclass(frozen=True)
class StudentBench:
    """A case on a device.

    Attributes:
        case: what is streamed.
        model: the student with random weights.
        device: where it runs.
        options: speed-ups of the measured stream.
        release: give up the weights that fast layers copy. Saves memory, but the model then
            streams with ``options`` alone.
    """

    case: Case
    model: DualStream
    device: torch.device
    options: InferenceOptions
    release: bool = False

    @cached_property
    def student(self) -> DualStream:
        """The model with its speed-ups."""
        return accelerate(self.model, self.options, self.release)

    @property
    def first(self) -> int:
        """Index of the first block in steady state.

        From there on the window is full. With CUDA graphs, each slot of the ring was recorded too.
        """
        rollout = self.case.rollout
        recorded = self.options.compiled and self.device.type == "cuda"
        recording = 2 * rollout.table.ring(rollout.window) if recorded else 0
        return rollout.window + 1 + recording

    def prompt(self) -> TextFeatures:
        """Draw text features ``[1, L, D]``, the same in every run."""
        generator = torch.Generator(self.device).manual_seed(1)
        shape = (1, self.case.text_tokens, self.case.core["caption_channels"])
        video = torch.randn(shape, generator=generator, device=self.device)
        audio = torch.randn(shape, generator=generator, device=self.device)
        return Pair(video, audio).map(lambda features: features.to(self.case.dtype))

    def noise(self) -> torch.Generator:
        """Seed the source of a stream's noise, the same in every run."""
        return torch.Generator(self.device).manual_seed(2)

    def rollout(self) -> TimedRollout:
        """Start the measured stream's latents."""
        return TimedRollout(
            self.student, self.prompt(), self.case.rollout, self.noise(), self.options
        )

    def warm_up(self) -> None:
        """Stream into steady state: compilation and handles are paid for once per process."""
        for _ in islice(self.rollout(), self.first + 3):
            pass

    def stream(self, count: int) -> StreamCost:
        """Stream ``count`` blocks, decoded where the case has a codec.

        The clock starts with the prompt's features: keys and values of the text are in.
        """
        decoder = self._decoder()
        clock = Clock(self.student.sinks.device)  # builds the student first
        rollout = self.rollout()
        blocks = []
        for index in range(count):
            start = clock.elapsed()
            latents = next(rollout)
            generated = clock.elapsed()
            if decoder is not None:
                decoder.push(latents)
            end = clock.elapsed()
            cost = BlockCost(
                steps=generated - start - rollout.refresh_seconds,
                refresh=rollout.refresh_seconds,
                decode=end - generated,
                elapsed=end,
                frames=len(self.case.rollout.table.block(index).frames),
                memory=peak_bytes(self.device),
            )
            blocks.append(cost)
        return StreamCost(blocks, self.first)

    def _decoder(self) -> StreamingDecoder | None:
        if self.case.codec is None:
            return None
        codec = Codec.load(self.case.codec, device=self.device)
        return StreamingDecoder(codec, self.case.rollout.grid)

    def block_seconds(self, options: InferenceOptions) -> Iterator[float]:
        """Stream with other speed-ups; yield the seconds of each block from ``first`` on."""
        fast = accelerate(self.model, options)
        rollout = Rollout(fast, self.prompt(), self.case.rollout, self.noise(), options)
        for _ in range(self.first):
            next(rollout)
        while True:
            yield seconds_of(partial(next, rollout), self.device)

    def clip(self, options: InferenceOptions, model: DualStream) -> list[Latents]:
        """Generate the blocks of the clip on which alternatives are compared."""
        rollout = Rollout(model, self.prompt(), self.case.rollout, self.noise(), options)
        return list(islice(rollout, CLIP_BLOCKS))

    def plain_clip(self) -> list[Latents]:
        """Generate the same clip with the forward of public code."""
        plain = PlainStudent(self.model, self.case.rollout)
        return plain.stream(self.prompt(), self.noise(), CLIP_BLOCKS)

    @torch.no_grad()
    def bidirectional_clip(self) -> None:
        """Denoise the whole clip at once with diffusers' own forward, in as many steps."""
        core, rollout = self.model.core, self.case.rollout
        counts, text = rollout.table.total(CLIP_BLOCKS), self.prompt()
        noise = gaussian(self.model, counts, rollout.grid, 1, self.noise())
        x = noise.map(lambda latents: latents.to(self.case.dtype))
        for sigma in rollout.sigmas:
            core(
                hidden_states=x.video.flatten(1, 2),
                audio_hidden_states=x.audio,
                encoder_hidden_states=text.video,
                audio_encoder_hidden_states=text.audio,
                timestep=torch.full((1,), sigma * 1000, device=self.device),
                num_frames=counts.video,
                height=rollout.grid[0],
                width=rollout.grid[1],
                audio_num_frames=counts.audio,
                use_cross_timestep=False,
                return_dict=False,
            )
