"""Media from a stream's latents, block by block, cut to the length that was asked for. No threads here."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from omniforcing.codec.streaming import StreamingDecoder
from omniforcing.core.latents import Latents, Pair
from omniforcing.core.states import State, joined, part_of


@dataclass(frozen=True)
class Part:
    """A block's media: frames uint8 ``[T, H, W, 3]`` and samples float32 ``[2, N]``, and how many of each came before."""

    frames: np.ndarray
    samples: np.ndarray
    first_frame: int
    first_sample: int


class Decoding:
    """One stream's decoder and its counts.

    Args:
        decoder: a fresh one, or one in the state of the block before.
        limits: frames and samples after which the stream ends; None without end.
        counts: frames and samples that were decoded before.
    """

    def __init__(
        self,
        decoder: StreamingDecoder,
        limits: tuple[int, int] | None,
        counts: tuple[int, int] = (0, 0),
    ) -> None:
        self._decoder, self._limits = decoder, limits
        self._frames, self._samples = counts
        self._before_the_end: State | None = None

    def push(self, latents: Latents, last: bool) -> Part:
        """Decode the next block's latents; the ``last`` block brings what was held back."""
        media = self._decoder.push(latents)
        frames, samples = self._frames, self._samples
        self._frames, self._samples = frames + media.video.shape[1], samples + media.audio.shape[2]
        if last:
            self._before_the_end = self.state()
            rest = self._decoder.flush()
            media = Pair(
                torch.cat([media.video, rest.video], 1), torch.cat([media.audio, rest.audio], 2)
            )
        picture, waveform = media.video[0], media.audio[0]
        if self._limits is not None:
            picture, waveform = (
                picture[: self._limits[0] - frames],
                waveform[:, : self._limits[1] - samples],
            )
        return Part(picture.cpu().numpy(), waveform.cpu().numpy(), frames, samples)

    def state(self) -> State:
        """A copy of decoder and counts; after the last block, as if more were to come."""
        if self._before_the_end is not None:
            return self._before_the_end
        return {
            **joined(decoder=self._decoder.state()),
            "counts": torch.tensor([self._frames, self._samples]),
        }

    @classmethod
    def restore(
        cls, decoder: StreamingDecoder, limits: tuple[int, int] | None, state: State
    ) -> Decoding:
        """Go on from a state, with a fresh decoder of the same codec."""
        frames, samples = state["counts"].tolist()
        decoder.restore(part_of(state, "decoder"))
        return cls(decoder, limits, (frames, samples))
