"""A client of ``/v1/realtime/video``, written from vLLM-Omni's published messages (0.30.0) alone.

It knows nothing of this project: no module of ours is imported, and no field of ours is read.
"""

from __future__ import annotations

import json
from typing import Any

from websockets.sync.client import ClientConnection, connect

MESSAGES = {
    "video.start": {"request_id", "format", "config"},
    "video.chunk_metadata": {
        "request_id",
        "kind",
        "transport_chunk_index",
        "generation_chunk_index",
        "num_frames",
        "byte_length",
        "started_event_ids",
        "active_event_ids",
        "completed_event_ids",
    },
    "session.interaction.queued": {"request_id", "event_id"},
    "session.done": {"request_id", "chunks", "stopped"},
    "session.pong": set(),
    "error": {"message"},
}


class RealtimeClient:
    """One session; what was heard lies in ``heard``, the binary messages in ``pieces``."""

    def __init__(self, address: str, **options: Any) -> None:
        address = address.replace("http", "ws") + "/v1/realtime/video"
        self.socket: ClientConnection = connect(
            address + options.pop("query", ""), max_size=None, proxy=None, legacy=True, **options
        )
        self.heard: list[dict[str, Any]] = []
        self.pieces: list[bytes] = []

    def __enter__(self) -> RealtimeClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def say(self, kind: str, **values: Any) -> None:
        """Send a message."""
        self.socket.send(json.dumps({"type": kind, **values}))

    def interact(self, event_id: str | None, prompt: str, **more: Any) -> None:
        """Send an interaction with a prompt."""
        interaction: dict[str, Any] = {"event": {"prompt": prompt}, **more}
        if event_id is not None:
            interaction["event_id"] = event_id
        self.say("session.interaction", interaction=interaction)

    def next(self, seconds: float = 60) -> dict[str, Any]:
        """The next message, with its binary message taken where one must follow."""
        text = self.socket.recv(timeout=seconds)
        assert isinstance(text, str), "a binary message without metadata before it"
        message: dict[str, Any] = json.loads(text)
        lacking = MESSAGES[message["type"]] - message.keys()
        assert not lacking, f"{message['type']} lacks {lacking}"
        self.heard.append(message)
        if message["type"] == "video.chunk_metadata":
            piece = self.socket.recv(timeout=seconds)
            assert isinstance(piece, bytes), "metadata without a binary message behind it"
            assert message["byte_length"] == len(piece)
            assert message["transport_chunk_index"] == len(self.pieces)
            self.pieces.append(piece)
        return message

    def until(self, kind: str) -> dict[str, Any]:
        """The next message of a kind; others are kept in ``heard``."""
        while (message := self.next())["type"] != kind:
            assert message["type"] != "error", message
        return message

    def play(self, **start: Any) -> bytes:
        """Start a stream and take all of it."""
        self.say("session.start", **start)
        self.until("session.done")
        return b"".join(self.pieces)

    def of(self, kind: str) -> list[dict[str, Any]]:
        """Messages of a kind that were heard."""
        return [message for message in self.heard if message["type"] == kind]
