"""A running stream: one thread generates latents, one decodes them, the consumer takes chunks.

Both queues are bounded, so a slow consumer holds the generation back and memory stays flat. What
comes out depends on the seed and on the blocks at which prompts change, never on anybody's speed.
``close`` may be called at any moment; a stream that nothing refers to any more closes itself.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Lock, Thread, current_thread
from types import TracebackType

import numpy as np
import torch

from omniforcing.core.latents import Latents, TextFeatures
from omniforcing.core.layout import Block, BlockTable
from omniforcing.evaluation.speed import BlockTiming
from omniforcing.model.inference.cuda_streams import own_cuda_stream, synchronise
from omniforcing.streaming.channel import Channel, Closed
from omniforcing.streaming.decoding import Decoding
from omniforcing.streaming.generation import Generation
from omniforcing.streaming.request import check_prompt, check_scales
from omniforcing.streaming.state import StreamState
from omniforcing.streaming.steering import (
    Applied,
    Controls,
    Pending,
    PromptChange,
    ScaleChange,
)

AHEAD = 2  # decoded chunks that may wait for the consumer


@dataclass(frozen=True)
class Chunk:
    """Media that one block adds to the stream.

    Chunks follow each other without gap or overlap. Picture and sound of a chunk may each be late
    by the look-ahead of their decoder; both are complete at the end of the stream.

    Attributes:
        block: index of the block.
        frames: uint8 ``[T, H, W, 3]``.
        samples: float32 ``[2, N]``.
        first_frame: number of frames before this chunk.
        first_sample: number of samples before this chunk.
        timing: seconds that the block took.
        prompt: prompt that the block was generated for.
    """

    block: int
    frames: np.ndarray
    samples: np.ndarray
    first_frame: int
    first_sample: int
    timing: BlockTiming
    prompt: str


@dataclass(frozen=True)
class StreamParts:
    """Everything that a stream is made of, apart from its threads.

    Attributes:
        generation: makes the latents.
        decoding: makes media of latents.
        encode: gives the text features of a prompt.
        table: the block table.
        stop: number of blocks after which the stream ends; None for no end.
        frames: number of frames to come; None for no end.
        prompt: the first prompt.
        seed: seed of the stream, kept in its saved state.
        artifact: digest of the artifact, kept in its saved state.
        device: device that computes.
        asked: ``time.perf_counter`` when the stream was asked for.
    """

    generation: Generation
    decoding: Decoding
    encode: Callable[[str], TextFeatures]
    table: BlockTable
    stop: int | None
    frames: int | None
    prompt: str
    seed: int
    artifact: str
    device: str
    asked: float


@dataclass(frozen=True)
class _GeneratedBlock:
    """Latents of a block on their way to the decoder."""

    block: Block
    latents: Latents
    waited: float
    seconds: float
    ended: float
    prompt: str


@dataclass(frozen=True)
class _Snapshot:
    """The generation's half of a state; the decoder adds its own when it gets there."""

    pending: list[Pending[StreamState]]
    generation: dict[str, torch.Tensor]
    prompt: str


class Stream:
    """Chunks of a stream in order; also a context manager.

    The stream begins when the first chunk is asked for; prompts changed before that hold from
    block 0 on. It ends at its length, or by ``close``.

    Args:
        parts: what the stream is made of.
        ahead: number of decoded chunks that may wait for the consumer.

    Attributes:
        parts: what the stream is made of.
        blocks: number of blocks after which the stream ends; None for no end.
        frames: number of frames that it brings; None for no end.
    """

    def __init__(self, parts: StreamParts, ahead: int = AHEAD) -> None:
        # The maker's CUDA stream computed the text's keys and values, or a restored state, and
        # the threads read them from CUDA streams of their own.
        synchronise(parts.device)
        self._threads = StreamThreads(parts, ahead)
        self.parts, self.blocks, self.frames = parts, parts.stop, parts.frames
        # The threads hold no reference to this object, so that forgetting it closes the stream.
        self._closing = weakref.finalize(self, self._threads.close)

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        self._threads.begin()
        try:
            return self._threads.chunks.get()
        except Closed:
            self.close()
            raise StopIteration from None
        except BaseException:
            self.close()
            raise

    def steer(self, prompt: str, at: int | None = None, rewrite: bool = False) -> Future[Applied]:
        """Follow another prompt from a coming block on.

        Args:
            prompt: what to show and hear.
            at: index of the block to begin with; None, or one that is already generated, means the
                next block.
            rewrite: also rewrite the student's memory under the prompt
                (``Generation.change_prompt``).

        Returns:
            When and where the prompt took effect. Fails with ``NotApplied`` if a later prompt
            replaces this one before, or the stream ends.

        Raises:
            RequestError: if the prompt is empty.
            OmniForcingError: if the text encoder would cut the prompt.
        """
        check_prompt(prompt)
        text = self.parts.encode(prompt)
        change = PromptChange(at, prompt=prompt, text=text, rewrite=rewrite)
        self._threads.controls.ask(change)
        return change.done

    def set_scales(self, scales: Sequence[float], at: int | None = None) -> Future[Applied]:
        """Lay the adapters over the student with other scales from a coming block on.

        Args:
            scales: a scale for each adapter of the engine, in its order.
            at: index of the block to begin with; None means the next one.

        Returns:
            When and where they took effect. Fails with ``NotApplied`` if the stream ends before.

        Raises:
            RequestError: if there are not as many as adapters, or one is not finite.
        """
        check_scales(scales, len(self.parts.generation.scales))
        change = ScaleChange(at, scales=tuple(scales))
        self._threads.controls.ask(change)
        return change.done

    def snapshot(self, at: int | None = None) -> Future[StreamState]:
        """Take the whole state at the border before block ``at``, or at the next border.

        Returns:
            The state, once the chunks before that border are decoded, which needs a consumer that
            takes them. Fails with ``NotApplied`` if the stream ends before.
        """
        pending: Pending[StreamState] = Pending(at)
        self._threads.controls.ask(pending)
        return pending.done

    def pause(self) -> None:
        """Generate no further block until ``resume``; blocks under way still come."""
        self._threads.controls.pause(True)

    def resume(self) -> None:
        """Undo ``pause``."""
        self._threads.controls.pause(False)

    def allow(self, until: float) -> None:
        """Generate no block that begins at or after ``until`` seconds of the stream.

        A player that moves this limit on with its position keeps few blocks ahead of it, so that
        a change of prompt is seen soon.
        """
        self._threads.controls.allow(until)

    @property
    def paused(self) -> bool:
        """Whether ``pause`` holds."""
        return self._threads.controls.paused

    @property
    def waiting(self) -> int:
        """Number of decoded chunks that wait for the consumer."""
        return len(self._threads.chunks)

    def close(self) -> None:
        """Stop, wait for both threads and drop everything; a second call does nothing.

        The wait lasts one forward of the student at most, or one rewrite.
        """
        self._closing()

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class StreamThreads:
    """The two threads of a stream, the queues between them, and what the viewer asks for."""

    def __init__(self, parts: StreamParts, ahead: int) -> None:
        self.parts = parts
        self.controls = Controls()
        self.latents: Channel[_GeneratedBlock | _Snapshot] = Channel(1)
        self.chunks: Channel[Chunk] = Channel(ahead)
        self._threads: list[Thread] = []
        self._begun, self._starting = False, Lock()

    def begin(self) -> None:
        """Start the threads once, and never after ``close``."""
        with self._starting:
            if self._begun:
                return
            self._begun = True
            # Made here and not in the constructor: a thread that never starts would keep this
            # object alive in a reference cycle. Daemons, because the interpreter waits for other
            # threads before it would close a forgotten stream.
            for body in (self.generate, self.decode):
                thread = Thread(target=body, name=f"omniforcing-{body.__name__}", daemon=True)
                thread.start()
                self._threads.append(thread)

    def close(self) -> None:
        """End both queues and the controls, and wait for the threads."""
        self.controls.end()
        self.latents.close()
        self.chunks.close()
        with self._starting:  # a consumer may be starting the threads just now
            self._begun = True
        for thread in self._threads:
            # The garbage collector may call this from one of the threads themselves.
            if thread is not current_thread():
                thread.join()

    def generate(self) -> None:
        """Body of the first thread: generate latents block by block."""
        try:
            with own_cuda_stream(self.parts.device, "generate"):
                self._generate_blocks()
        except Closed:
            pass
        except BaseException as error:
            self.latents.finish(error)
        self.latents.finish()
        self.controls.end()

    def _generate_blocks(self) -> None:
        parts = self.parts
        generation, prompt = parts.generation, parts.prompt
        while True:
            arrived, block = time.perf_counter(), parts.table.block(generation.index)
            over = block.index == parts.stop
            # The border after the last block begins before everything, so that a paused stream
            # or a limit set by ``allow`` does not hold its end back.
            start = -1.0 if over else block.seconds[0]
            change, snapshots = self.controls.border(block.index, start, generation.can_be_saved)
            if snapshots:
                self.latents.put(_Snapshot(snapshots, generation.state(), prompt))
                continue  # back to the border: the stream may be paused there
            if over:
                return
            began = time.perf_counter()
            if change is not None:
                self._change_prompt(change, block.index, start)
                prompt = change.prompt
            for scales in self.controls.scale_changes(block.index):
                generation.change_scales(scales.scales)
                scales.done.set_result(Applied(block.index, start))
            latents = generation.next()
            # The decoder's thread reads the latents from another CUDA stream.
            synchronise(parts.device)
            ended = time.perf_counter()
            waited, seconds = began - arrived, ended - began
            self.latents.put(_GeneratedBlock(block, latents, waited, seconds, ended, prompt))

    def _change_prompt(self, change: PromptChange, block: int, start: float) -> None:
        try:
            self.parts.generation.change_prompt(change.text, change.rewrite)
        except BaseException as error:
            change.done.set_exception(error)
            raise
        change.done.set_result(Applied(block, start))

    def decode(self) -> None:
        """Body of the second thread: decode latents into chunks as soon as they come."""
        waited = 0.0
        try:
            with own_cuda_stream(self.parts.device, "decode"):
                while True:
                    item = self.latents.get()
                    if isinstance(item, _Snapshot):
                        self._finish_snapshot(item)
                    else:
                        waited = self.chunks.put(self._decode_block(item, waited))
        except Closed:
            self.chunks.finish()
        except BaseException as error:
            self.latents.close()
            self.controls.end()
            self.chunks.finish(error)

    def _decode_block(self, item: _GeneratedBlock, waited: float) -> Chunk:
        began = time.perf_counter()
        last = item.block.index + 1 == self.parts.stop
        decoded = self.parts.decoding.push(item.latents, last)
        # Also where nothing was copied to the CPU, which would have waited: afterwards the
        # latents' memory goes back to the generating thread's CUDA stream, to be written again.
        synchronise(self.parts.device)
        ended = time.perf_counter()
        timing = BlockTiming(
            len(decoded.frames),
            item.seconds,
            ended - began,
            ended - self.parts.asked,
            item.waited + waited,
            item.ended - self.parts.asked,
        )
        return Chunk(
            item.block.index,
            decoded.frames,
            decoded.samples,
            decoded.first_frame,
            decoded.first_sample,
            timing,
            item.prompt,
        )

    def _finish_snapshot(self, item: _Snapshot) -> None:
        parts = self.parts
        decoding = parts.decoding.state()
        state = StreamState(parts.artifact, item.prompt, parts.seed, item.generation, decoding)
        for pending in item.pending:
            pending.done.set_result(state)
