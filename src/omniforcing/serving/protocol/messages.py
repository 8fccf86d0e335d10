"""The messages of clients as a session acts on them, and the limits that they are told."""

from __future__ import annotations

import math
from dataclasses import dataclass

from omniforcing.core.errors import OmniForcingError
from omniforcing.streaming.request import IMAGE_BYTES, Request

DEFAULT_PORT = 8765  # of `omniforcing serve`
VERSION = 2
SUBPROTOCOL = f"omniforcing.v{VERSION}"


class ProtocolError(OmniForcingError):
    """A message that cannot be understood; names the field and what is expected there."""


@dataclass(frozen=True)
class Limits:
    """Limits of a server, which every client is told.

    Attributes:
        sessions: sessions at a time.
        seconds: length of a stream, seconds.
        prompt_chars: length of a prompt, characters.
        image_bytes: size of the file of a first frame, bytes.
        idle_seconds: time after which a session ends whose client does not begin, takes nothing or
            does not answer a ping.
        paused_seconds: time after which a session ends whose player stands still, paused or hidden.
        lead_seconds: how far the stream may be generated ahead of the player, seconds; one block
            more at most.
        mistakes: number of messages with mistakes after which a session ends.
    """

    sessions: int = 4
    seconds: float = 600.0
    prompt_chars: int = 1000
    image_bytes: int = IMAGE_BYTES
    idle_seconds: float = 60.0
    paused_seconds: float = 1800.0
    lead_seconds: float = 3.0
    mistakes: int = 10


@dataclass(frozen=True)
class Start:
    """Begin the stream.

    Attributes:
        request: prompt, length and seed.
        image: whether a first frame was sent before.
        paced: whether the server keeps to the player's position (``Limits.lead_seconds``).
        lead: how far ahead of the player the client wants a paced stream at most, seconds.
        first_frame: file of the first frame, where the message brings it itself.
    """

    request: Request
    image: bool
    paced: bool
    lead: float = math.inf
    first_frame: bytes | None = None


@dataclass(frozen=True)
class Steer:
    """Follow another prompt.

    Attributes:
        id: number that the answers repeat.
        prompt: the prompt.
        rewrite: whether to rewrite the student's memory under it.
        at: second of the stream from which on; None for the next block.
    """

    id: int
    prompt: str
    rewrite: bool
    at: float | None = None


@dataclass(frozen=True)
class Scales:
    """Lay the server's LoRAs over the student with other scales.

    Attributes:
        id: number that the answers repeat.
        scales: a scale for each, in the order of ``omniforcing serve --lora``.
    """

    id: int
    scales: tuple[float, ...]


@dataclass(frozen=True)
class Position:
    """Position of the player.

    Attributes:
        seconds: time in the stream that it plays.
        stalls: number of times that it ran out of media so far.
    """

    seconds: float
    stalls: int


@dataclass(frozen=True)
class Command:
    """``pause``, ``resume``, ``stop`` or, of ``serving/realtime.py``, ``ping``, by its name."""

    name: str


Message = Start | Steer | Scales | Position | Command
