"""Messages of clients read and checked, and messages of the server written, as declared."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from typing import Any

from omniforcing.core.errors import quoted
from omniforcing.serving.protocol.declared import CLIENT, SERVER, Field
from omniforcing.serving.protocol.messages import (
    Command,
    Limits,
    Message,
    Position,
    ProtocolError,
    Scales,
    Start,
    Steer,
)
from omniforcing.streaming.request import Request, RequestError, check_prompt

MOST_WHOLE = 2**64  # whole numbers of messages are smaller than this


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
