"""Add a watermark to a stream's sound, piece by piece, as if it were added to the whole clip.

The program sees one window at a time, always of the same length, because a traced program may hold
the length that it was traced at: some sound of before as context, what is new, and silence up to
the end. For a program whose output depends on no later sound than the rest of its 20 ms, the
silence changes nothing, and the context bounds what a recurrent layer has forgotten.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.functional import pad

from omniforcing.codec.vocoder import Windowed
from omniforcing.core.layout import SAMPLE_RATE
from omniforcing.core.states import State
from omniforcing.model.weights.program import (
    ProgramError,
    calling,
    float_tensor,
    named_program,
    open_program,
)
from omniforcing.streaming.watermark.resampling import resample

# Windows begin at multiples of this, 20 ms: AudioSeal's encoder makes a frame of so many samples.
UNIT = 320  # samples at 16 kHz
WINDOW = 100  # units that the program gets: 2 s
CONTEXT = 45  # units of before that a window begins with: 0.9 s
_NEW = 50  # units that are new in a window at most; the rest is left for what waits
# At another rate than 16 kHz, resampling there and back reaches a few milliseconds into the units
# that follow: into the next one, and from it into the one after.
_AFTER = 2


class Watermark:
    """A watermark's program, opened and tried on noise.

    The program's ``forward`` takes mono sound float ``[1, 1, 32000]`` at 16 kHz, two seconds, and
    returns as much sound to be added.

    Args:
        named: ``FILE:SHA256``.
        sample_rate: rate of the streams in Hz.
        device: where to compute.

    Attributes:
        path: the program's file.
        sha256: its sha256.
        unit: samples of a stream by which sound comes out.
        waits: whole units that wait for what follows.

    Raises:
        ProgramError: if it cannot be opened, or does not give a watermark.
    """

    def __init__(self, named: str, sample_rate: int, device: str = "cpu") -> None:
        self.path, self.sha256 = named_program(named, "--watermark")
        self._module = open_program(self.path, self.sha256, device)
        if UNIT * sample_rate % SAMPLE_RATE:
            raise ProgramError(
                "program.other-rate",
                f"sound of {sample_rate} Hz cannot have a watermark, for 20 ms of it are no whole "
                "number of samples; stream without --watermark",
            )
        self._rate, self._device = sample_rate, device
        self.unit = UNIT * sample_rate // SAMPLE_RATE
        self.waits = 0 if sample_rate == SAMPLE_RATE else _AFTER
        self._check()

    def _check(self) -> None:
        """Refuse a program that fails, whose watermark of the same sound varies, or is loud."""
        generator = torch.Generator().manual_seed(0)
        noise = 0.1 * torch.randn(1, 1, WINDOW * UNIT, generator=generator).to(self._device)
        # Most windows of a stream end in silence.
        half = torch.cat(
            [noise[..., : _NEW * UNIT], torch.zeros_like(noise[..., _NEW * UNIT :])], 2
        )
        before = self._held()
        for sound in (noise, half, torch.zeros_like(noise)):
            # Copies, for a program may write into what it is given.
            first, second = (self._call(sound.clone()).clone() for _ in range(2))
            # Not bit for bit: kernels of a GPU may add in another order.
            varies = bool((first - second).abs().max() > 1e-3 * first.abs().max())
            if varies or any(not x.equal(y) for x, y in zip(before, self._held(), strict=True)):
                raise ProgramError(
                    "program.varies",
                    f"{self.path} gives another watermark for the same sound when it is called "
                    "again, so it draws random numbers or keeps a state; give AudioSeal's a "
                    "message, and trace it outside of streaming()",
                )
            if sound is noise and first.square().mean() > 0.25 * noise.square().mean():
                raise ProgramError(
                    "program.too-loud",
                    f"{self.path} gives a watermark more than half as loud as the sound; let it "
                    "return the watermark alone, which is added here",
                )

    def _held(self) -> list[Tensor]:
        """Copies of what the program holds."""
        held: Iterable[Tensor] = self._module.state_dict().values()
        return [tensor.clone() for tensor in held]

    def begin(self) -> MarkedSound:
        """Begin the sound of a stream."""
        return MarkedSound(self)

    @torch.inference_mode()
    def _call(self, mono: Tensor) -> Tensor:
        """Call the program with a window ``[1, 1, 32000]``; returns as much."""
        # Without optimisation: the same code runs in the first window and in all that follow.
        signature = f"float32 {list(mono.shape)} on {self._device} and return as much"
        with calling(self.path, signature), torch.jit.optimized_execution(False):
            found = float_tensor(self._module(mono), list(mono.shape))
        if not found.isfinite().all():
            raise ProgramError(
                "program.not-finite",
                f"{self.path} gave a watermark that is not finite; make the program again",
            )
        return found

    def add(self, sound: Tensor) -> Tensor:
        """Add the watermark to a window ``[1, 2, N]`` of at most 100 units, cut to whole units."""
        sound = sound[..., : sound.shape[2] // self.unit * self.unit]
        mono = resample(sound.mean(1, keepdim=True), self._rate, SAMPLE_RATE)
        count = mono.shape[2]
        watermark = self._call(pad(mono, (0, WINDOW * UNIT - count)))[..., :count]
        return (sound + resample(watermark, SAMPLE_RATE, self._rate)).clamp(-1, 1)


class MarkedSound:
    """The sound of one stream, which gets its watermark piece by piece.

    What comes out depends on how the sound was cut into pieces by no more than the program forgets
    within its context. Sound comes out in units of 20 ms, so a rest of less waits for the next
    piece; at another rate than 16 kHz two units more wait.

    Args:
        watermark: the program.
    """

    def __init__(self, watermark: Watermark) -> None:
        self._watermark, unit = watermark, watermark.unit
        self._window = Windowed(watermark.add, CONTEXT, watermark.waits, unit, unit)
        self._taken = self._given = 0  # samples

    @torch.inference_mode()
    def push(self, sound: Tensor, last: bool = False) -> Tensor:
        """Take the next samples.

        Args:
            sound: float ``[1, 2, N]`` at the stream's rate; N may be 0.
            last: whether the sound ends with them.

        Returns:
            Samples with the watermark ``[1, 2, N']``, in [-1, 1]; all that are left if ``last``.
        """
        unit = self._watermark.unit
        self._taken += sound.shape[2]
        if last:
            sound = pad(sound, (0, -self._taken % unit))
        *before, end = sound.split(_NEW * unit, 2)
        pieces = [self._window.push(piece) for piece in before]
        pieces.append(self._window.push(end, last))
        marked = torch.cat(pieces, 2)[..., : self._taken - self._given]
        self._given += marked.shape[2]
        return marked

    def state(self) -> State:
        """Copy the state after at least one ``push``, for ``restore``."""
        digest = bytes.fromhex(self._watermark.sha256)
        return {
            **self._window.state(),
            "counts": torch.tensor([self._taken, self._given]),
            "sha256": torch.tensor(list(digest), dtype=torch.uint8),
        }

    def restore(self, state: State) -> None:
        """Continue, in a fresh object of the same watermark, where ``state`` was taken."""
        self._window.restore(state)
        self._taken, self._given = state["counts"].tolist()


def watermark_of(state: State) -> str:
    """Sha256 of the program whose state this is; empty for no state."""
    return bytes(state["sha256"].tolist()).hex() if state else ""


def absolute(named: str) -> str:
    """``FILE:SHA256`` with the absolute path of the file, for a process that runs elsewhere."""
    path, digest = named_program(named, "watermark")
    return f"{path.resolve()}:{digest}"
