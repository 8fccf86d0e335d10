"""What a session's messages look like: our own protocol, or that of another server.

A session acts on the messages of ``protocol`` alone. Its wire reads them from what the client
sends, and writes them as what the client understands.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from omniforcing.core.layout import FPS
from omniforcing.serving.protocol.messages import SUBPROTOCOL, Limits, Message
from omniforcing.serving.protocol.reading import compose, parse
from omniforcing.streaming.live import Chunk


class Wire(Protocol):
    """Reads and writes the messages of one session.

    Attributes:
        subprotocol: WebSocket subprotocol that clients must offer; None if they need not.
        retries: whether a client may try again to begin after a message with a mistake.
    """

    subprotocol: str | None
    retries: bool

    def parse(self, text: str) -> Message:
        """Read a text message of the client; raises ``OmniForcingError`` if it has a mistake."""
        ...

    def first_frame(self, data: bytes) -> bytes:
        """Read a binary message, the file of a first frame; raises ``OmniForcingError`` if not."""
        ...

    def compose(self, kind: str, values: Mapping[str, Any]) -> list[str]:
        """Write a message of ``protocol.declared.SERVER`` as any number of texts."""
        ...

    def media(self, data: bytes, chunk: Chunk | None, encode_s: float, /) -> list[str | bytes]:
        """Write a piece of the stream as messages that follow each other immediately.

        Args:
            data: the piece; may be empty.
            chunk: the block that it shows; None for the end of the file, after the last block.
            encode_s: seconds of encoding.
        """
        ...


class OwnWire:
    """The protocol of ``protocol`` as it stands.

    Args:
        limits: what clients may ask for.
    """

    subprotocol: str | None = SUBPROTOCOL
    retries = True

    def __init__(self, limits: Limits) -> None:
        self._limits = limits

    def parse(self, text: str) -> Message:
        """Read a text message of the client."""
        return parse(text, self._limits)

    def first_frame(self, data: bytes) -> bytes:
        """Read a binary message, which is the file of a first frame."""
        return data

    def compose(self, kind: str, values: Mapping[str, Any]) -> list[str]:
        """Write a message of the server."""
        return [compose(kind, values)]

    def media(self, data: bytes, chunk: Chunk | None, encode_s: float) -> list[str | bytes]:
        """Write a piece of the stream, after the figures of its block."""
        if chunk is None:
            return [data]
        figures = {
            "block": chunk.block,
            "prompt": chunk.prompt,
            "start": chunk.first_frame / FPS,
            "end": (chunk.first_frame + len(chunk.frames)) / FPS,
            "generate_s": chunk.timing.generate,
            "decode_s": chunk.timing.decode,
            "encode_s": encode_s,
            "elapsed_s": chunk.timing.elapsed,
            "waited_s": chunk.timing.waited,
            "bytes": len(data),
        }
        return [compose("block", figures), data]
