"""The control messages of a WebSocket session (docs/protocol.md): what a client may say, checked. No network here."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from omniforcing.core.errors import OmniForcingError
from omniforcing.streaming.opening import IMAGE_BYTES
from omniforcing.streaming.request import Request, RequestError, check_prompt

VERSION = 2
SUBPROTOCOL = f"omniforcing.v{VERSION}"


class ProtocolError(OmniForcingError):
    """A message that is not understood; says which field is wrong and what is expected there."""


@dataclass(frozen=True)
class Limits:
    """What a server allows, told to every client.

    Attributes:
        sessions: connections at a time.
        seconds: length of a stream.
        prompt_chars: length of a prompt.
        image_bytes: size of a first frame's file.
        idle_seconds: without a sign of life, or paused, after which a session ends.
        lead_seconds: of the stream that may be generated ahead of the player, a block more at most.
        mistakes: messages that are not understood, after which a session ends.
    """

    sessions: int = 4
    seconds: float = 600.0
    prompt_chars: int = 1000
    image_bytes: int = IMAGE_BYTES
    idle_seconds: float = 60.0
    lead_seconds: float = 3.0
    mistakes: int = 10


@dataclass(frozen=True)
class Start:
    """Begin the stream."""

    request: Request
    image: bool
    paced: bool


@dataclass(frozen=True)
class Steer:
    """Follow another prompt; ``id`` comes back in the answers."""

    id: int
    prompt: str
    rewrite: bool


@dataclass(frozen=True)
class Position:
    """Where the player is, in seconds, and how often it has run dry so far."""

    seconds: float
    stalls: int


@dataclass(frozen=True)
class Command:
    """``pause``, ``resume`` or ``stop``."""

    name: str


Message = Start | Steer | Position | Command


class _Fields:
    """A json object whose fields are taken one by one, so that what is left over is unknown."""

    def __init__(self, kind: str, values: dict[str, Any]) -> None:
        self._kind, self._values = kind, values

    def take(self, name: str, kind: type, default: Any = ...) -> Any:
        value = self._values.pop(name, default)
        if value is ...:
            raise ProtocolError("serving.missing-field", f"{self._kind!r} lacks the field {name!r}")
        fits = isinstance(value, kind) and isinstance(value, bool) == (kind is bool)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            fits, value = True, float(value)
        if value is not default and not fits:
            raise ProtocolError(
                "serving.bad-field",
                f"{self._kind!r}: {name!r} is {type(value).__name__}, expected {kind.__name__}",
            )
        return value

    def finish(self) -> None:
        if self._values:
            raise ProtocolError(
                "serving.unknown-field",
                f"{self._kind!r} has the unknown field {min(self._values)!r}",
            )


def parse(text: str, limits: Limits) -> Message:
    """A client's text message.

    Raises:
        ProtocolError: if it is no json object, of an unknown type, or a field is missing, unknown or of the wrong type.
        RequestError: if what it asks for is beyond the limits or cannot be streamed.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(
            "serving.malformed-message",
            f"the message is not json ({str(error)[:80]}); docs/protocol.md lists the messages",
        ) from error
    if not isinstance(values, dict) or not isinstance(values.get("type"), str):
        raise ProtocolError(
            "serving.malformed-message",
            'a message is a json object with a "type"; docs/protocol.md lists them',
        )
    kind = values.pop("type")
    if kind not in _READERS:
        raise ProtocolError(
            "serving.unknown-message",
            f"there is no message of type {kind[:40]!r}; known are {', '.join(_READERS)}",
        )
    fields = _Fields(kind, values)
    message = _READERS[kind](fields, limits)
    fields.finish()
    return message


def _prompt(fields: _Fields, limits: Limits) -> str:
    prompt: str = fields.take("prompt", str)
    if len(prompt) > limits.prompt_chars:
        raise RequestError(
            "serving.prompt-too-long",
            f"the prompt has {len(prompt):,} characters, at most {limits.prompt_chars:,} are taken; shorten it",
        )
    check_prompt(prompt)
    return prompt


def _start(fields: _Fields, limits: Limits) -> Start:
    prompt, seconds = _prompt(fields, limits), fields.take("seconds", float, limits.seconds)
    if seconds > limits.seconds:
        raise RequestError(
            "serving.stream-too-long",
            f"a stream of {seconds:g} seconds is too long; this server allows {limits.seconds:g}",
        )
    request = Request(prompt, seconds, fields.take("seed", int, 0))
    return Start(request, fields.take("image", bool, False), fields.take("paced", bool, True))


def _steer(fields: _Fields, limits: Limits) -> Steer:
    return Steer(
        fields.take("id", int), _prompt(fields, limits), fields.take("rewrite", bool, False)
    )


def _position(fields: _Fields, _: Limits) -> Position:
    seconds, stalls = fields.take("seconds", float), fields.take("stalls", int, 0)
    if not math.isfinite(seconds) or seconds < 0 or stalls < 0:
        raise ProtocolError(
            "serving.bad-field",
            f"'position': 'seconds' and 'stalls' must be 0 or more, found {seconds} and {stalls}",
        )
    return Position(seconds, stalls)


_READERS: dict[str, Callable[[_Fields, Limits], Message]] = {
    "start": _start,
    "prompt": _steer,
    "position": _position,
    "pause": lambda *_: Command("pause"),
    "resume": lambda *_: Command("resume"),
    "stop": lambda *_: Command("stop"),
}
