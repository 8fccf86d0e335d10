"""Messages of the second wire, declared and checked; ``realtime.py`` says what they are.

docs/reference/protocol.md is generated from ``CLIENT`` and ``SERVER``.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
import uuid
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from omniforcing.core.errors import quoted
from omniforcing.core.layout import FPS
from omniforcing.serving.protocol.declared import Declared, Field
from omniforcing.serving.protocol.messages import Limits, Position, ProtocolError, Start
from omniforcing.serving.protocol.reading import build, read_field

EVENT_CHARS = 200  # of the name of an interaction, which answers repeat
# Fields of a start that ask for something else than this student makes, when they have a value.
UNSUPPORTED = ("negative_prompt", "lora", "video_reference", "audio_reference")

CLIENT: dict[str, Declared] = {
    "session.start": Declared(
        "first, once",
        {
            "prompt": Field(str, "what to show and hear"),
            "model": Field(str, "the preset that `/ready` names, if given", None),
            "format": Field(str, "`m4s`", "m4s"),
            "num_frames": Field(int, "length in frames, 2 or more", None),
            "seconds": Field(str, "length in whole seconds, if `num_frames` is left out", None),
            "fps": Field(float, f"{FPS}, if given", None),
            "width": Field(int, "the server's, if given", None),
            "height": Field(int, "the server's, if given", None),
            "size": Field(str, "the same as `WIDTHxHEIGHT`", None),
            "video_params": Field(dict, "the same, `fps` and `num_frames` in an object", None),
            "sampling_params": Field(dict, "any of these fields in an object", None),
            "seed": Field(int, "of all noise", 0),
            "image_reference": Field(dict, '`{"image_url": "data:..."}`, the first frame', None),
            "generate_sound": Field(bool, "false for the picture alone", True),
            "streaming_buffer_seconds": Field(
                float, "keep at most so far ahead of `session.playback`", None
            ),
        },
    ),
    "session.interaction": Declared(
        "follow another prompt, from the next block that is not generated yet",
        {
            "interaction": Field(
                dict, '`{"event_id": ..., "event": {"prompt": ...}, "transition_chunks": ...}`'
            )
        },
    ),
    "session.playback": Declared(
        "where the player is, of a start with `streaming_buffer_seconds`",
        {"position_seconds": Field(float, "place in the stream")},
    ),
    "session.ping": Declared("the player stands still, and is to keep its stream"),
    "session.stop": Declared("end the stream"),
}
_REQUEST = Field(str, "name of the session")
_EVENT = Field(str, "name of the interaction")
SERVER: dict[str, Declared] = {
    "video.start": Declared(
        "the stream is open",
        {
            "request_id": _REQUEST,
            "format": Field(str, "`m4s`"),
            "config": Field(
                dict,
                "what will be streamed: `model`, `prompt`, `width`, `height`, `fps`, `num_frames`, "
                "`seed`, `generate_sound`, `audio_sample_rate`",
            ),
            "mime": Field(str, "what `MediaSource.addSourceBuffer` wants; not theirs"),
            "warnings": Field(list, "sentences on words that the text encoder never saw, if any"),
        },
    ),
    "video.chunk_metadata": Declared(
        "immediately before each binary message",
        {
            "request_id": _REQUEST,
            "kind": Field(str, "`media`, or `trailer` for the end of the sound"),
            "transport_chunk_index": Field(int, "counts the binary messages"),
            "generation_chunk_index": Field(int, "the block; null for a trailer"),
            "num_frames": Field(int, "frames in it"),
            "byte_length": Field(int, "of the binary message"),
            "num_audio_samples": Field(int, "samples in it, of each channel"),
            "audio_sample_rate": Field(int, "samples per second"),
            "started_event_ids": Field(list, "interactions that this block is the first to follow"),
            "active_event_ids": Field(list, "the same"),
            "completed_event_ids": Field(list, "the same: a prompt changes at once"),
        },
    ),
    "session.interaction.queued": Declared(
        "an interaction was understood",
        {
            "request_id": _REQUEST,
            "event_id": _EVENT,
            "warnings": Field(list, "as in `video.start`, if any"),
        },
    ),
    "session.pong": Declared("answers a ping"),
    "error": Declared(
        "a message was not understood, or the stream failed",
        {
            "message": Field(str, "a sentence for people"),
            "code": Field(str, "`event_id_conflict`, `interaction_failed`, or one of ours"),
            "request_id": Field(str, "once there is one"),
            "event_id": Field(str, "of an interaction that failed"),
        },
    ),
    "session.done": Declared(
        "last; then the connection is closed",
        {
            "request_id": _REQUEST,
            "chunks": Field(int, "binary messages sent"),
            "stopped": Field(bool, "whether it ended before its length"),
            "reason": Field(str, "as `ended` has it above; not theirs"),
        },
    ),
}


def read_message(kind: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The declared fields of a client's message, defaults filled in.

    Fields that are null count as left out, and unknown ones are passed over, as there.

    Raises:
        ProtocolError: if one is missing or of the wrong type.
    """
    given, declared = _given(values), CLIENT[kind].fields
    return {name: read_field(kind, name, field, given) for name, field in declared.items()}


def read_start(
    values: Mapping[str, Any], offer: Mapping[str, Any], limits: Limits
) -> tuple[Start, bool]:
    """Read a ``session.start``.

    Args:
        values: its fields.
        offer: what this server streams: ``model``, ``width``, ``height`` and ``fps``.
        limits: what clients may ask for.

    Returns:
        The start of a stream, and whether it shall have sound.

    Raises:
        OmniForcingError: if it has a mistake, or asks for what this server does not stream.
    """
    kind = "session.start"
    values = {**(read_message(kind, values)["sampling_params"] or {}), **_given(values)}
    if asked_for := [name for name in UNSUPPORTED if values.get(name)]:
        raise ProtocolError(
            "serving.unsupported-field",
            f"{kind!r}: this server's student has no {asked_for[0]!r}; leave it out",
        )
    fields = read_message(kind, values)
    if fields["format"] != "m4s":
        raise ProtocolError(
            "serving.bad-field",
            f"{kind!r}: 'format' is {quoted(fields['format'])}, expected m4s, fragmented MP4",
        )
    if (lead := fields["streaming_buffer_seconds"]) is not None and not 0 < lead < math.inf:
        raise ProtocolError(
            "serving.bad-field",
            f"{kind!r}: 'streaming_buffer_seconds' is {quoted(lead)}, expected more than 0",
        )
    params = _params(fields)
    for name in ("model", "width", "height", "fps"):
        if params[name] not in (None, offer[name]):
            raise ProtocolError(
                "serving.other-shape",
                f"{kind!r}: {name!r} is {quoted(params[name])}; this server streams the model "
                f"{offer['model']} in {offer['width']}x{offer['height']} pixels at {offer['fps']} "
                "frames a second",
            )
    image, seconds = _image(fields["image_reference"]), _seconds(params)
    asked = {
        "prompt": fields["prompt"],
        "seed": fields["seed"],
        "image": image is not None,
        "paced": lead is not None,
    }
    start = build("start", asked if seconds is None else asked | {"seconds": seconds}, limits)
    assert isinstance(start, Start)
    start = replace(start, lead=math.inf if lead is None else lead, first_frame=image)
    return start, fields["generate_sound"]


def read_event_id(interaction: Mapping[str, Any]) -> str:
    """Return the name of an interaction, or a new one if it has none."""
    kind, optional = "session.interaction", Field(str, "", uuid.uuid4().hex)
    name: str = read_field(kind, "event_id", optional, _given(interaction))
    if not 0 < len(name) <= EVENT_CHARS:
        raise ProtocolError(
            "serving.bad-field",
            f"{kind!r}: 'event_id' has {len(name):,} characters, expected 1 to {EVENT_CHARS}",
        )
    return name


def read_event(interaction: Mapping[str, Any]) -> str:
    """Return the prompt that an interaction changes to."""
    kind, given = "session.interaction", _given(interaction)
    chunks = read_field(kind, "transition_chunks", Field(float, "", 0.0), given)
    if not 0 <= chunks < math.inf or chunks != round(chunks):
        raise ProtocolError(
            "serving.bad-field",
            f"{kind!r}: 'transition_chunks' is {quoted(chunks)}, expected a whole number from 0 on",
        )
    event = _given(read_field(kind, "event", Field(dict, ""), given))
    if other := event.keys() - {"prompt"}:
        raise ProtocolError(
            "serving.unsupported-event",
            f"{kind!r}: this server changes prompts, and no {quoted(min(other))}; leave it out",
        )
    prompt: str = read_field(kind, "prompt", Field(str, ""), event)
    return prompt


def read_position(seconds: float) -> Position:
    """Check the place of a ``session.playback``."""
    if not 0 <= seconds < math.inf:
        raise ProtocolError(
            "serving.bad-field",
            f"'session.playback': 'position_seconds' is {quoted(seconds)}, expected 0 or more",
        )
    return Position(seconds, 0)


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that have a value; theirs may be null, which means that they are left out."""
    return {name: value for name, value in values.items() if value is not None}


def _params(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Model, shape and length that a start asks for, wherever it says them."""
    kind, inner = "session.start", _given(fields["video_params"] or {})
    declared = CLIENT[kind].fields
    params = {"model": fields["model"], "seconds": fields["seconds"]}
    for name in ("width", "height", "fps", "num_frames"):
        value = fields[name]
        params[name] = read_field(kind, name, declared[name], inner) if value is None else value
    if (size := fields["size"]) is not None:
        if not re.fullmatch(r"\d{1,6}x\d{1,6}", size, re.ASCII):
            raise ProtocolError(
                "serving.bad-field", f"{kind!r}: 'size' is {quoted(size)}, expected WIDTHxHEIGHT"
            )
        params["width"], params["height"] = map(int, size.split("x"))
    return params


def _seconds(params: Mapping[str, Any]) -> float | None:
    """Length of a stream, of which ``num_frames`` says more than ``seconds``; None for neither."""
    num_frames, seconds = params["num_frames"], params["seconds"]
    if num_frames is not None:
        if num_frames < 2:
            raise ProtocolError(
                "serving.bad-field",
                f"'session.start': 'num_frames' is {quoted(num_frames)}, expected 2 or more",
            )
        return (num_frames - 1) / FPS
    if seconds is None:
        return None
    if not re.fullmatch(r"[1-9]\d{0,8}", seconds, re.ASCII):
        raise ProtocolError(
            "serving.bad-field",
            f"'session.start': 'seconds' is {quoted(seconds)}, expected a whole number in quotes",
        )
    return float(seconds)


def _image(reference: Mapping[str, Any] | None) -> bytes | None:
    """File of the first frame that a start brings; this server fetches none from elsewhere."""
    if reference is None:
        return None
    url = reference.get("image_url")
    head, comma, content = url.partition(",") if isinstance(url, str) else ("", "", "")
    if not (head.startswith("data:") and head.endswith(";base64") and comma):
        raise ProtocolError(
            "serving.bad-field",
            "'session.start': 'image_reference' has no 'image_url' of the kind "
            f"data:image/png;base64,... but {quoted(url)}; send the image itself",
        )
    try:
        return base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ProtocolError(
            "serving.bad-field",
            f"'session.start': the image of 'image_reference' is no base64 ({error})",
        ) from error
