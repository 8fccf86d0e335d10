"""Page of both streaming protocols: declared messages of ``serving``, and prose around them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict

from omniforcing.serving import realtime_messages
from omniforcing.serving.protocol.declared import CLIENT, SERVER, Declared, Field
from omniforcing.serving.protocol.messages import SUBPROTOCOL, VERSION, Limits
from omniforcing.serving.realtime import PATH
from omniforcing.serving.serve import MESSAGE_BYTES
from omniforcing.serving.session import MOST_WAITING

KINDS = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true or false",
    list: "list",
    dict: "object",
}


PAGE = """# The protocol of `omniforcing serve`, version {version}

Players of vLLM-Omni's realtime video endpoint find it served too: [the second wire](#the-second-wire).
What follows is our own protocol.

One WebSocket, `/stream`, one stream (`/beside`, the second one of `omniforcing serve --beside`). Control messages are JSON texts with a `type`; media are binary
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
With `at` it waits for the first block that begins at that second or later; at most {waiting} changes of a session may wait.

**Pacing.** The server generates at most `limits.lead_seconds` and a block ahead of the last `position`:
whatever is further ahead could not be steered. With `"paced": false`, for recorders, the connection alone
holds it back.

**Draining.** After SIGTERM no session is taken and `/ready` answers 503; streams go on for
`--drain-seconds`, then end with the reason `draining` and code 1001. A second signal does not wait.
Under Ray Serve the same happens when a replica is stopped, because its application is deleted, replaced
or scaled down (`drain=SECONDS`, 10 unless given). Shutting down all of Serve breaks connections at once,
for it kills its proxies first.

**Roll-over.** A server that [follows an alias](../how-to/release.md#roll-over) changes its model between sessions: `hello` tells size
and preset of the one that this session keeps to its end.

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
| `/`, `/page/NAME` | the page; its style and scripts |
| `/beside` | a WebSocket as `/stream`, of the second artifact; only with `--beside`. It counts as a session of its own |
| `/health` | 200 while the process answers |
| `/ready` | 200 if a session would be taken, else 503; `{{"ready", "reason", ...}}` and the fields of `hello`, `artifact` (sha256 of the model's), `version` (in MLflow, of a server that [follows an alias](../how-to/release.md#roll-over), else null), `behind` (null, or why it is not the version that the alias names) and `streams` (for each of its one or two: `path`, `preset`, `artifact`, `method`, `width`, `height`, `sample_rate`); with `?origin=ORIGIN` also 503 if pages of that origin may not connect |
| `/metrics` | Prometheus' text format; wants the token if there is one |

## The second wire

`{path}` speaks the messages of vLLM-Omni's endpoint of that name, as its release 0.30.0
publishes them, so that its clients play a stream of this server, from the same engine and within the
same limits. `generate_sound` and, from its later documents, pacing and the counts of samples are among them.

<!-- not run: the example client is theirs; tests/streaming/test_realtime.py plays with another one -->
```
omniforcing serve
python streaming_video_client.py --host 127.0.0.1 --port 8765 --model pocket \\
    --width 64 --height 64 --fps 24 --num-frames 241 --prompt "a red ball bounces"
```

No subprotocol is offered, and the server sends nothing until it has heard `session.start`. Origin, token,
a full server and draining are as [above](#before-it-begins). Unknown fields are passed over, and null
means left out.

| type, from the client | when | field | type of value | meaning |
|---|---|---|---|---|
{second_client}

| type, from the server | when | field | type of value | meaning |
|---|---|---|---|---|
{second_server}

What differs from theirs, and why:

- **Sound.** Every stream has a track of AAC beside H.264, in the same pieces and in sync, byte for byte what
  our own wire sends; theirs had none in 0.30.0. A program that decodes or copies the first video track does not mind.
  A browser refuses a track that its player did not name: such a player takes `mime`, or asks for the
  picture alone with `"generate_sound": false`, or, if its code cannot be changed, by the address
  `{path}?generate_sound=false`.
- **Shape.** `model`, size and rate are the artifact's; another is an error that names the right ones, never
  another picture than was asked for. `config` says what is streamed. A student has steps and guidance of its
  own: such fields and `extra_params` are passed over. Refused are {unsupported}.
- **Length.** `num_frames` counts frames. `seconds` is the length of the stream, which has one frame more:
  the first one is due at 0. With neither, the server's limit.
- **First frame.** A `data:` URL; the server fetches nothing from elsewhere.
- **Interactions.** A prompt, no camera. It changes at once at the next block, whatever `transition_chunks` says,
  and the three lists of ids name it in that block. One that a later one overtook is named nowhere.
- **Pace.** As there, a stream without `streaming_buffer_seconds` comes as fast as it is taken; a client that
  steers asks for a buffer of a second or more, up to `lead_seconds`, and sends `session.playback`.
- **Stalls.** A player that stands still is let go after `paused_seconds`, and a ping begins that time anew.
- **Errors.** Each has a `code`. Before `video.start` the first error ends the connection, as there; later ones
  leave the stream, up to `mistakes` of them. A refused connection is HTTP's 401, 403 or 503, as on our own wire.
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
        waiting=MOST_WAITING,
        path=PATH,
        second_client="\n".join(_rows(realtime_messages.CLIENT)),
        second_server="\n".join(_rows(realtime_messages.SERVER)),
        unsupported=", ".join(f"`{name}`" for name in realtime_messages.UNSUPPORTED),
    )


def _messages(declared: Mapping[str, Declared]) -> str:
    head = ["| type | when | field | type of value | meaning |", "|---|---|---|---|---|"]
    return "\n".join([*head, *_rows(declared)])


def _rows(declared: Mapping[str, Declared]) -> list[str]:
    lines = []
    for kind, message in declared.items():
        first = f"| `{kind}` | {message.about} |"
        rows = [_field(name, field) for name, field in message.fields.items()] or [" | | |"]
        lines += [f"{first if index == 0 else '| | |'}{row}" for index, row in enumerate(rows)]
    return lines


def _field(name: str, field: Field) -> str:
    default = ""
    if field.default is None:
        default = ", may be left out"
    elif field.default is not ...:
        default = f", {json.dumps(field.default)} if left out"
    return f" `{name}` | {KINDS[field.kind]}{default} | {field.about} |"
