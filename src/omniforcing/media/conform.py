"""From any video file to clips of one form: 24 fps, one size, K seconds, 16 kHz stereo, picture and sound on one clock."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omniforcing.core.latents import Pair
from omniforcing.core.layout import FPS, SAMPLE_RATE, clip_frames, clip_samples
from omniforcing.media.files import (
    FrameReader,
    Frames,
    MediaInfo,
    PathOrBytes,
    Rejected,
    Samples,
    Times,
    probe,
    read_audio,
)

LOOK_AHEAD = 0.5 / FPS  # a source frame may be shown this much before its time, but no more
SOUND_SLACK = (
    1 / FPS
)  # sound may begin later or end earlier than the picture by this, and is padded with silence
MAX_ENLARGE = 2.0
BATCH_BYTES = 64 << 20  # of source frames decoded at a time
EPSILON = 1e-6


@dataclass(frozen=True)
class ClipFormat:
    """What every clip becomes: height and width in pixels, whole seconds K."""

    height: int
    width: int
    seconds: int


class ClipCutter:
    """A source file opened for cutting: clip ``i`` starts at ``start(i)``, and its last frame is the first of clip ``i + 1``.

    Raises:
        Rejected: if the file cannot be used at all: what ``probe`` refuses, too short, too small.
    """

    def __init__(self, source: PathOrBytes, form: ClipFormat) -> None:
        self.form, self._source = form, source
        self.info: MediaInfo = probe(source)
        self._crop = crop_box(self.info, form)
        self._origin = max(self.info.times[0], self.info.audio_start - SOUND_SLACK)
        end = min(self.info.video_end + LOOK_AHEAD, self.info.audio_end + SOUND_SLACK)
        self.cuts = int((end - self._origin + EPSILON) // form.seconds)
        if self.cuts < 1:
            raise Rejected(
                "media.too-short",
                f"picture and sound share {end - self._origin:.2f} s, a clip lasts {form.seconds} s",
            )

    def start(self, cut: int) -> float:
        """Seconds from the file's time zero to the first frame of a cut."""
        return float(self._origin + cut * self.form.seconds)

    def clip(self, cut: int) -> Pair[Any]:
        """Cut ``cut``, conformed: frames uint8 [1+24K, H, W, 3] and samples float32 [2, 16000K].

        Raises:
            Rejected: if frames or sound cannot be decoded.
        """
        return Pair(self._frames(self.start(cut)), self._samples(cut))

    @cached_property
    def _reader(self) -> FrameReader:
        return FrameReader(self._source, len(self.info.times))

    @cached_property
    def _sound(self) -> Samples:
        samples, rate = read_audio(self._source, self._origin)
        if rate == SAMPLE_RATE:
            return samples
        import torch

        from omniforcing.media.mel import resample

        result: Samples = resample(torch.from_numpy(samples), rate).numpy()
        return result

    def _frames(self, start: float) -> Frames:
        wanted = start + np.arange(clip_frames(self.form.seconds)) / FPS
        needed, place = np.unique(pick_frames(self.info.times, wanted), return_inverse=True)
        batch = max(1, BATCH_BYTES // (self.info.height * self.info.width * 3))
        parts = [
            resize(self._reader[needed[i : i + batch]], self._crop, self.form)
            for i in range(0, len(needed), batch)
        ]
        return np.concatenate(parts)[place]

    def _samples(self, cut: int) -> Samples:
        count = clip_samples(self.form.seconds)
        part = self._sound[:, cut * count : (cut + 1) * count]
        missing = count - part.shape[1]
        # The header may promise sound that the packets do not hold.
        if missing > SOUND_SLACK * SAMPLE_RATE + 1:
            raise Rejected(
                "media.undecodable-sound", f"{missing / SAMPLE_RATE:.2f} s of the sound are missing"
            )
        return np.pad(part, ((0, 0), (0, missing)))


def pick_frames(times: Times, wanted: Times) -> NDArray[np.int64]:
    """For each wanted time the source frame to show: the nearest, but none that is more than half an output frame early.

    So rates above 24 fps are sampled without a mean delay, and a frame that a slow or variable rate holds is held, not left
    early. ``times`` [T] ascending and ``wanted`` [n] in seconds; int64 [n].
    """
    after = np.searchsorted(times, wanted + EPSILON, side="right")
    before = np.maximum(after - 1, 0)
    after = np.minimum(after, len(times) - 1)
    early, late = times[after] - wanted, wanted - times[before]
    return np.where((early < late) & (early <= LOOK_AHEAD + EPSILON), after, before)


def crop_box(info: MediaInfo, form: ClipFormat) -> tuple[int, int, int, int]:
    """The largest centred box of the form's shape as seen (pixels need not be square): top, left, height, width.

    Raises:
        Rejected: too small, if the box would have to be enlarged more than twice.
    """
    aspect = form.width / form.height / info.aspect
    height = min(info.height, round(info.width / aspect))
    width = min(info.width, round(info.height * aspect))
    if height * MAX_ENLARGE < form.height or width * MAX_ENLARGE < form.width:
        found = f"{info.width}x{info.height} would be enlarged more than {MAX_ENLARGE:g} times"
        raise Rejected("media.too-small", f"{found} to fill {form.width}x{form.height}")
    return (info.height - height) // 2, (info.width - width) // 2, height, width


def resize(frames: Frames, box: tuple[int, int, int, int], form: ClipFormat) -> Frames:
    """Crop frames uint8 [T, h, w, 3] to a box and bring it to the form's size, antialiased."""
    import torch
    from torch.nn.functional import interpolate

    top, left, height, width = box
    frames = frames[:, top : top + height, left : left + width]
    if (height, width) == (form.height, form.width):
        return frames
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2)
    small = interpolate(
        pixels, (form.height, form.width), mode="bilinear", antialias=True, align_corners=False
    )
    result: Frames = small.permute(0, 2, 3, 1).contiguous().numpy()
    return result
