"""Every message and field of the protocol, as tables; docs/reference/protocol.md shows them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


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
