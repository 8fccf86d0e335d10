"""Media of a stream from its latents, block by block, cut to the requested length.

Threads are the business of ``live.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from omniforcing.codec.streaming import StreamingDecoder
from omniforcing.core.latents import Latents
from omniforcing.core.pair import Media, Pair
from omniforcing.core.states import State, join_states, part_of
from omniforcing.streaming.state import StateError
from omniforcing.streaming.watermark.watermark import Watermark, watermark_of


@dataclass(frozen=True)
class DecodedBlock:
    """Media that a block completes.

    Attributes:
        frames: uint8 ``[T, H, W, 3]``.
        samples: float32 ``[2, N]``.
        first_frame: number of frames before these.
        first_sample: number of samples before these.
    """

    frames: np.ndarray
    samples: np.ndarray
    first_frame: int
    first_sample: int


class Decoding:
    """Decoder of one stream, with counts of the frames and samples so far.

    Args:
        decoder: fresh, or in its state after the previous block.
        limits: total frames and samples of the stream; None for no end.
        counts: frames and samples that were decoded before.
        watermark: is added to the sound; None for none.
    """

    def __init__(
        self,
        decoder: StreamingDecoder,
        limits: tuple[int, int] | None,
        counts: tuple[int, int] = (0, 0),
        watermark: Watermark | None = None,
    ) -> None:
        self._decoder, self._limits = decoder, limits
        self._marked = None if watermark is None else watermark.begin()
        self._frames, self._samples = counts
        self._before_the_end: State | None = None

    def push(self, latents: Latents, last: bool) -> DecodedBlock:
        """Decode the latents of the next block.

        Args:
            latents: video ``[1, Tv, S, Cv]``, audio ``[1, Ta, Ca]``.
            last: whether the stream ends here; also returns what waited for its look-ahead.
        """
        media = self._with_watermark(self._decoder.push(latents))
        frames, samples = self._frames, self._samples
        self._frames, self._samples = frames + media.video.shape[1], samples + media.audio.shape[2]
        if last:
            self._before_the_end = self.state()
            rest = self._with_watermark(self._decoder.flush(), last)
            media = Pair(
                torch.cat([media.video, rest.video], 1), torch.cat([media.audio, rest.audio], 2)
            )
        picture, waveform = media.video[0], media.audio[0]
        if self._limits is not None:
            picture, waveform = (
                picture[: self._limits[0] - frames],
                waveform[:, : self._limits[1] - samples],
            )
        return DecodedBlock(picture.cpu().numpy(), waveform.cpu().numpy(), frames, samples)

    def _with_watermark(self, media: Media, last: bool = False) -> Media:
        if self._marked is None:
            return media
        return Pair(media.video, self._marked.push(media.audio, last))

    def state(self) -> State:
        """Copy the state of decoder, watermark and counts.

        After the last block it is the state before the look-ahead was flushed, so that a stream
        can be saved at its end and go on.
        """
        if self._before_the_end is not None:
            return self._before_the_end
        # Absent without a watermark, so that such states are those of earlier versions.
        marked = {} if self._marked is None else {"watermark": self._marked.state()}
        return {
            **join_states(decoder=self._decoder.state(), **marked),
            "counts": torch.tensor([self._frames, self._samples]),
        }

    @classmethod
    def restore(
        cls,
        decoder: StreamingDecoder,
        limits: tuple[int, int] | None,
        state: State,
        watermark: Watermark | None = None,
    ) -> Decoding:
        """Go on from a state with a fresh decoder of the same codec.

        Raises:
            StateError: if the state was saved with another watermark, or one of both has none.
        """
        marked = part_of(state, "watermark")
        saved, own = watermark_of(marked), "" if watermark is None else watermark.sha256
        if saved != own:
            raise StateError(
                "streaming.other-watermark",
                f"the stream was saved with {_watermark(saved)}, and is to go on with "
                f"{_watermark(own)}; give --watermark as it was when the stream was saved",
            )
        frames, samples = state["counts"].tolist()
        decoder.restore(part_of(state, "decoder"))
        decoding = cls(decoder, limits, (frames, samples), watermark)
        if decoding._marked is not None:
            decoding._marked.restore(marked)
        return decoding


def _watermark(sha256: str) -> str:
    return f"the watermark {sha256[:12]}" if sha256 else "no watermark"
