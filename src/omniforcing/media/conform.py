"""Conform any video file: cut it into clips of one format.

A clip has 24 fps, one picture size, K whole seconds and 16 kHz stereo, with picture and sound on
one clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from omniforcing.core.latents import Media, Pair
from omniforcing.core.layout import FPS, SAMPLE_RATE, clip_frames, clip_samples
from omniforcing.media.files import FrameReader, Frames, Samples, read_audio
from omniforcing.media.probe import MediaInfo, PathOrBytes, Rejected, Times, probe

LOOK_AHEAD = 0.5 / FPS  # seconds by which a source frame may be shown before its time
# Seconds by which sound may begin after the picture or end before it; silence fills them.
SOUND_SLACK = 1 / FPS
MAX_ENLARGE = 2.0
BATCH_BYTES = 64 << 20  # source frames decoded at a time
EPSILON = 1e-6  # seconds: time stamps are rounded to a file's clock


@dataclass(frozen=True)
class ClipFormat:
    """Format of a conformed clip: height and width in pixels, length in whole seconds."""

    height: int
    width: int
    seconds: int


class ClipCutter:
    """Cut a video file into clips of one format.

    Clip ``i`` starts at ``start(i)``; its last frame is the first frame of clip ``i + 1``.

    Args:
        source: path or content of the file.
        form: format of the clips.

    Attributes:
        info: properties of the file.
        cuts: clips that it holds.

    Raises:
        Rejected: if ``probe`` rejects the file, or it is too short or too small.
    """

    def __init__(self, source: PathOrBytes, form: ClipFormat) -> None:
        self.form, self._source = form, source
        self.info: MediaInfo = probe(source)
        self._crop = crop_box(self.info, form)
        # The first clip starts where both streams have begun, and the last ends before either ends:
        # the picture may be held for half an output frame, the sound padded for a whole one.
        self._origin = max(self.info.times[0], self.info.audio_start - SOUND_SLACK)
        end = min(self.info.video_end + LOOK_AHEAD, self.info.audio_end + SOUND_SLACK)
        self.cuts = int((end - self._origin + EPSILON) // form.seconds)
        if self.cuts < 1:
            raise Rejected(
                "media.too-short",
                f"picture and sound share {end - self._origin:.2f} s, "
                f"a clip lasts {form.seconds} s",
            )

    def start(self, cut: int) -> float:
        """Return the time of the first frame of a cut, in seconds on the file's clock."""
        return float(self._origin + cut * self.form.seconds)

    def clip(self, cut: int) -> Media:
        """Decode and conform one clip.

        Args:
            cut: its index, below ``cuts``.

        Returns:
            Frames uint8 ``[1+24K, H, W, 3]`` and samples float32 ``[2, 16000K]``.

        Raises:
            Rejected: if frames or sound cannot be decoded.
        """
        return Pair(self._frames(self.start(cut)), self._samples(cut))

    @cached_property
    def _reader(self) -> FrameReader:
        return FrameReader(self._source, len(self.info.times))

    @cached_property
    def _sound(self) -> Samples:
        # Resampled as a whole and not clip by clip, so that no seam is heard between clips.
        samples, rate = read_audio(self._source, self._origin)
        if rate == SAMPLE_RATE:
            return samples
        import torch

        from omniforcing.media.mel import resample

        result: Samples = resample(torch.from_numpy(samples), rate).numpy()
        return result

    def _frames(self, start: float) -> Frames:
        wanted = start + np.arange(clip_frames(self.form.seconds)) / FPS
        # A source frame that is shown several times is decoded and resized once.
        needed, place = np.unique(pick_frames(self.info.times, wanted), return_inverse=True)
        # In batches: a clip of 4K frames would not fit into memory at once.
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
        # The packets may promise sound that does not decode.
        if missing > SOUND_SLACK * SAMPLE_RATE + 1:
            raise Rejected(
                "media.undecodable-sound", f"{missing / SAMPLE_RATE:.2f} s of the sound are missing"
            )
        return np.pad(part, ((0, 0), (0, missing)))


def pick_frames(times: Times, wanted: Times) -> NDArray[np.int64]:
    """Choose the source frame to show at each wanted time.

    It is the nearest one, unless that would be shown more than half an output frame early. So rates
    above 24 fps are sampled without a mean delay, and a frame that a slow or variable rate holds
    stays until its successor is due.

    Args:
        times: times of the source frames in seconds ``[T]``, ascending.
        wanted: times of the output frames in seconds ``[n]``.

    Returns:
        Indices of source frames, int64 ``[n]``.
    """
    after = np.searchsorted(times, wanted + EPSILON, side="right")
    before = np.maximum(after - 1, 0)
    after = np.minimum(after, len(times) - 1)
    early, late = times[after] - wanted, wanted - times[before]
    return np.where((early < late) & (early <= LOOK_AHEAD + EPSILON), after, before)


def crop_box(info: MediaInfo, form: ClipFormat) -> tuple[int, int, int, int]:
    """Find the largest centred box of the picture that has the format's shape.

    Args:
        info: properties of the file.
        form: format of the clips.

    Returns:
        Top, left, height and width of the box in source pixels.

    Raises:
        Rejected: if the box would have to be enlarged more than twice.
    """
    # Source pixels need not be square: the shape is that of the picture as it is seen.
    aspect = form.width / form.height / info.aspect
    height = min(info.height, round(info.width / aspect))
    width = min(info.width, round(info.height * aspect))
    if height * MAX_ENLARGE < form.height or width * MAX_ENLARGE < form.width:
        found = f"{info.width}x{info.height} would be enlarged more than {MAX_ENLARGE:g} times"
        raise Rejected("media.too-small", f"{found} to fill {form.width}x{form.height}")
    return (info.height - height) // 2, (info.width - width) // 2, height, width


def resize(frames: Frames, box: tuple[int, int, int, int], form: ClipFormat) -> Frames:
    """Crop frames to a box and resize it to the format's size, antialiased.

    Args:
        frames: uint8 ``[T, h, w, 3]``.
        box: top, left, height and width in pixels.
        form: format of the clips.

    Returns:
        Frames uint8 ``[T, H, W, 3]``.
    """
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
