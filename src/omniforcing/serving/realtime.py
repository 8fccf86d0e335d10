"""The second wire: ``/v1/realtime/video`` of vLLM-Omni, whose clients may use this server.

Written from its published messages, those of release 0.30.0 and, for pacing and sound, of its later
recipes. Each is translated into a message of ``protocol`` and back, so that a session does the
same whichever wire it speaks. docs/reference/protocol.md says what differs from theirs.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping
from typing import Any

from omniforcing.core.errors import OmniForcingError, quoted
from omniforcing.core.layout import FPS
from omniforcing.media.picture import picture_alone
from omniforcing.serving.protocol.messages import Command, Message, ProtocolError
from omniforcing.serving.protocol.reading import build, read_object
from omniforcing.serving.realtime_messages import (
    CLIENT,
    read_event,
    read_event_id,
    read_message,
    read_position,
    read_start,
)
from omniforcing.serving.service import Service
from omniforcing.streaming.live import Chunk

PATH = "/v1/realtime/video"
# The codes that its clients know; other errors have ours.
_THEIR_CODES = {
    "serving.used-event": "event_id_conflict",
    "serving.unsupported-event": "interaction_failed",
}


def wants_sound(query: Mapping[str, str]) -> bool:
    """Read ``?generate_sound=false``, for players that cannot be taught the field of that name."""
    return query.get("generate_sound", "").lower() not in ("false", "0")


class RealtimeWire:
    """The second wire of one session.

    Args:
        service: engine and limits of the server.
        sound: whether the stream has sound unless the client says otherwise.
    """

    subprotocol: str | None = None
    retries = False  # as there, where a bad start ends the connection; its clients wait for that

    def __init__(self, service: Service, sound: bool = True) -> None:
        about = service.about()
        self._service, self._sound = service, sound
        self._offer = {"model": about["preset"]}
        self._offer |= {name: about[name] for name in ("width", "height", "fps")}
        self._sample_rate = about["sample_rate"]
        self._request_id: str | None = None
        self._events: list[str | None] = []  # names of interactions; a change's number is its place
        self._event: str | None = None  # name of the interaction that is being answered
        self._started: list[tuple[int, str]] = []  # blocks that are not sent yet, and what began
        self._warnings: list[str] = []
        self._chunks = 0

    # --- from the client ---

    def parse(self, text: str) -> Message:
        """Read a text message of the client."""
        self._event, self._warnings = None, []
        kind, values = read_object(text, CLIENT)
        if self._request_id is None and kind != "session.start":
            raise ProtocolError(
                "serving.not-begun",
                f"the stream has not begun; send 'session.start' before {kind!r}",
            )
        if kind == "session.start":
            start, sound = read_start(values, self._offer, self._service.limits)
            if self._request_id is None:
                self._sound = self._sound and sound
            return start
        fields = read_message(kind, values)
        if kind == "session.interaction":
            return self._steer(fields["interaction"])
        if kind == "session.playback":
            return read_position(fields["position_seconds"])
        return Command(kind.removeprefix("session."))

    def first_frame(self, data: bytes) -> bytes:
        """Refuse a binary message, which no client sends on this wire."""
        raise ProtocolError(
            "serving.unexpected-binary",
            f"a binary message of {len(data):,} bytes came; clients send json texts, and a first "
            "frame as a data: URL in 'image_reference' of 'session.start'",
        )

    def _steer(self, interaction: Mapping[str, Any]) -> Message:
        self._event = name = read_event_id(interaction)
        if name in self._events:
            raise ProtocolError(
                "serving.used-event",
                f"there was an interaction {quoted(name)} already; give each a name of its own",
            )
        change = {"id": len(self._events), "prompt": read_event(interaction)}
        message = build("prompt", change, self._service.limits)
        self._events.append(name)
        return message

    # --- to the client ---

    def compose(self, kind: str, values: Mapping[str, Any]) -> list[str]:
        """Write a message of ``protocol.declared.SERVER`` as theirs; some have no counterpart."""
        match kind:
            case "started":
                return self._begin(values)
            case "received":
                return [self._text("session.interaction.queued", event_id=self._event)]
            case "applied":
                name = self._events[values["id"]]
                assert name is not None
                self._started.append((values["block"], name))
            case "warning":
                self._warnings.append(values["message"])
            case "pong":
                return [json.dumps({"type": "session.pong"})]
            case "error":
                return [self._error(values["code"], values["message"], values["fatal"])]
            case "ended":
                return self._end(values["reason"])
        return []

    def media(self, data: bytes, chunk: Chunk | None, _encode_s: float) -> list[str | bytes]:
        """Write a piece of the stream after what is known of it; nothing for an empty piece."""
        data = data if self._sound else picture_alone(data)
        if not data:
            return []
        samples = chunk.samples.shape[1] if chunk is not None and self._sound else 0
        last = -1 if chunk is None else chunk.block
        started = [name for block, name in self._started if block <= last]
        self._started = [(block, name) for block, name in self._started if block > last]
        text = self._text(
            "video.chunk_metadata",
            kind="trailer" if chunk is None else "media",
            transport_chunk_index=self._chunks,
            generation_chunk_index=None if chunk is None else chunk.block,
            num_frames=0 if chunk is None else len(chunk.frames),
            byte_length=len(data),
            num_audio_samples=samples,
            audio_sample_rate=self._sample_rate,
            started_event_ids=started,
            active_event_ids=started,
            completed_event_ids=started,
        )
        self._chunks += 1
        return [text, data]

    def _begin(self, values: Mapping[str, Any]) -> list[str]:
        self._request_id = f"video_stream-{uuid.uuid4().hex}"
        config = {
            **self._offer,
            "prompt": values["prompt"],
            "num_frames": 1 + round(FPS * values["seconds"]),
            "seed": values["seed"],
            "generate_sound": self._sound,
            "audio_sample_rate": self._sample_rate,
        }
        mime = values["mime"] if self._sound else re.sub(r", mp4a[^\"]*", "", values["mime"])
        return [self._text("video.start", format="m4s", config=config, mime=mime)]

    def _error(self, code: str, message: str, fatal: bool) -> str:
        values: dict[str, Any] = {"message": message, "code": _THEIR_CODES.get(code, code)}
        if self._request_id is not None:
            values["request_id"] = self._request_id
        if self._event is not None and not fatal:
            values["event_id"] = self._event
            if code != "serving.used-event" and self._events[-1:] == [self._event]:
                self._events[-1] = None  # it may be sent again
        return json.dumps({"type": "error", **values})

    def _end(self, reason: str) -> list[str]:
        texts = []
        if reason == "idle":
            idle = OmniForcingError(
                "serving.idle",
                "the client sent no 'session.start', took nothing, or stood still without a ping, "
                "for longer than this server waits",
            )
            texts.append(self._error(idle.code, idle.message, fatal=True))
        if self._request_id is not None and reason != "failed":
            stopped = reason != "ended"
            texts.append(
                self._text("session.done", chunks=self._chunks, stopped=stopped, reason=reason)
            )
        return texts

    def _text(self, name: str, **values: Any) -> str:
        """Write a message of a session that has begun, with the warnings since the last one."""
        message = {"type": name, "request_id": self._request_id, **values}
        if self._warnings and name != "video.chunk_metadata":
            message["warnings"], self._warnings = self._warnings, []
        return json.dumps(message)
