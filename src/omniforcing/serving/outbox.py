"""What a session sends: messages and pieces of the stream, one task's never between another's."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from omniforcing.serving.gauges import Gauges
from omniforcing.serving.wire import Wire
from omniforcing.streaming.live import Chunk


class Outbox:
    """Sends to one client; several tasks of its session may use it.

    Args:
        socket: an accepted WebSocket.
        wire: what messages look like.
        seconds: time after which a client that takes nothing is given up with ``TimeoutError``.
        gauges: of the server; they count the bytes of the stream.
    """

    def __init__(self, socket: WebSocket, wire: Wire, seconds: float, gauges: Gauges) -> None:
        self._socket, self._wire, self._seconds, self._gauges = socket, wire, seconds, gauges
        self._sending = asyncio.Lock()

    async def send(self, kind: str, **values: Any) -> None:
        """Send a message of ``protocol.declared.SERVER``.

        Raises:
            ValueError: if its fields are not those that are declared.
        """
        await self._send(self._wire.compose(kind, values))

    async def send_if_open(self, kind: str, **values: Any) -> None:
        """Send a message as ``send`` does; nothing happens where the client is gone."""
        with suppress(WebSocketDisconnect, RuntimeError, TimeoutError):
            await self.send(kind, **values)

    async def send_media(self, data: bytes, chunk: Chunk | None, encode_s: float) -> None:
        """Send a piece of the stream after its figures; see ``Wire.media``."""
        messages = self._wire.media(data, chunk, encode_s)
        sending = asyncio.create_task(self._send(messages))
        try:
            await asyncio.shield(sending)
        except asyncio.CancelledError:
            # A piece follows its figures in any case, also of a stream that is stopped in between.
            await asyncio.wait([sending])
            if not sending.cancelled():
                sending.exception()  # retrieved, so that asyncio does not log it
            raise
        finally:
            del sending  # no cycle with its exception's traceback, as in run_until_first_ends
        self._gauges.bytes.inc(sum(len(piece) for piece in messages if isinstance(piece, bytes)))

    async def close(self, code: int) -> None:
        """Close the connection, if the client was not faster."""
        with suppress(WebSocketDisconnect, RuntimeError):
            await self._socket.close(code)

    async def _send(self, messages: Sequence[str | bytes]) -> None:
        """Send messages with none of another task's between them."""
        async with self._sending:
            for message in messages:
                async with asyncio.timeout(self._seconds):
                    if isinstance(message, str):
                        await self._socket.send_text(message)
                    else:
                        await self._socket.send_bytes(message)
