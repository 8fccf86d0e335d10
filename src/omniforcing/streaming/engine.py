"""The engine: a loaded artifact that opens streams."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import torch

from omniforcing.codec.codec import Codec
from omniforcing.codec.streaming import StreamingDecoder
from omniforcing.codec.text import FreedTextEncoder, TextEncoder
from omniforcing.codec.tokens import TokenCount
from omniforcing.core.files import folder_digest, sha256_file
from omniforcing.core.latents import TextFeatures
from omniforcing.core.layout import FPS
from omniforcing.core.random import step_generator
from omniforcing.media.marking import Mark
from omniforcing.model.config import Stabiliser
from omniforcing.model.inference.compiling import as_far_as_compilable
from omniforcing.model.inference.cuda_streams import synchronise
from omniforcing.model.inference.fast import accelerate
from omniforcing.model.inference.overlay import Overlay
from omniforcing.model.options import DEFAULT, InferenceOptions
from omniforcing.model.rollout import Rollout
from omniforcing.model.weights.checkpoint import open_checkpoint
from omniforcing.model.weights.lora import read_loras
from omniforcing.model.weights.student import load_model
from omniforcing.networks.network import stored_precision
from omniforcing.streaming.artifact import Artifact, ArtifactError
from omniforcing.streaming.decoding import Decoding
from omniforcing.streaming.generation import Generation, Opening
from omniforcing.streaming.live import Chunk, Stream, StreamParts
from omniforcing.streaming.opening import clip_opening, image_opening
from omniforcing.streaming.request import Request, check_moment
from omniforcing.streaming.state import StreamState
from omniforcing.streaming.watermark.watermark import Watermark

__all__ = ["Chunk", "Engine"]

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
STORED = "stored"


class Engine:
    """A loaded artifact; opens any number of independent streams.

    Args:
        artifact: an opened artifact, or what ``Artifact.open`` takes: its folder,
            ``models:/NAME@ALIAS`` in MLflow's registry, or ``ORG/NAME`` on the Hub.
        device: device to compute on.
        options: what makes the student fast. A saved stream goes on bit for bit only with options
            that it was saved with.
        loras: adapters to lay over the student, each as ``FILE`` or ``FILE:SCALE``; a stream may
            change their scales (``Stream.set_scales``).
        precision: precision of student and text encoder, one of ``PRECISIONS``, or the one that
            the student is stored in. The codec computes in fp32 in any: its vocoder would be
            coarse in bf16.
        keep_text_encoder: whether the text encoder's networks stay in memory between prompts.
        watermark: TorchScript program of a watermark for the sound, ``FILE:SHA256``; None for
            none.

    Attributes:
        options: what makes streams fast; without ``compiled`` where torch's compiler fails.
        student: causal student, with the speed-ups of its layers.
        codec: VAEs and vocoder.
        text_encoder: encoder of prompts.
        watermark: the opened program; None for none.

    Raises:
        OmniForcingError: if a part of the artifact is missing or does not fit the others, its codec
            cannot stream, the device does not have a speed-up, or the watermark's program cannot
            be used.
    """

    def __init__(
        self,
        artifact: Artifact | Path | str,
        device: str = "cpu",
        options: InferenceOptions = DEFAULT,
        loras: Sequence[str] = (),
        precision: str = STORED,
        keep_text_encoder: bool = True,
        watermark: str | None = None,
    ) -> None:
        options.check(torch.device(device))
        self.artifact = artifact if isinstance(artifact, Artifact) else Artifact.open(artifact)
        folder, self.settings = self.artifact.folder, self.artifact.settings
        options = as_far_as_compilable(options, torch.device(device))
        self.device, self.options = device, options
        self.watermark = (
            None if watermark is None else Watermark(watermark, self.settings.sample_rate, device)
        )
        self._rollout = self.settings.rollout
        stabiliser = Stabiliser(self.settings.stabiliser)
        # Before the student is loaded onto a device.
        self.overlay = self._overlay(loras) if loras else None
        dtype = PRECISIONS.get(precision) or stored_precision(folder / "transformer")
        student = load_model(folder, self.settings.sinks, device, dtype, stabiliser)
        self.student = accelerate(student, options, release=True, overlay=self.overlay)
        self.codec = Codec.load(self.artifact.codec, device=device)
        load_text = TextEncoder.load if keep_text_encoder else FreedTextEncoder
        self.text_encoder = load_text(self.artifact.text, device, dtype)
        self._refuse_misfit()
        synchronise(
            device
        )  # streams compute on CUDA streams of their own and must find the weights in place

    def _overlay(self, loras: Sequence[str]) -> Overlay:
        checkpoint = open_checkpoint(self.artifact.folder)
        return Overlay([(lora.fitted(checkpoint), scale) for lora, scale in read_loras(loras)])

    def _refuse_misfit(self) -> None:
        """Refuse parts that do not come from one training."""
        settings, core = self.settings, self.student.core.config
        tokens, *channels = self.codec.latent_shape(settings.height, settings.width)
        rows, columns = settings.grid
        for what, found, needed in (
            ("the grid of streaming.json", rows * columns, tokens),
            ("the student's video channels", core.in_channels, channels[0]),
            ("the student's audio channels", core.audio_in_channels, channels[1]),
            ("the sample rate of streaming.json", settings.sample_rate, self.codec.sample_rate),
            (
                "the look-ahead of streaming.json",
                settings.look_ahead,
                self.codec.sound_reach.look_ahead,
            ),
            (
                "the video look-ahead of streaming.json",
                settings.video_look_ahead,
                self.codec.video_reach.ahead,
            ),
        ):
            if found != needed:
                place = self.artifact.folder
                raise ArtifactError(
                    "streaming.mixed-artifact",
                    f"{what}: {found}, but its codec has {needed}; "
                    f"{place} mixes parts, export it again",
                )

    @cached_property
    def digest(self) -> str:
        """Digest that identifies the artifact, and adapters over it, in saved states."""
        digest = folder_digest(self.artifact.folder)
        if self.overlay is None:
            return digest
        files = [sha256_file(lora.source) for lora in self.overlay.loras]
        return hashlib.sha256(" ".join([digest, *files]).encode()).hexdigest()

    @property
    def mark(self) -> Mark:
        """What a clip of this engine says of how it was made."""
        watermark = "" if self.watermark is None else self.watermark.sha256
        return Mark(self.settings.preset, self.digest, watermark=watermark)

    def stream(
        self, prompt: str, seconds: float | None, seed: int = 0, opening: Opening | None = None
    ) -> Stream:
        """Open a stream; the same prompt, length, seed and opening give the same chunks.

        Args:
            prompt: what to show and hear.
            seconds: length; None for a stream that goes on until it is closed.
            seed: seed of all its noise.
            opening: first frame or clip to begin with (``opening.py``).

        Raises:
            RequestError: if the prompt is empty, the length is not positive and finite, or the seed
                is out of range.
            OmniForcingError: if the text encoder would cut the prompt.
        """
        asked, request = time.perf_counter(), Request(prompt, seconds, seed)
        text = self._encode(prompt)
        generation = Generation(self._starter(seed), text, opening, self.overlay)
        limits = request.limits(self.settings.sample_rate)
        decoding = Decoding(self.new_decoder(seed), limits, watermark=self.watermark)
        return self._open(asked, request, generation, decoding, 0)

    def resume(self, state: StreamState, seconds: float | None) -> Stream:
        """Go on from a saved state for ``seconds``, with the same chunks that would have followed.

        Raises:
            RequestError: for a length that is not positive and finite.
            StateError: if the stream was saved with another watermark.
        """
        asked = time.perf_counter()
        Request(state.prompt, seconds, state.seed)
        total = None if seconds is None else (state.frames - 1) / FPS + seconds
        request = Request(state.prompt, total, state.seed)
        start = self._starter(state.seed)
        generation = Generation.restore(start, state.generation, self.overlay)
        decoding = Decoding.restore(
            self.new_decoder(state.seed),
            request.limits(self.settings.sample_rate),
            state.decoding,
            self.watermark,
        )
        return self._open(asked, request, generation, decoding, state.frames)

    def block_at(self, seconds: float) -> int:
        """Index of the first block whose picture begins at or after ``seconds``.

        Seconds count from the end of the first frame.

        Raises:
            RequestError: if they are negative or not finite.
        """
        check_moment(seconds)
        return next(
            block.index
            for block in self._rollout.table
            if block.frames.start > seconds * FPS - 1e-9
        )

    def count_tokens(self, prompt: str) -> TokenCount:
        """Count the tokens of a prompt, and name what of it would be cut or is not understood."""
        return self.text_encoder.prompts.count(prompt)

    def image(self, data: bytes) -> Opening:
        """Read a first frame from the content of an image file.

        Raises:
            OpeningError: if the image cannot be read, or is too large.
        """
        return image_opening(data, self.codec)

    def clip(self, path: Path) -> Opening:
        """Encode the last whole seconds of a clip; the stream repeats them and goes on from there.

        Raises:
            OpeningError: if the clip has another size or rate than the stream, or lasts less than
                a second.
        """
        return clip_opening(path, self.codec, self._rollout.table)

    def _open(
        self,
        asked: float,
        request: Request,
        generation: Generation,
        decoding: Decoding,
        before: int,
    ) -> Stream:
        stop = request.block_count(self._rollout.table, self.settings.sample_rate)
        if stop is not None:
            # A saved stream has generated further than it decoded, by the decoder's look-ahead,
            # and what it decodes next needs one block more.
            stop = max(stop, generation.index + 1)
        return Stream(
            StreamParts(
                generation=generation,
                decoding=decoding,
                encode=self._encode,
                table=self._rollout.table,
                stop=stop,
                frames=None if request.frames is None else request.frames - before,
                prompt=request.prompt,
                seed=request.seed,
                artifact=self.digest,
                device=self.device,
                asked=asked,
            )
        )

    def _encode(self, prompt: str) -> TextFeatures:
        text = self.text_encoder.encode([prompt])
        synchronise(self.device)
        return text

    def new_decoder(self, seed: int = 0) -> StreamingDecoder:
        """Make a decoder that has seen nothing yet, for a stream of this seed."""
        return StreamingDecoder(self.codec, self._rollout.grid, seed)

    def _starter(self, seed: int) -> Callable[[TextFeatures], Rollout]:
        generator = step_generator(seed, 0, "stream", self.device)
        return lambda text: Rollout(self.student, text, self._rollout, generator, self.options)
