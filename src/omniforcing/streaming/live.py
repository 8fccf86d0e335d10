"""A running stream: one thread generates, one decodes, and whoever iterates takes chunks as soon as they are decoded.

Both queues are bounded, so a slow consumer holds the generation back and memory stays flat. What comes out depends on the
seed and on the blocks at which prompts change, never on anybody's speed. ``close`` may come at any moment; a stream that is
forgotten closes itself.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock, Thread, current_thread
from types import TracebackType

import numpy as np
import torch

from omniforcing.core.latents import Latents, TextFeatures
from omniforcing.core.layout import Block, BlockTable
from omniforcing.evaluation.timing import BlockTiming
from omniforcing.streaming.channel import Channel, Closed
from omniforcing.streaming.decoding import Decoding
from omniforcing.streaming.generation import Generation
from omniforcing.streaming.request import check_prompt
from omniforcing.streaming.state import StreamState
from omniforcing.streaming.steering import Applied, Controls, Switch, Wish

AHEAD = 2  # decoded chunks that may wait for the consumer


@dataclass(frozen=True)
class Chunk:
    """What one block adds to the stream.

    Attributes:
        block: its index.
        frames: uint8 ``[T, H, W, 3]``; chunks follow each other without gap or overlap.
        samples: float32 ``[2, N]``. Either is late by what its decoder looks ahead; they are level at the end.
        first_frame: frames before this chunk.
        first_sample: samples before this chunk.
        timing: what it cost.
        prompt: what it was generated for.
    """

    block: int
    frames: np.ndarray
    samples: np.ndarray
    first_frame: int
    first_sample: int
    timing: BlockTiming
    prompt: str


@dataclass(frozen=True)
class Plan:
    """What a stream is made of, apart from its threads.

    Attributes:
        generation: where its latents come from.
        decoding: what makes media of them.
        encode: features of a prompt.
        table: the block table.
        stop: number of blocks after which it ends; None without end.
        frames: that are still to come; None without end.
        prompt: the first one.
        seed: of the stream, for its saved state.
        artifact: digest of the artifact, for its saved state.
        device: where it computes.
        asked: when it was asked for, by ``time.perf_counter``.
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
class _Generated:
    block: Block
    latents: Latents
    waited: float
    seconds: float
    prompt: str


@dataclass(frozen=True)
class _Saved:
    """The generation's half of a state, on its way through the decoder, which adds the other half."""

    wishes: list[Wish[StreamState]]
    generation: dict[str, torch.Tensor]
    prompt: str


class Stream:
    """Chunks of a stream in order, ended by the length asked for or by ``close``; also a context manager.

    It begins when the first chunk is asked for; what is wished for before holds from block 0 on.

    Args:
        plan: what it is made of.
        ahead: decoded chunks that may wait for the consumer.

    Attributes:
        blocks: index of the block at which it ends; None without end.
        frames: how many it brings; None without end.
    """

    def __init__(self, plan: Plan, ahead: int = AHEAD) -> None:
        # Text keys and values, or a restored state, were computed in the maker's queue, and each thread has its own.
        finish_queue(plan.device)
        self._work = _Work(plan, ahead)
        self.blocks, self.frames = plan.stop, plan.frames
        # The threads know the work alone, so that a stream nobody holds any more is closed.
        self._closing = weakref.finalize(self, self._work.close)

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        self._work.begin()
        try:
            return self._work.chunks.get()
        except Closed:
            self.close()
            raise StopIteration from None
        except BaseException:
            self.close()
            raise

    def steer(self, prompt: str, at: int | None = None, rewrite: bool = False) -> Future[Applied]:
        """Follow another prompt from the next block that is not yet generated, or from block ``at`` if that comes later.

        Args:
            prompt: what to show and hear.
            at: for a switch at an exact place.
            rewrite: also write anew what the student remembers, under the prompt (``Generation.switch``).

        Returns:
            When and where it took effect. It fails with ``NotApplied`` if a later prompt overtakes it or the stream ends.

        Raises:
            RequestError: for an empty prompt.
        """
        check_prompt(prompt)
        wish = Switch(at, prompt=prompt, text=self._work.plan.encode(prompt), rewrite=rewrite)
        self._work.controls.ask(wish)
        return wish.done

    def snapshot(self, at: int | None = None) -> Future[StreamState]:
        """The whole state at the next border between blocks, or at the one before block ``at``.

        It comes once the chunks before that border are decoded, for which they must be taken. It fails with ``NotApplied``
        if the stream ends before.
        """
        wish: Wish[StreamState] = Wish(at)
        self._work.controls.ask(wish)
        return wish.done

    def pause(self) -> None:
        """Generate no further block until ``resume``; what is under way still comes."""
        self._work.controls.pause(True)

    def resume(self) -> None:
        """Undo ``pause``."""
        self._work.controls.pause(False)

    def allow(self, until: float) -> None:
        """Begin no block at or after so many seconds of the stream: a player who moves this on steers what comes soon."""
        self._work.controls.allow(until)

    @property
    def paused(self) -> bool:
        """Whether ``pause`` holds."""
        return self._work.controls.paused

    @property
    def waiting(self) -> int:
        """Decoded chunks that wait for the consumer."""
        return len(self._work.chunks)

    def close(self) -> None:
        """Stop, wait for both threads (for a forward, or a rewrite's, at most) and drop everything; twice is harmless."""
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


class _Work:
    """The two threads of a stream, their queues, and what is wished for."""

    def __init__(self, plan: Plan, ahead: int) -> None:
        self.plan = plan
        self.controls = Controls()
        self.latents: Channel[_Generated | _Saved] = Channel(1)
        self.chunks: Channel[Chunk] = Channel(ahead)
        self._threads: list[Thread] = []
        self._begun, self._starting = False, Lock()

    def begin(self) -> None:
        """Start the threads, once, and never after ``close``."""
        with self._starting:
            if not self._begun:
                self._begun = True
                # Made here, for a thread that is never started keeps this object, in a circle. Daemons, for the interpreter
                # waits for other threads before it would close a forgotten stream.
                for body in (self.generate, self.decode):
                    thread = Thread(target=body, name=f"omniforcing-{body.__name__}", daemon=True)
                    thread.start()
                    self._threads.append(thread)

    def close(self) -> None:
        self.controls.end()
        self.latents.close()
        self.chunks.close()
        with self._starting:  # whoever asks for the first chunk may be starting them just now
            self._begun = True
        for thread in self._threads:
            if thread is not current_thread():
                thread.join()

    def generate(self) -> None:
        """The first thread: latents, block by block, with what is due at each border."""
        plan = self.plan
        generation, prompt = plan.generation, plan.prompt
        try:
            with _own_queue(plan.device, "generate"):
                while True:
                    arrived, block = time.perf_counter(), plan.table.block(generation.index)
                    over = block.index == plan.stop
                    start = -1.0 if over else block.seconds[0]
                    switch, saves = self.controls.border(
                        block.index, start, generation.can_be_saved
                    )
                    if saves:
                        self.latents.put(_Saved(saves, generation.state(), prompt))
                        continue  # it may be paused
                    if over:
                        break
                    began = time.perf_counter()
                    if switch is not None and switch.text is not None:
                        try:
                            generation.switch(switch.text, switch.rewrite)
                        except BaseException as error:
                            switch.done.set_exception(error)
                            raise
                        prompt = switch.prompt
                        switch.done.set_result(Applied(block.index, start))
                    latents = generation.next()
                    finish_queue(plan.device)
                    self.latents.put(
                        _Generated(
                            block, latents, began - arrived, time.perf_counter() - began, prompt
                        )
                    )
        except Closed:
            pass
        except BaseException as error:
            self.latents.finish(error)
        self.latents.finish()
        self.controls.end()

    def decode(self) -> None:
        """The second thread: chunks of latents, as soon as they can be decoded."""
        waited = 0.0
        try:
            with _own_queue(self.plan.device, "decode"):
                while True:
                    item = self.latents.get()
                    if isinstance(item, _Saved):
                        self._save(item)
                    else:
                        waited = self.chunks.put(self._chunk(item, waited))
        except Closed:
            self.chunks.finish()
        except BaseException as error:
            self.latents.close()
            self.controls.end()
            self.chunks.finish(error)

    def _chunk(self, item: _Generated, waited: float) -> Chunk:
        began = time.perf_counter()
        part = self.plan.decoding.push(item.latents, item.block.index + 1 == self.plan.stop)
        # Even where nothing came out that was copied to the CPU: the generation's queue gets the latents' memory back.
        finish_queue(self.plan.device)
        decoded = time.perf_counter()
        timing = BlockTiming(
            len(part.frames),
            item.seconds,
            decoded - began,
            decoded - self.plan.asked,
            item.waited + waited,
        )
        return Chunk(
            item.block.index,
            part.frames,
            part.samples,
            part.first_frame,
            part.first_sample,
            timing,
            item.prompt,
        )

    def _save(self, item: _Saved) -> None:
        plan = self.plan
        state = StreamState(
            plan.artifact, item.prompt, plan.seed, item.generation, plan.decoding.state()
        )
        for wish in item.wishes:
            wish.done.set_result(state)


# CUDA streams that no thread uses now, by device and what they are for. A CUDA stream's memory serves itself alone, so the next
# stream of the same kind takes over what the last one left instead of asking for as much again.
_queues: dict[tuple[str, str], list[torch.cuda.Stream]] = {}


@contextmanager
def _own_queue(device: str, purpose: str) -> Iterator[None]:
    """On a GPU a CUDA stream that this thread has to itself, so that generation and decoding overlap there too."""
    if not device.startswith("cuda"):
        yield
        return
    free = _queues.setdefault((device, purpose), [])
    queue = free.pop() if free else torch.cuda.Stream(device)
    try:
        with torch.cuda.stream(queue):
            yield
    finally:
        free.append(queue)


def finish_queue(device: str) -> None:
    """Wait for what this thread gave the GPU, so that another may use it and time is told truly."""
    if device.startswith("cuda"):
        torch.cuda.current_stream(device).synchronize()
