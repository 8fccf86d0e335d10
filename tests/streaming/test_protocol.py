"""Control messages: what is understood, and one sentence for everything else."""

from __future__ import annotations

import json
from typing import Any

import pytest

from omniforcing.core.errors import OmniForcingError
from omniforcing.serving.protocol import Command, Limits, Position, Start, Steer, parse
from omniforcing.streaming.request import Request

LIMITS = Limits(seconds=60)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"type": "start", "prompt": "a"}', Start(Request("a", 60.0), image=False, paced=True)),
        (
            '{"type": "start", "prompt": "a", "seconds": 2, "seed": 3, "image": true, "paced": false}',
            Start(Request("a", 2.0, 3), image=True, paced=False),
        ),
        ('{"type": "prompt", "id": 7, "prompt": "b"}', Steer(7, "b", rewrite=False)),
        ('{"type": "position", "seconds": 1}', Position(1.0, 0)),
        ('{"type": "stop"}', Command("stop")),
    ],
)
def test_messages_are_understood(text: str, message: Any) -> None:
    assert parse(text, LIMITS) == message


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is no json"),
        ("[" * 100_000, "is no json"),
        ("[1]", 'json object with a "type"'),
        ('{"type": 3}', 'json object with a "type"'),
        ('{"type": "dance"}', "no message of type 'dance'; known are start"),
        ('{"type": "stop", "now": true}', "'stop' has the unknown field 'now'"),
        ('{"type": "start"}', "'start' lacks 'prompt'"),
        ('{"type": "start", "prompt": ""}', "the prompt is ''"),
        ('{"type": "start", "prompt": null}', "'prompt' is NoneType, expected str"),
        ('{"type": "start", "prompt": "a", "seconds": 61}', "this server allows 60"),
        ('{"type": "start", "prompt": "a", "seconds": NaN}', "cannot last nan"),
        ('{"type": "start", "prompt": "a", "seconds": 0}', "cannot last 0.0"),
        ('{"type": "start", "prompt": "a", "seed": 1.5}', "'seed' is float, expected int"),
        ('{"type": "start", "prompt": "a", "seed": true}', "'seed' is bool, expected int"),
        ('{"type": "start", "prompt": "a", "image": 1}', "'image' is int, expected bool"),
        ('{"type": "prompt", "id": 1, "prompt": " "}', "the prompt is ' '"),
        ('{"type": "position", "seconds": -1}', "counts seconds and stalls from 0"),
        (
            json.dumps({"type": "start", "prompt": "x" * 1_000_000}),
            "has 1,000,000 characters, at most 1,000",
        ),
    ],
)
def test_a_bad_message_is_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(OmniForcingError, match=r"^[^\n]{1,300}$") as error:
        parse(text, LIMITS)
    assert sentence in str(error.value)
