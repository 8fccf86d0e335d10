"""Messages of a WebSocket session: every message and field, declared and checked.

docs/reference/protocol.md is generated from ``CLIENT`` and ``SERVER``. To add a message, declare
it there, build it in ``build`` if a client sends it, and handle or send it in ``Session``.
``realtime.py`` translates the messages of another server into these.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from omniforcing.core.errors import OmniForcingError, quoted
from omniforcing.streaming.request import IMAGE_BYTES, Request, RequestError, check_prompt

DEFAULT_PORT = 8765  # of `omniforcing serve`
VERSION = 2
SUBPROTOCOL = f"omniforcing.v{VERSION}"
MOST_WHOLE = 2**64  # whole numbers of messages are smaller than this


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
    """``pause``, ``resume``, ``stop`` or, of ``realtime.py``, ``ping``, by its name."""

    name: str


Message = Start | Steer | Scales | Position | Command


@dataclass(frozen=True)
class Field:
    """One field of a message.

    Args:
        kind: type of its value; whole numbers are taken for a float.
        about: what it means.
        default: value if it is left out; ``...`` for a field that must be there.
    """

    kind: type
    about: str
    default: Any = ...


@dataclass(frozen=True)
class Declared:
    """A message: what it is for, and its fields by name."""

    about: str
    fields: Mapping[str, Field] = field(default_factory=dict)


_NUMBER = Field(int, "the client's own number of the change")
CLIENT: dict[str, Declared] = {
    "start": Declared(
        "begin the stream; once",
        {
            "prompt": Field(str, "what to show and hear"),
            "seconds": Field(float, "length; by default the server's limit", None),
            "seed": Field(int, "of all noise", 0),
            "image": Field(bool, "a first frame was sent before, as a binary message", False),
            "paced": Field(bool, "generate only so far ahead of the last `position`", True),
        },
    ),
    "prompt": Declared(
        "follow another prompt, from the next block that is not generated yet, or a later one",
        {
            "id": _NUMBER,
            "prompt": Field(str, "what to show and hear"),
            "rewrite": Field(bool, "also repaint what the student remembers", False),
            "at": Field(float, "second of the stream to begin at; past or none: at once", None),
        },
    ),
    "scales": Declared(
        "other scales of the server's LoRAs (`omniforcing serve --lora`), from the next block that "
        "is not generated yet",
        {"id": _NUMBER, "scales": Field(list, "a number for each LoRA")},
    ),
    "position": Declared(
        "where the player is; as often as blocks are wanted",
        {
            "seconds": Field(float, "place in the stream"),
            "stalls": Field(int, "how often the player has run dry so far", 0),
        },
    ),
    "pause": Declared("generate no further block until `resume`"),
    "resume": Declared("undo `pause`"),
    "stop": Declared("end the stream"),
}
SERVER: dict[str, Declared] = {
    "hello": Declared(
        "first",
        {
            "protocol": Field(int, "version"),
            "token": Field(bool, "whether clients must show one"),
            "limits": Field(dict, "see below"),
            "width": Field(int, "of the picture, pixels"),
            "height": Field(int, "of the picture, pixels"),
            "fps": Field(int, "frames per second"),
            "sample_rate": Field(int, "samples per second"),
            "preset": Field(str, "with which the student was trained"),
        },
    ),
    "started": Declared(
        "the stream is open",
        {
            "mime": Field(str, "what `MediaSource.addSourceBuffer` wants"),
            "prompt": Field(str, "as asked"),
            "seconds": Field(float, "as asked"),
            "seed": Field(int, "as asked"),
        },
    ),
    "block": Declared(
        "before each block's media",
        {
            "block": Field(int, "index"),
            "prompt": Field(str, "that it follows"),
            "start": Field(float, "of its frames, seconds of the stream"),
            "end": Field(float, "of its frames"),
            "generate_s": Field(float, "seconds of generating"),
            "decode_s": Field(float, "seconds of decoding"),
            "encode_s": Field(float, "seconds of encoding"),
            "elapsed_s": Field(float, "seconds from the request until it was decoded"),
            "waited_s": Field(float, "seconds that the stream waited for the client"),
            "bytes": Field(int, "of its media"),
        },
    ),
    "warning": Declared(
        "a prompt is taken, but has words that the text encoder never saw",
        {"code": Field(str, "kind of warning"), "message": Field(str, "a sentence for people")},
    ),
    "received": Declared("a `prompt` or `scales` was understood", {"id": _NUMBER}),
    "applied": Declared(
        "a `prompt` or `scales` took effect",
        {
            "id": _NUMBER,
            "block": Field(int, "the first that follows it"),
            "seconds": Field(float, "where its picture begins"),
        },
    ),
    "dropped": Declared(
        "a `prompt` or `scales` came to nothing: a later one overtook it, or the stream ended",
        {
            "id": _NUMBER,
            "reason": Field(str, "in a sentence"),
            "code": Field(str, "of the error"),
        },
    ),
    "paused": Declared("as asked"),
    "resumed": Declared("as asked"),
    "error": Declared(
        "a message was not understood, or the stream failed",
        {
            "code": Field(str, "kind of error"),
            "message": Field(str, "a sentence for people"),
            "fatal": Field(bool, "whether the stream is over"),
        },
    ),
    "ended": Declared(
        "last; then the connection is closed",
        {
            "reason": Field(str, "`ended`, `stopped`, `idle`, `mistakes`, `draining` or `failed`"),
            "frames": Field(int, "sent"),
            "seconds": Field(float, "of the stream"),
        },
    ),
}


def parse(text: str, limits: Limits) -> Message:
    """Read a client's text message.

    Raises:
        ProtocolError: if it is no json object, of an unknown type, or a field is missing, unknown
            or of the wrong type.
        RequestError: if what it asks for is beyond the limits or cannot be streamed.
    """
    return build(*read_object(text, CLIENT), limits)


def read_object(text: str, known: Collection[str]) -> tuple[str, dict[str, Any]]:
    """Return the type of a json message, one of those known, and its other fields."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(
            "serving.malformed-message",
            f"the message is not json ({str(error)[:80]}); docs/reference/protocol.md lists them",
        ) from error
    if not isinstance(values, dict) or not isinstance(values.get("type"), str):
        raise ProtocolError(
            "serving.malformed-message",
            'a message is a json object with a "type"; docs/reference/protocol.md lists them',
        )
    kind = values.pop("type")
    if kind not in known:
        raise ProtocolError(
            "serving.unknown-message",
            f"there is no message of type {quoted(kind)}; known are {', '.join(known)}",
        )
    return kind, values


def compose(kind: str, values: Mapping[str, Any]) -> str:
    """Write a message of the server.

    Raises:
        ValueError: if its fields are not those that ``SERVER`` declares.
    """
    declared = SERVER[kind].fields
    if values.keys() != declared.keys():
        raise ValueError(f"{kind!r} has {sorted(values)}, declared are {sorted(declared)}")
    return json.dumps({"type": kind, **values})


def _checked(kind: str, values: dict[str, Any]) -> dict[str, Any]:
    """The declared fields of a message, defaults filled in."""
    declared = CLIENT[kind].fields
    checked = {name: read_field(kind, name, field, values) for name, field in declared.items()}
    if unknown := values.keys() - declared.keys():
        raise ProtocolError(
            "serving.unknown-field", f"{kind!r} has the unknown field {quoted(min(unknown))}"
        )
    return checked


def read_field(kind: str, name: str, wanted: Field, values: Mapping[str, Any]) -> Any:
    """Return the value of a message's field, or its default; refuse one of the wrong type."""
    if name not in values:
        if wanted.default is ...:
            raise ProtocolError("serving.missing-field", f"{kind!r} lacks the field {name!r}")
        return wanted.default
    value = values[name]
    if isinstance(value, int) and abs(value) >= MOST_WHOLE:
        # Neither a float nor a metric holds every number that JSON can write.
        raise ProtocolError(
            "serving.bad-field", f"{kind!r}: {name!r} is too large a number, {quoted(value)}"
        )
    if wanted.kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    # A bool is an int to Python, and not to a client.
    if not isinstance(value, wanted.kind) or isinstance(value, bool) != (wanted.kind is bool):
        raise ProtocolError(
            "serving.bad-field",
            f"{kind!r}: {name!r} is {type(value).__name__}, expected {wanted.kind.__name__}",
        )
    return value


def build(kind: str, values: dict[str, Any], limits: Limits) -> Message:
    """Make a client's message of its type and fields; raises as ``parse`` does."""
    fields = _checked(kind, values)
    if "prompt" in fields:
        _check_length(fields["prompt"], limits)
    if kind == "start":
        seconds = limits.seconds if fields["seconds"] is None else fields["seconds"]
        if seconds > limits.seconds:
            raise RequestError(
                "serving.stream-too-long",
                f"a stream of {seconds:g} seconds is too long; this server allows "
                f"{limits.seconds:g}",
            )
        request = Request(fields["prompt"], seconds, fields["seed"])
        return Start(request, fields["image"], fields["paced"])
    if kind == "prompt":
        if fields["at"] is not None and not 0 <= fields["at"] <= limits.seconds:
            wanted = f"from 0 to {limits.seconds:g}, found {quoted(fields['at'])}"
            raise ProtocolError("serving.bad-field", f"'prompt': 'at' must be {wanted}")
        return Steer(**fields)
    if kind == "scales":
        return Scales(fields["id"], _scales(fields["scales"]))
    if kind == "position":
        seconds, stalls = fields["seconds"], fields["stalls"]
        if not math.isfinite(seconds) or seconds < 0 or stalls < 0:
            raise ProtocolError(
                "serving.bad-field",
                "'position': 'seconds' and 'stalls' must be 0 or more, found "
                f"{quoted(seconds)} and {quoted(stalls)}",
            )
        return Position(seconds, stalls)
    return Command(kind)


def _scales(values: list[Any]) -> tuple[float, ...]:
    for value in values:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not abs(value) < MOST_WHOLE:
            raise ProtocolError(
                "serving.bad-field", f"'scales': a scale is a number, found {quoted(value)}"
            )
    return tuple(map(float, values))


def _check_length(prompt: str, limits: Limits) -> None:
    if len(prompt) > limits.prompt_chars:
        raise RequestError(
            "serving.prompt-too-long",
            f"the prompt has {len(prompt):,} characters, at most {limits.prompt_chars:,} are "
            "taken; shorten it",
        )
    check_prompt(prompt)
