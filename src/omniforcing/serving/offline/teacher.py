"""The teacher beside a student: it makes its clip whole; nothing plays before all of it is made.

What ``omniforcing serve --beside teacher`` streams next to the student, with the calls of
``Engine`` and ``Stream`` that a session makes. The teacher is the pocket world's, which the package
keeps, sampled as its record says.
"""

from __future__ import annotations

import time
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property
from threading import Event
from types import SimpleNamespace
from typing import NoReturn

import torch

from omniforcing.codec.codec import Codec
from omniforcing.codec.text import TextEncoder
from omniforcing.codec.tokens import TokenCount
from omniforcing.core.errors import OmniForcingError
from omniforcing.core.files import read_json, verify_manifest
from omniforcing.core.layout import FPS, clip_latents
from omniforcing.core.pair import Media, Pair
from omniforcing.core.schedule import sampling_sigmas
from omniforcing.distill.sampling import WholeClip, ode_states
from omniforcing.evaluation.speed import BlockTiming
from omniforcing.media.marking import Mark
from omniforcing.model.weights.student import load_model
from omniforcing.pocket.foundation import KEPT
from omniforcing.streaming.live import Chunk
from omniforcing.streaming.request import Request, check_moment
from omniforcing.streaming.steering import Applied, NotApplied
from omniforcing.streaming.watermark.watermark import Watermark
from omniforcing.training.config import Weights

TEACHER = "teacher"  # the word that names it after --beside


class OfflineError(OmniForcingError):
    """Something that a teacher cannot do, because it makes its clip whole."""


@dataclass(frozen=True)
class OfflineSettings:
    """What a page shows of the teacher.

    Attributes:
        height: height of the picture, pixels.
        width: width of the picture, pixels.
        sample_rate: rate of the sound, Hz.
        preset: name of the world.
        method: how a clip is made.
    """

    height: int
    width: int
    sample_rate: int
    preset: str
    method: str


class OfflineTeacher:
    """The kept teacher, in the place of an ``Engine``.

    Args:
        device: where to compute.
        watermark: program of a watermark for the sound, ``FILE:SHA256``; None for none.

    Raises:
        OmniForcingError: if the package's files are missing or altered, or the watermark's program
            cannot be used.
    """

    def __init__(self, device: str = "cpu", watermark: str | None = None) -> None:
        for part in ("codec", TEACHER):
            verify_manifest(KEPT / part)
        self._record = read_json(KEPT / f"{TEACHER}.json")
        clips, sampler = self._record["config"]["clips"], self._record["config"][TEACHER]["sampler"]
        self.seconds, self.device, steps = clips["seconds"], device, sampler["steps"]
        self.codec = Codec.load(KEPT / "codec", device=device)
        self.watermark = (
            None if watermark is None else Watermark(watermark, self.codec.sample_rate, device)
        )
        self._text = TextEncoder.load(KEPT / "codec" / "text", device, torch.float32)
        self.grid = self.codec.token_grid(clips["height"], clips["width"])
        model = load_model(KEPT / TEACHER, device=device, sinks=0).eval()
        self.clip = WholeClip(model, clip_latents(self.seconds), self.grid)
        self.sigmas = sampling_sigmas(steps, sampler["shift"])
        self._guidance = Weights(**sampler["guidance"])
        method = f"teacher: {steps} guided steps, {self.seconds} s at once"
        size = clips["height"], clips["width"]
        self.settings = OfflineSettings(*size, self.codec.sample_rate, "pocket", method)

    @cached_property
    def mark(self) -> Mark:
        """What its clips say of how they were made."""
        watermark = "" if self.watermark is None else self.watermark.sha256
        model = f"{self.settings.preset} {TEACHER}"
        return Mark(model, self._record["weights"], watermark=watermark)

    def count_tokens(self, prompt: str) -> TokenCount:
        """Count the tokens of a prompt."""
        return self._text.prompts.count(prompt)

    def block_at(self, seconds: float) -> int:
        """Return a block; it is never reached, for a teacher cannot be steered."""
        check_moment(seconds)
        return 1

    def image(self, _: bytes) -> NoReturn:
        """Refuse a first frame."""
        raise OfflineError(
            "serving.offline",
            "the teacher beside the student begins with noise alone; remove the first frame",
        )

    def stream(self, prompt: str, seconds: float, seed: int, _: None = None) -> OfflineStream:
        """Open a clip of at most the length that the teacher was trained for."""
        asked = time.perf_counter()
        request = Request(prompt, min(seconds, self.seconds), seed)
        return OfflineStream(self, request, asked)

    def sample(self, prompt: str, seed: int, stopped: Event) -> Media | None:
        """Make a clip, frames uint8 ``[T, H, W, 3]`` and samples float32 ``[2, N]``.

        Returns:
            The clip; None if it was stopped on the way.
        """
        generator = torch.Generator(self.device).manual_seed(seed)
        with torch.no_grad():
            text, empty = self._text.encode([prompt]), self._text.encode([""])
            denoise = self.clip.guided(text, empty, self._guidance)
            state = self.clip.noise(1, generator)
            for following in ode_states(denoise, state, self.sigmas):
                state = following
                if stopped.is_set():
                    return None
            media = self.codec.decode(state, self.grid)
            if self.watermark is not None:
                media = Pair(media.video, self.watermark.begin().push(media.audio, last=True))
            return media.map(lambda x: x[0].cpu().numpy())


class OfflineStream:
    """The seconds of a clip that is made when the first of them is asked for."""

    def __init__(self, teacher: OfflineTeacher, request: Request, asked: float) -> None:
        self._teacher, self._request = teacher, request
        self._stopped, self._block = Event(), 0
        self._media: Media | None = None
        self._took = 0.0  # seconds of computing per block
        self.parts = SimpleNamespace(asked=asked)
        self.paused = False

    def __iter__(self) -> OfflineStream:
        return self

    def __next__(self) -> Chunk:
        frames, samples = self._limits
        if self._media is None:
            began = time.perf_counter()
            self._media = self._teacher.sample(
                self._request.prompt, self._request.seed, self._stopped
            )
            blocks = 1 + -(-(frames - 1) // FPS)
            self._took = (time.perf_counter() - began) / max(1, blocks - 1)
        first = 1 + FPS * (self._block - 1) if self._block else 0
        if self._stopped.is_set() or self._media is None or first >= frames:
            raise StopIteration
        rate = self._teacher.settings.sample_rate
        sound = slice(rate * max(0, self._block - 1), min(samples, rate * self._block))
        until = min(frames, 1 + FPS * self._block)
        chunk = Chunk(
            block=self._block,
            frames=self._media.video[first:until],
            samples=self._media.audio[:, sound],
            first_frame=first,
            first_sample=sound.start,
            timing=BlockTiming(
                until - first, self._took, 0.0, time.perf_counter() - self.parts.asked
            ),
            prompt=self._request.prompt,
        )
        self._block += 1
        return chunk

    @property
    def _limits(self) -> tuple[int, int]:
        limits = self._request.limits(self._teacher.settings.sample_rate)
        assert limits is not None, "a teacher's clip has a length"
        return limits

    def steer(self, *_: object) -> Future[Applied]:
        """Drop a change of the prompt."""
        done: Future[Applied] = Future()
        done.set_exception(
            NotApplied("serving.offline", "the teacher makes its clip whole and cannot be steered")
        )
        return done

    def set_scales(self, _: object) -> NoReturn:
        """Refuse other scales of adapters."""
        raise OfflineError("serving.offline", "no adapters lie over the teacher")

    def allow(self, _: float) -> None:
        """Do nothing: all of the clip is there at once."""

    def pause(self) -> None:
        """Do nothing but say so."""
        self.paused = True

    def resume(self) -> None:
        """Undo ``pause``."""
        self.paused = False

    def close(self) -> None:
        """Stop the making of the clip after its next step."""
        self._stopped.set()
