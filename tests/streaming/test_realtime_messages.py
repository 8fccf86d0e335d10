"""Messages of the second wire, without a server."""

from __future__ import annotations

import json
from typing import Any

import pytest

from omniforcing.core.errors import OmniForcingError
from omniforcing.serving.protocol.messages import Limits, Position, Start, Steer
from omniforcing.serving.realtime import RealtimeWire
from omniforcing.serving.service import Service
from omniforcing.streaming.engine import Engine
from omniforcing.streaming.request import Request
from tests.support.streams import PROMPT


def start(**values: Any) -> str:
    return json.dumps({"type": "session.start", "prompt": PROMPT, **values})


def begun(engine: Engine) -> RealtimeWire:
    wire = RealtimeWire(Service(engine, Limits(seconds=60), []))
    wire.parse(start())
    wire.compose("started", {"mime": "", "prompt": PROMPT, "seconds": 60.0, "seed": 0})
    return wire


@pytest.mark.parametrize(
    ("fields", "seconds", "seed"),
    [
        ({}, 60.0, 0),
        ({"num_frames": 49, "seconds": "4"}, 2.0, 0),
        ({"seconds": "4", "model": None, "fps": None, "user": "me"}, 4.0, 0),
        ({"video_params": {"width": 64, "num_frames": 25}}, 1.0, 0),
        ({"sampling_params": {"seed": 5, "num_frames": 25, "guidance_scale": 3}}, 1.0, 5),
        ({"sampling_params": {"seed": 5}, "seed": 6, "size": "64x64", "fps": 24.0}, 60.0, 6),
    ],
)
def test_starts_are_understood(
    engine: Engine, fields: dict[str, Any], seconds: float, seed: int
) -> None:
    wire = RealtimeWire(Service(engine, Limits(seconds=60), []))
    message = wire.parse(start(**fields))
    assert message == Start(Request(PROMPT, seconds, seed), image=False, paced=False)


def test_other_messages_are_understood(engine: Engine) -> None:
    wire = begun(engine)
    interaction = {"event_id": "e", "event": {"prompt": "b"}, "transition_chunks": None}
    text = json.dumps({"type": "session.interaction", "interaction": interaction})
    assert wire.parse(text) == Steer(0, "b", rewrite=False)
    text = json.dumps({"type": "session.playback", "position_seconds": 1})
    assert wire.parse(text) == Position(1.0, 0)


def test_an_interaction_is_said_to_begin_with_its_block_however_late_that_is_heard(
    engine: Engine,
) -> None:
    wire = begun(engine)
    for name in ("a", "b"):
        interaction = {"event_id": name, "event": {"prompt": "b"}}
        wire.parse(json.dumps({"type": "session.interaction", "interaction": interaction}))
    wire.compose("dropped", {"id": 0, "reason": "", "code": "streaming.overtaken"})
    assert wire.compose("applied", {"id": 1, "block": 2, "seconds": 1.0}) == []
    with engine.stream(PROMPT, 3) as stream:
        texts = [wire.media(b"piece", chunk, 0.0)[0] for chunk in stream]
    assert wire.media(b"", None, 0.0) == []
    found = [json.loads(text)["started_event_ids"] for text in texts]
    assert found == [[], [], ["b"], []]


def test_a_message_that_came_to_nothing_leaves_its_name_free(engine: Engine) -> None:
    wire = begun(engine)
    text = json.dumps(
        {"type": "session.interaction", "interaction": {"event_id": "a", "event": {"prompt": "b"}}}
    )
    wire.parse(text)
    wire.compose("error", {"code": "codec.prompt-too-long", "message": "", "fatal": False})
    assert wire.parse(text) == Steer(1, "b", rewrite=False)
    with pytest.raises(OmniForcingError):
        wire.parse(text)
