"""One WebSocket session: a client's messages in, one stream out, and an orderly end whatever happens to either."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

from starlette.websockets import WebSocket, WebSocketDisconnect

from omniforcing.core.console import explain
from omniforcing.core.errors import OmniForcingError
from omniforcing.core.layout import FPS
from omniforcing.media.mux import Muxer, Pieces
from omniforcing.serving.protocol import (
    Command,
    Message,
    Position,
    ProtocolError,
    Start,
    Steer,
    compose,
    parse,
)
from omniforcing.serving.service import Service
from omniforcing.streaming.live import Chunk, Stream
from omniforcing.streaming.steering import Applied, NotApplied

T = TypeVar("T")
logger = logging.getLogger("omniforcing.serve")
NORMAL, GOING_AWAY, AGAINST_THE_RULES, FAULT = 1000, 1001, 1008, 1011  # WebSocket close codes


class _End(Exception):
    """The session is over, for a ``reason`` that the client is told and the gauges count."""

    def __init__(self, reason: str, code: int = NORMAL) -> None:
        super().__init__(reason)
        self.reason, self.code = reason, code


class Session:
    """Runs from the accepted connection to its end; nothing of it is left afterwards.

    Args:
        socket: an accepted WebSocket.
        service: the engine, the limits and the gauges.
    """

    def __init__(self, socket: WebSocket, service: Service) -> None:
        self._socket, self._service = socket, service
        settings = service.engine.settings
        self._pieces = Pieces()
        self._muxer = Muxer(self._pieces, settings.height, settings.width, settings.sample_rate)
        self._stream: Stream | None = None
        self._image: bytes | None = None
        self._asked = 0.0
        self._paced = True
        self._position = Position(0.0, 0)
        self._mistakes = self._frames = 0  # frames: sent
        self._watchers: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Serve the client until either side ends it."""
        reason, code = "vanished", NORMAL
        try:
            await self._serve()
        except _End as end:
            reason, code = end.reason, end.code
        except WebSocketDisconnect:
            pass
        except TimeoutError:
            reason, code = "idle", AGAINST_THE_RULES
        except Exception as error:
            reason, code = "failed", FAULT
            logger.exception("a session failed")
            told = explain(error) or OmniForcingError(
                "serving.fault", "the stream failed inside; the server's log says why"
            )
            await self._last_words("error", **told.as_json(), fatal=True)
        finally:
            for watcher in self._watchers:
                watcher.cancel()
            if self._stream is not None:
                await self._call(self._stream.close)
            self._muxer.release()
        self._service.gauges.ended.labels(reason).inc()
        if reason != "vanished":
            await self._last_words(
                "ended", reason=reason, frames=self._frames, seconds=max(0, self._frames - 1) / FPS
            )
            await self._close(code)

    async def _serve(self) -> None:
        await self._say("hello", **self._service.about())
        start = await self._first_message()
        self._asked, self._paced = time.perf_counter(), start.paced
        self._stream = await self._call(self._open, start)
        request = start.request
        await self._say(
            "started",
            mime=self._muxer.mime,
            prompt=request.prompt,
            seconds=request.seconds,
            seed=request.seed,
        )
        await _first_of(self._listen(self._stream), self._send(self._stream), self._closing())

    # --- from the client --------------------------------------------------------------------------------------------------

    async def _first_message(self) -> Start:
        while True:
            message = await self._receive(self._service.limits.idle_seconds)
            if isinstance(message, Start):
                if message.image == (self._image is not None):
                    return message
                await self._mistake(
                    ProtocolError(
                        "serving.late-image",
                        'an image is sent before "start", which then says "image": true',
                    )
                )
            elif isinstance(message, Command) and message.name == "stop":
                raise _End("stopped")
            elif message is not None:
                await self._mistake(
                    ProtocolError("serving.not-begun", 'the stream has not begun; send "start"')
                )

    def _open(self, start: Start) -> Stream:
        engine, request = self._service.engine, start.request
        opening = engine.image(self._image) if self._image is not None else None
        self._image = None
        stream = engine.stream(request.prompt, request.seconds, request.seed, opening)
        self._allow(stream)
        return stream

    async def _listen(self, stream: Stream) -> None:
        while True:
            limit = self._service.limits.idle_seconds if self._paced or stream.paused else None
            message = await self._receive(limit)
            if isinstance(message, Position):
                self._service.gauges.stalls.inc(max(0, message.stalls - self._position.stalls))
                self._position = message
                self._allow(stream)
            elif isinstance(message, Steer):
                await self._say("received", id=message.id)
                self._watch(
                    message.id,
                    await self._call(stream.steer, message.prompt, None, message.rewrite),
                )
            elif isinstance(message, Command):
                await self._obey(stream, message.name)
            elif message is not None:
                await self._mistake(
                    ProtocolError(
                        "serving.begun-already",
                        "the stream has begun already; open another connection for another one",
                    )
                )

    async def _obey(self, stream: Stream, command: str) -> None:
        if command == "stop":
            raise _End("stopped")
        if command == "pause":
            stream.pause()
        else:
            stream.resume()
        await self._say(f"{command}d")

    async def _receive(self, seconds: float | None) -> Message | None:
        """The client's next message; None after an image or a mistake, which is answered here."""
        async with asyncio.timeout(seconds):
            event = await self._socket.receive()
        if event["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(event.get("code", NORMAL))
        try:
            if event.get("bytes") is not None:
                await self._take_image(event["bytes"])
                return None
            return parse(event["text"], self._service.limits)
        except OmniForcingError as error:
            await self._mistake(error)
            return None

    async def _take_image(self, data: bytes) -> None:
        if self._stream is not None:
            raise ProtocolError(
                "serving.late-image", "the stream has begun already; an image is sent before it"
            )
        if len(data) > self._service.limits.image_bytes:
            most = self._service.limits.image_bytes
            raise ProtocolError(
                "streaming.image-too-large",
                f"the image has {len(data):,} bytes, at most {most:,} are taken; scale it down",
            )
        await self._call(
            self._service.engine.image, data
        )  # a bad one is answered now, not when the stream begins
        self._image = data

    async def _mistake(self, error: OmniForcingError) -> None:
        self._mistakes += 1
        self._service.gauges.mistakes.inc()
        await self._say("error", **error.as_json(), fatal=False)
        if self._mistakes >= self._service.limits.mistakes:
            raise _End("mistakes", AGAINST_THE_RULES)

    # --- to the client ----------------------------------------------------------------------------------------------------

    async def _send(self, stream: Stream) -> None:
        while (chunk := await self._call(next, stream, None)) is not None:
            began = time.perf_counter()
            data = await self._call(self._encode, chunk)
            await self._say(
                "block", **_figures(chunk), encode_s=time.perf_counter() - began, bytes=len(data)
            )
            await self._media(data)
            self._frames += len(chunk.frames)
            self._service.gauges.blocks.inc()
            self._service.gauges.block.observe(chunk.timing.generate)
            if chunk.first_frame <= 1 < chunk.first_frame + len(chunk.frames):
                self._service.gauges.first_chunk.observe(time.perf_counter() - self._asked)
        self._muxer.close()
        await self._media(self._pieces.take())
        raise _End("ended")

    def _allow(self, stream: Stream) -> None:
        """Keep the stream no further ahead of the player than the lead: what is generated cannot be steered any more."""
        if self._paced:
            stream.allow(self._position.seconds + self._service.limits.lead_seconds)

    def _encode(self, chunk: Chunk) -> bytes:
        self._muxer.add(chunk)
        return self._pieces.take()

    async def _media(self, data: bytes) -> None:
        async with asyncio.timeout(self._service.limits.idle_seconds):
            await self._socket.send_bytes(data)
        self._service.gauges.bytes.inc(len(data))

    async def _say(self, kind: str, **values: Any) -> None:
        async with asyncio.timeout(self._service.limits.idle_seconds):
            await self._socket.send_text(compose(kind, values))

    def _watch(self, number: int, future: Future[Applied]) -> None:
        """Tell the client what becomes of its prompt, when it is known."""

        async def watch() -> None:
            try:
                applied = await asyncio.wrap_future(future)
            except NotApplied as error:
                await self._say("dropped", id=number, reason=str(error), code=error.code)
            else:
                self._service.gauges.prompts.inc()
                await self._say("applied", id=number, block=applied.block, seconds=applied.seconds)

        task = asyncio.create_task(watch())
        self._watchers.add(task)
        task.add_done_callback(self._watched)

    def _watched(self, task: asyncio.Task[None]) -> None:
        self._watchers.discard(task)
        if not task.cancelled():
            task.exception()  # the connection broke, which the others notice too

    # --- the end ----------------------------------------------------------------------------------------------------------

    async def _closing(self) -> None:
        await self._service.closing.wait()
        raise _End("draining", GOING_AWAY)

    async def _last_words(self, kind: str, **values: Any) -> None:
        with suppress(
            WebSocketDisconnect, RuntimeError, TimeoutError
        ):  # nobody may listen any more
            await self._say(kind, **values)

    async def _close(self, code: int) -> None:
        with suppress(WebSocketDisconnect, RuntimeError):  # the client may have been faster
            await self._socket.close(code)

    async def _call(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(
            self._service.executor, function, *arguments
        )


def _figures(chunk: Chunk) -> dict[str, Any]:
    start, count = chunk.first_frame, len(chunk.frames)
    return {
        "block": chunk.block,
        "prompt": chunk.prompt,
        "start": start / FPS,
        "end": (start + count) / FPS,
        "generate_s": chunk.timing.generate,
        "decode_s": chunk.timing.decode,
        "elapsed_s": chunk.timing.elapsed,
        "waited_s": chunk.timing.waited,
    }


async def _first_of(*parts: Coroutine[Any, Any, None]) -> None:
    """Run all until the first is over, raise what it raised, and end the others."""
    tasks = [asyncio.create_task(part) for part in parts]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        error = next(filter(None, (task.exception() for task in done)), None)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    try:
        if error is not None:
            raise error
    finally:
        # What is raised holds this frame. If the frame held it too, a stream would outlive its session: decoder, caches and
        # encoders, until the garbage collector looks at its oldest generation.
        del tasks, done, error
