"""Find a watermark in a clip's sound, by a TorchScript program that the user names."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pad

from omniforcing.core.errors import OmniForcingError
from omniforcing.media.reading.sound import Sound, read_sound
from omniforcing.media.reading.tracks import Rejected, open_container
from omniforcing.model.weights.program import (
    ProgramError,
    calling,
    float_tensor,
    named_program,
    open_program,
)
from omniforcing.streaming.watermark.watermark import UNIT, WINDOW

LENGTH = UNIT * WINDOW  # samples at 16 kHz: two seconds


@torch.inference_mode()
def detect(clip: Path, named: str) -> str:
    """Say how much of a clip's sound has a watermark, two seconds at a time.

    Args:
        clip: the clip, in any container that FFmpeg reads.
        named: ``FILE:SHA256`` of a program whose ``forward`` takes sound float ``[1, 1, 32000]`` at
            16 kHz and returns the probability of a watermark for each sample, ``[1, 32000]`` or
            ``[1, 2, 32000]``, of which the second row is taken.

    Raises:
        OmniForcingError: if the program cannot be opened or called, or the clip has no sound.
    """
    path, sha256 = named_program(named, "--detector")
    module = open_program(path, sha256)
    try:
        sound = torch.from_numpy(_read(clip).samples).mean(0)
    except (OSError, Rejected) as error:
        raise OmniForcingError(
            "file.unreadable",
            f"{clip} has no sound that can be read ({error}); give a clip with it",
        ) from error
    likely = [
        _probability(module, path, pad(part, (0, LENGTH - len(part)))[None, None])[: len(part)]
        for part in sound.split(LENGTH)
    ]
    values = torch.cat(likely)
    share, mean = (values > 0.5).float().mean().item(), values.mean().item()
    return f"watermark in {share:.1%} of the sound, probability {mean:.3f} on average, by {path}"


def _read(clip: Path) -> Sound:
    """The sound that a player would play; without a picture, the best track."""
    try:
        return read_sound(clip)
    except Rejected:
        with open_container(clip) as container:
            track = container.streams.best("audio")
            if track is None:
                raise
            number = track.index
        return read_sound(clip, tracks=(number, number))


def _probability(module: torch.nn.Module, path: Path, sound: Tensor) -> Tensor:
    """Probability of each sample ``[32000]``."""
    signature = f"float32 [1, 1, {LENGTH}] and return float32 [1, {LENGTH}] or [1, 2, {LENGTH}]"
    with calling(path, signature), torch.jit.optimized_execution(False):
        found = float_tensor(module(sound), [1, LENGTH], [1, 2, LENGTH])
    if not bool(((found >= 0) & (found <= 1)).all()):
        raise ProgramError(
            "program.no-probability", f"{path} gave values outside of 0 to 1; end it with a softmax"
        )
    return found.reshape(-1, LENGTH)[-1]
