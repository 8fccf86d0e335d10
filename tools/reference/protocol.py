"""Page of the streaming protocol: messages from ``serving/protocol.py`` and prose around them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict

from omniforcing.serving.protocol import (
    CLIENT,
    SERVER,
    SUBPROTOCOL,
    VERSION,
    Declared,
    Field,
    Limits,
)
from omniforcing.serving.serve import MESSAGE_BYTES

KINDS = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true or false",
    list: "list",
    dict: "object",
}


PAGE = """# The protocol of `omniforcing serve`, version {version}

One WebSocket, `/stream`, one stream. Control messages are JSON texts with a `type`; media are binary
messages. A client offers the subprotocol `{subprotocol}`; a server that speaks another version
refuses the handshake with HTTP 400. Within a version, messages from the server may gain fields, so a
client ignores those it does not know; a field that the server does not know is an error.

## Before it begins

| refused with | because |
|---|---|
| 400 | `{subprotocol}` is not among the subprotocols offered |
| 401 | the server has a token (`OMNIFORCING_TOKEN`), and neither `Authorization: Bearer TOKEN` nor the subprotocol `bearer.TOKEN` shows it |
| 403 | the page's `Origin` is neither the server's own address nor named by `--origin`; clients that are no browsers send none. With `--host 0.0.0.0` every address of the machine and its own name count as the server's; another name, or https, needs `--origin` |
| 503 | all sessions are taken, or the server is about to stop |

The body says so in a sentence: `{{"error": "...", "code": "serving.busy"}}`. A browser shows scripts
none of that: a page asks `/ready` for the reason.

## From the server

{server}

A `code` names the kind of error and stays the same from release to release ([all of
them](errors.md)); a `message` or `reason` in a sentence is for people, and its wording may change. After
an `error` that is not `fatal` the stream goes on.

Each binary message is a piece of one fragmented MP4, H.264 and AAC: the header with block 0, then one
fragment per block that begins with a keyframe, at last the end of the sound. Joined in order they are a
file. Picture and sound each come late by what their decoders look ahead (`video_look_ahead` and
`look_ahead` in the artifact's `streaming.json`).

## From the client

{client}

An image (PNG, JPEG, WebP) for the first frame is a binary message before a `start` with `"image": true`;
a bad one is answered by `error`, and the next may follow. A `prompt` with `rewrite` repaints all that the
student remembers, a first frame included, which takes as long as generating it (a prefix and a window).

**Pacing.** The server generates at most `limits.lead_seconds` and a block ahead of the last `position`:
whatever is further ahead could not be steered. With `"paced": false`, for recorders, the connection alone
holds it back.

**Draining.** After SIGTERM no session is taken and `/ready` answers 503; streams go on for
`--drain-seconds`, then end with the reason `draining` and code 1001. A second signal does not wait.
Under Ray Serve the same happens when a replica is stopped, because its application is deleted, replaced
or scaled down (`drain=SECONDS`, 10 unless given). Shutting down all of Serve breaks connections at once,
for it kills its proxies first.

## Limits

`hello` tells them; `omniforcing serve --max-NAME` sets them.

{limits}

A message of more than {megabytes} MB closes the connection with code 1009. A client is let go (1008)
that sends no `start` for `idle_seconds` or takes nothing for so long, whose player stands still for
`paused_seconds`, or that has sent `mistakes` messages that were not understood. One that answers no ping
for `idle_seconds` is gone. A page that is hidden, paused or silent answers them, and keeps its stream.

## Other paths

| path | answer |
|---|---|
| `/` | the page |
| `/health` | 200 while the process answers |
| `/ready` | 200 if a session would be taken, else 503; `{{"ready", "reason", ...}}` and the fields of `hello`; with `?origin=ORIGIN` also 503 if pages of that origin may not connect |
| `/metrics` | Prometheus' text format; wants the token if there is one |
"""


def page() -> str:
    """Fill the frame with the declared messages and the default limits."""
    limits = [f"| `{name}` | {value:,} |" for name, value in asdict(Limits()).items()]
    return PAGE.format(
        version=VERSION,
        subprotocol=SUBPROTOCOL,
        server=_messages(SERVER),
        client=_messages(CLIENT),
        limits="\n".join(["| limit | default |", "|---|---|", *limits]),
        megabytes=MESSAGE_BYTES // 1_000_000,
    )


def _messages(declared: Mapping[str, Declared]) -> str:
    lines = ["| type | when | field | type of value | meaning |", "|---|---|---|---|---|"]
    for kind, message in declared.items():
        first = f"| `{kind}` | {message.about} |"
        rows = [_field(name, field) for name, field in message.fields.items()] or [" | | |"]
        lines += [f"{first if index == 0 else '| | |'}{row}" for index, row in enumerate(rows)]
    return "\n".join(lines)


def _field(name: str, field: Field) -> str:
    default = ""
    if field.default is None:
        default = ", may be left out"
    elif field.default is not ...:
        default = f", {json.dumps(field.default)} if left out"
    return f" `{name}` | {KINDS[field.kind]}{default} | {field.about} |"
