"""Encoders by TorchScript file, for networks that no installed package has.

Files are opened as ``model.weights.program`` says: only by the sha256 that the user names.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from omniforcing.core.errors import OmniForcingError
from omniforcing.core.layout import FPS
from omniforcing.evaluation.measures.clips import Clip
from omniforcing.evaluation.measures.encoders.models import evenly, pictures, unit
from omniforcing.evaluation.measures.encoders.weights import Unusable, Weights
from omniforcing.model.weights.program import calling, open_program

SIDE = 224
I3D_FRAMES = 24
HALF = ([0.5] * 3, [0.5] * 3)  # maps 0 to 1 onto -1 to 1
# Synchformer: 14 segments of 16 frames at 25 fps, 8 apart, with 10,240 samples, 5,120 apart.
SYNC_FPS, SEGMENTS = 25, 14
SEGMENT_FRAMES, STEP_FRAMES, SEGMENT_SAMPLES, STEP_SAMPLES = 16, 8, 10240, 5120
OFFSETS = np.linspace(-2, 2, 21)  # seconds
SYNC_SECONDS = 4.8


class Program:
    """A TorchScript file that was named with its sha256."""

    name: str

    def __init__(self, weights: Weights) -> None:
        entry, self.device = weights.entry(self.name), weights.device
        try:
            self.module = open_program(entry.path, entry.sha256, self.device)
            with calling(entry.path, "what docs/how-to/measure.md says of it"):
                self.check()
        except OmniForcingError as error:
            raise Unusable(error.message) from error

    def check(self) -> None:
        """Call the program once, and raise if it does not give what it should."""
        raise NotImplementedError


class I3dProgram(Program):
    """``module(video, rescale=False, resize=False, return_features=True)`` -> ``[1, 400]``.

    ``video`` is ``[1, 3, T, 224, 224]`` in -1 to 1.
    """

    name = "i3d"

    def check(self) -> None:
        found = self._call(torch.zeros(1, 3, I3D_FRAMES, SIDE, SIDE))
        if found.ndim != 2 or len(found) != 1:
            raise ValueError(f"gave {list(found.shape)}, not [1, features]")

    @torch.no_grad()
    def features(self, clip: Clip) -> NDArray[Any]:
        """Features of a clip ``[D]``."""
        frames = clip.media.video[evenly(len(clip.media.video), I3D_FRAMES)]
        pixels = pictures(frames, SIDE, *HALF).transpose(0, 1)[None]
        array: NDArray[Any] = self._call(pixels)[0].float().cpu().numpy()
        return array

    @torch.no_grad()
    def _call(self, video: Tensor) -> Tensor:
        found = self.module(
            video.to(self.device), rescale=False, resize=False, return_features=True
        )
        return torch.as_tensor(found)


class SynchformerProgram(Program):
    """``module(video, sound)`` -> ``[1, 21]``, a score of each offset from -2 to 2 s.

    ``video`` is ``[1, 14, 16, 3, 224, 224]`` in -1 to 1 at 25 fps, ``sound`` ``[1, 14, 10240]`` at
    16 kHz; the program makes the mel spectrogram.
    """

    name = "synchformer"

    def check(self) -> None:
        video = torch.zeros(1, SEGMENTS, SEGMENT_FRAMES, 3, SIDE, SIDE)
        self._call(video, torch.zeros(1, SEGMENTS, SEGMENT_SAMPLES))

    @torch.no_grad()
    def offset(self, clip: Clip, start: float) -> float:
        """Offset of 4.8 s of a clip from ``start`` on, in seconds."""
        times = start + (np.arange(round(SYNC_SECONDS * SYNC_FPS)) + 0.5) / SYNC_FPS
        places = np.minimum((times * FPS).astype(int), len(clip.media.video) - 1)
        frames = pictures(clip.media.video[places], SIDE, *HALF)
        first = round(start * 16000)
        sound = torch.as_tensor(clip.media.audio).float().mean(0)[first:]
        video = frames.unfold(0, SEGMENT_FRAMES, STEP_FRAMES).movedim(-1, 1)[None, :SEGMENTS]
        pieces = sound.unfold(0, SEGMENT_SAMPLES, STEP_SAMPLES)[None, :SEGMENTS]
        return float(OFFSETS[int(self._call(video, pieces)[0].argmax())])

    @torch.no_grad()
    def _call(self, video: Tensor, sound: Tensor) -> Tensor:
        found = torch.as_tensor(self.module(video.to(self.device), sound.to(self.device)))
        if list(found.shape) != [1, len(OFFSETS)]:
            raise ValueError(f"gave {list(found.shape)}, not [1, {len(OFFSETS)}]")
        return found


class FlowProgram(Program):
    """``module(first, second)`` -> optical flow ``[N, 2, H, W]`` in pixels, such as RAFT's.

    ``first`` and ``second`` are frames ``[N, 3, H, W]`` in 0 to 255; H and W are multiples of 8.
    """

    name = "raft"

    def check(self) -> None:
        self._call(*torch.zeros(2, 1, 3, 128, 128))

    @torch.no_grad()
    def flow(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Flow between frames ``[T, H, W, 3]`` that follow each other, ``[T - 1, 2, H, W]``.

        Sides are cut to multiples of 8, and doubled until they are 128, the least that RAFT takes.
        """
        height, width = (side // 8 * 8 for side in frames.shape[1:3])
        pixels = torch.as_tensor(frames[:, :height, :width]).movedim(-1, 1).float()
        times = max(1, -(-128 // min(height, width)))
        if times > 1:
            pixels = nn.functional.interpolate(pixels, scale_factor=times, mode="bilinear")
        pairs = zip(pixels[:-1].split(1), pixels[1:].split(1), strict=True)
        flows = torch.cat([self._call(first, second) for first, second in pairs]) / times
        array: NDArray[np.float32] = flows.float().cpu().numpy()
        return array

    @torch.no_grad()
    def _call(self, first: Tensor, second: Tensor) -> Tensor:
        found = torch.as_tensor(self.module(first.to(self.device), second.to(self.device)))
        if found.shape != (len(first), 2, *first.shape[2:]):
            raise ValueError(f"gave {list(found.shape)}, not [1, 2, H, W]")
        return found


class PairProgram(Program):
    """A pair encoder, such as ImageBind: methods ``frames`` and ``sound`` into one space.

    ``module.frames([N, 3, 224, 224])`` in 0 to 1 -> ``[N, D]``;
    ``module.sound([N, samples])`` at 16 kHz -> ``[N, D]``.
    """

    name = "pair"

    def check(self) -> None:
        frames = torch.as_tensor(self.module.frames(torch.zeros(2, 3, SIDE, SIDE)))
        sound = torch.as_tensor(self.module.sound(torch.zeros(2, 32000)))
        if frames.ndim != 2 or frames.shape != sound.shape:
            raise ValueError(f"gave {list(frames.shape)} and {list(sound.shape)}, not both [2, D]")

    @torch.no_grad()
    def frames(self, clip: Clip) -> NDArray[np.float32]:
        """Embed all frames of a clip ``[T, D]``, each of length 1."""
        if "pair" not in clip.embedded:
            parts = []
            for first in range(0, len(clip.media.video), 16):
                part = clip.media.video[first : first + 16]
                pixels = pictures(part, SIDE, [0.0] * 3, [1.0] * 3)
                parts.append(self.module.frames(pixels.to(self.device)))
            clip.embedded["pair"] = unit(torch.cat(parts))
        return clip.embedded["pair"]

    @torch.no_grad()
    def sound(self, pieces: NDArray[Any]) -> NDArray[np.float32]:
        """Embed sounds ``[N, samples]``, each of length 1."""
        return unit(self.module.sound(torch.as_tensor(pieces).float().to(self.device)))
