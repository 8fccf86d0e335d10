"""One WebSocket session: reads the client's messages, sends one stream, ends in an orderly way."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from starlette.websockets import WebSocket, WebSocketDisconnect

from omniforcing.core.console import explain
from omniforcing.core.errors import OmniForcingError
from omniforcing.core.layout import FPS
from omniforcing.media.mux import Muxer, OutputBuffer
from omniforcing.serving.outbox import Outbox
from omniforcing.serving.protocol.messages import (
    Command,
    Message,
    Position,
    ProtocolError,
    Scales,
    Start,
    Steer,
)
from omniforcing.serving.service import ServedModel, Service, run_until_first_ends
from omniforcing.serving.wire import OwnWire, Wire
from omniforcing.streaming.live import Chunk, Stream
from omniforcing.streaming.steering import Applied, NotApplied
from omniforcing.streaming.telemetry import spans
from omniforcing.streaming.telemetry.spans import StreamSpans

T = TypeVar("T")
logger = logging.getLogger("omniforcing.serve")
# Close codes of WebSocket (RFC 6455, section 7.4.1).
NORMAL, GOING_AWAY, POLICY_VIOLATION, INTERNAL_ERROR = 1000, 1001, 1008, 1011

MOST_WAITING = 100  # changes of a session that wait for their second


class _SessionEnd(Exception):
    """The session is over; the client is told the ``reason`` and the gauges count it."""

    def __init__(self, reason: str, code: int = NORMAL) -> None:
        super().__init__(reason)
        self.reason, self.code = reason, code


class Session:
    """One session, from the accepted connection to its end; releases everything it opened.

    Args:
        socket: an accepted WebSocket.
        service: limits and gauges of the server, and the model that this session keeps.
        wire: what messages look like; our own protocol by default.
        model: what streams; by default what the server gives new sessions.
    """

    def __init__(
        self,
        socket: WebSocket,
        service: Service,
        wire: Wire | None = None,
        model: ServedModel | None = None,
    ) -> None:
        self._socket, self._service = socket, service
        self._wire = OwnWire(service.limits) if wire is None else wire
        self._out = Outbox(socket, self._wire, service.limits.idle_seconds, service.gauges)
        self._model = service.model if model is None else model
        settings = self._model.engine.settings
        self._pieces = OutputBuffer()
        size, mark = (settings.height, settings.width), self._model.mark
        self._muxer = Muxer(self._pieces, *size, settings.sample_rate, mark=mark)
        self._stream: Stream | None = None
        self._image: bytes | None = None
        self._asked = 0.0
        self._spans: StreamSpans | None = None
        self._paced, self._lead = True, service.limits.lead_seconds
        self._position = Position(0.0, 0)
        self._mistakes = self._frames_sent = 0
        self._watchers: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Serve the client until either side ends it."""
        reason, code = "vanished", NORMAL
        try:
            await self._serve()
        except _SessionEnd as end:
            reason, code = end.reason, end.code
        except WebSocketDisconnect:
            pass
        except TimeoutError:
            reason, code = "idle", POLICY_VIOLATION
        except Exception as error:
            reason, code = "failed", INTERNAL_ERROR
            logger.exception("a session failed")
            told = explain(error) or OmniForcingError(
                "serving.fault", "the stream failed inside; the server's log says why"
            )
            await self._out.send_if_open("error", **told.as_json(), fatal=True)
        finally:
            for watcher in self._watchers:
                watcher.cancel()
            if self._stream is not None:
                await self._in_thread(self._stream.close)
            self._muxer.release()
            if self._spans is not None:
                self._spans.close(reason)
        self._service.gauges.ended.labels(reason).inc()
        if reason != "vanished":
            await self._out.send_if_open(
                "ended",
                reason=reason,
                frames=self._frames_sent,
                seconds=max(0, self._frames_sent - 1) / FPS,
            )
            await self._out.close(code)

    async def _serve(self) -> None:
        await self._out.send("hello", **self._service.about(self._model))
        start = await self._first_message()
        self._asked, self._paced = time.perf_counter(), start.paced
        self._lead = min(start.lead, self._lead)
        self._stream = await self._in_thread(self._open, start)
        asked = self._stream.parts.asked
        self._spans = await self._in_thread(spans.begin, self._model.mark, asked)
        request = start.request
        await self._out.send(
            "started",
            mime=self._muxer.mime,
            prompt=request.prompt,
            seconds=request.seconds,
            seed=request.seed,
        )
        await run_until_first_ends(
            self._listen(self._stream), self._send(self._stream), self._end_when_draining()
        )

    # --- from the client ---

    async def _first_message(self) -> Start:
        while True:
            message = await self._receive(self._service.limits.idle_seconds)
            if isinstance(message, Start):
                if message.image == (self._image is not None):
                    return message
                await self._answer_mistake(
                    ProtocolError(
                        "serving.late-image",
                        'an image is sent before "start", which then says "image": true',
                    )
                )
            elif isinstance(message, Command) and message.name == "stop":
                raise _SessionEnd("stopped")
            elif message is not None:
                await self._answer_mistake(
                    ProtocolError("serving.not-begun", 'the stream has not begun; send "start"')
                )

    def _open(self, start: Start) -> Stream:
        engine, request = self._model.engine, start.request
        opening = engine.image(self._image) if self._image is not None else None
        self._image = None
        stream = engine.stream(request.prompt, request.seconds, request.seed, opening)
        self._allow(stream)
        return stream

    async def _listen(self, stream: Stream) -> None:
        moved, most = time.monotonic(), self._service.limits.paused_seconds
        while True:
            # Silence is no farewell: browsers give a hidden page its timers once a minute. Whether
            # the client is there at all, the WebSocket's pings tell (``serve.py``).
            held = self._paced or stream.paused
            message = await self._receive(moved + most - time.monotonic() if held else None)
            still = message is None or message == self._position
            moved = moved if still else time.monotonic()
            if isinstance(message, Position):
                self._service.gauges.stalls.inc(max(0, message.stalls - self._position.stalls))
                self._position = message
                self._allow(stream)
            elif isinstance(message, Steer):
                await self._steer(stream, message)
            elif isinstance(message, Scales):
                await self._set_scales(stream, message)
            elif isinstance(message, Command):
                await self._run_command(stream, message.name)
            elif message is not None:
                await self._answer_mistake(
                    ProtocolError(
                        "serving.begun-already",
                        "the stream has begun already; open another connection for another one",
                    )
                )

    async def _steer(self, stream: Stream, message: Steer) -> None:
        block = None if message.at is None else self._model.engine.block_at(message.at)
        if block is not None and len(self._watchers) >= MOST_WAITING:
            await self._answer_mistake(
                ProtocolError(
                    "serving.too-many-waiting",
                    f"{MOST_WAITING} changes wait for their second already; send this one later",
                )
            )
            return
        await self._out.send("received", id=message.id)
        change = await self._in_thread(stream.steer, message.prompt, block, message.rewrite)
        self._report_outcome(message.id, change)

    async def _set_scales(self, stream: Stream, message: Scales) -> None:
        try:
            change = stream.set_scales(message.scales)
        except OmniForcingError as error:  # as many as the server has LoRAs
            await self._answer_mistake(error)
            return
        await self._out.send("received", id=message.id)
        self._report_outcome(message.id, change)

    async def _run_command(self, stream: Stream, command: str) -> None:
        if command == "stop":
            raise _SessionEnd("stopped")
        if command == "ping":
            await self._out.send("pong")
            return
        if command == "pause":
            stream.pause()
        else:
            stream.resume()
        await self._out.send(f"{command}d")

    async def _receive(self, seconds: float | None) -> Message | None:
        """Wait for the client's next message; return None after an image or a mistake.

        Mistakes are answered here. Raises ``TimeoutError`` after so many seconds of silence.
        """
        async with asyncio.timeout(seconds):
            event = await self._socket.receive()
        if event["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(event.get("code", NORMAL))
        try:
            if event.get("bytes") is not None:
                await self._take_image(self._wire.first_frame(event["bytes"]))
                return None
            message = self._wire.parse(event["text"])
            if isinstance(message, Start) and message.first_frame is not None:
                await self._take_image(message.first_frame)
            await self._check_words(message)
            return message
        except OmniForcingError as error:
            await self._answer_mistake(error)
            return None

    async def _check_words(self, message: Message) -> None:
        """Refuse a prompt that would be cut, and warn of words that the text encoder never saw."""
        if isinstance(message, Start):
            prompt = message.request.prompt
        elif isinstance(message, Steer):
            prompt = message.prompt
        else:
            return
        count = await self._in_thread(self._model.engine.count_tokens, prompt)
        count.refuse_cut()
        if count.unknown:
            await self._out.send("warning", code="codec.unknown-words", message=count.doubt)

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
        # Decoded only to refuse a bad image now and not when the stream begins.
        await self._in_thread(self._model.engine.image, data)
        self._image = data

    async def _answer_mistake(self, error: OmniForcingError) -> None:
        self._mistakes += 1
        self._service.gauges.mistakes.inc()
        await self._out.send("error", **error.as_json(), fatal=False)
        begun = self._stream is not None
        if self._mistakes >= self._service.limits.mistakes or not (begun or self._wire.retries):
            raise _SessionEnd("mistakes", POLICY_VIOLATION)

    # --- to the client ---

    async def _send(self, stream: Stream) -> None:
        while (chunk := await self._in_thread(next, stream, None)) is not None:
            began = time.perf_counter()
            data = await self._in_thread(self._encode, chunk)
            encoded = time.perf_counter()
            await self._out.send_media(data, chunk, encoded - began)
            sent = time.perf_counter()
            if self._spans is not None:
                times = {"encode": (began, encoded), "send": (encoded, sent)}
                self._spans.block(chunk.block, chunk.timing, **times)
            self._frames_sent += len(chunk.frames)
            self._service.gauges.blocks.inc()
            self._service.gauges.block.observe(chunk.timing.generate)
            if chunk.first_frame <= 1 < chunk.first_frame + len(chunk.frames):
                self._service.gauges.first_chunk.observe(time.perf_counter() - self._asked)
        self._muxer.close()
        await self._out.send_media(self._pieces.take(), None, 0.0)
        raise _SessionEnd("ended")

    def _allow(self, stream: Stream) -> None:
        """Limit how far the stream may run ahead of the player.

        A block that is generated cannot follow a new prompt any more.
        """
        if self._paced:
            stream.allow(self._position.seconds + self._lead)

    def _encode(self, chunk: Chunk) -> bytes:
        self._muxer.add(chunk)
        return self._pieces.take()

    def _report_outcome(self, number: int, future: Future[Applied]) -> None:
        """Tell the client whether its prompt was applied or dropped, when that is known."""

        async def watch() -> None:
            try:
                applied = await asyncio.wrap_future(future)
            except NotApplied as error:
                await self._out.send("dropped", id=number, reason=str(error), code=error.code)
            else:
                self._service.gauges.prompts.inc()
                await self._out.send(
                    "applied", id=number, block=applied.block, seconds=applied.seconds
                )

        task = asyncio.create_task(watch())
        self._watchers.add(task)
        task.add_done_callback(self._forget_watcher)

    def _forget_watcher(self, task: asyncio.Task[None]) -> None:
        self._watchers.discard(task)
        if not task.cancelled():
            # Retrieved so that asyncio does not log it: the connection broke, and the tasks that
            # send and listen end the session for that.
            task.exception()

    # --- the end ---

    async def _end_when_draining(self) -> None:
        await self._service.closing.wait()
        raise _SessionEnd("draining", GOING_AWAY)

    async def _in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(
            self._service.executor, function, *arguments
        )
