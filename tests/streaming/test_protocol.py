"""Control messages: what is understood, and one sentence for everything else."""

from __future__ import annotations

import json
from typing import Any

import pytest

from omniforcing.core.errors import OmniForcingError
from omniforcing.serving.protocol.messages import Command, Limits, Position, Scales, Start, Steer
from omniforcing.serving.protocol.reading import compose, parse
from omniforcing.streaming.request import Request
from tests.support.refusals import check

LIMITS = Limits(seconds=60)
HUGE = "1" + "0" * 600  # JSON may write it, no float holds it


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"type": "start", "prompt": "a"}', Start(Request("a", 60.0), image=False, paced=True)),
        (
            '{"type": "start", "prompt": "a", "seconds": 2, "seed": 3, '
            '"image": true, "paced": false}',
            Start(Request("a", 2.0, 3), image=True, paced=False),
        ),
        ('{"type": "prompt", "id": 7, "prompt": "b"}', Steer(7, "b", rewrite=False)),
        ('{"type": "prompt", "id": 7, "prompt": "b", "at": 60}', Steer(7, "b", False, 60.0)),
        ('{"type": "scales", "id": 8, "scales": [0.5, 1]}', Scales(8, (0.5, 1.0))),
        ('{"type": "position", "seconds": 1}', Position(1.0, 0)),
        ('{"type": "stop"}', Command("stop")),
    ],
)
def test_messages_are_understood(text: str, message: Any) -> None:
    assert parse(text, LIMITS) == message


@pytest.mark.parametrize(
    ("text", "code", "named"),
    [
        ("", "serving.malformed-message", "json"),
        ("[" * 100_000, "serving.malformed-message", "json"),
        ("[1]", "serving.malformed-message", '"type"'),
        ('{"type": 3}', "serving.malformed-message", '"type"'),
        ('{"type": "dance"}', "serving.unknown-message", "'dance'; known are start"),
        ('{"type": "stop", "now": true}', "serving.unknown-field", "'now'"),
        ('{"type": "start"}', "serving.missing-field", "'prompt'"),
        ('{"type": "start", "prompt": ""}', "streaming.no-prompt", "''"),
        (
            '{"type": "start", "prompt": null}',
            "serving.bad-field",
            "'prompt' is NoneType, expected str",
        ),
        ('{"type": "start", "prompt": "a", "seconds": 61}', "serving.stream-too-long", "60"),
        ('{"type": "start", "prompt": "a", "seconds": NaN}', "streaming.no-time", "nan"),
        ('{"type": "start", "prompt": "a", "seconds": 0}', "streaming.no-time", "0.0"),
        (
            '{"type": "start", "prompt": "a", "seed": 1.5}',
            "serving.bad-field",
            "'seed' is float, expected int",
        ),
        (
            '{"type": "start", "prompt": "a", "seed": true}',
            "serving.bad-field",
            "'seed' is bool, expected int",
        ),
        (
            '{"type": "start", "prompt": "a", "image": 1}',
            "serving.bad-field",
            "'image' is int, expected bool",
        ),
        ('{"type": "prompt", "id": 1, "prompt": " "}', "streaming.no-prompt", "' '"),
        ('{"type": "prompt", "id": 1, "prompt": "a", "at": -1}', "serving.bad-field", "-1"),
        ('{"type": "prompt", "id": 1, "prompt": "a", "at": NaN}', "serving.bad-field", "nan"),
        ('{"type": "prompt", "id": 1, "prompt": "a", "at": 60.5}', "serving.bad-field", "0 to 60"),
        ('{"type": "scales", "id": 1, "scales": 0.5}', "serving.bad-field", "expected list"),
        ('{"type": "scales", "id": 1, "scales": [NaN]}', "serving.bad-field", "nan"),
        ('{"type": "scales", "id": 1, "scales": [true]}', "serving.bad-field", "True"),
        (f'{{"type": "scales", "id": 1, "scales": ["{"x" * 900}"]}}', "serving.bad-field", "xxx"),
        ('{"type": "position", "seconds": -1}', "serving.bad-field", "-1"),
        ('{"type": "position", "seconds": 1e999}', "serving.bad-field", "inf"),
        (f'{{"type": "position", "seconds": {HUGE}}}', "serving.bad-field", "'seconds'"),
        (f'{{"type": "position", "seconds": -{HUGE}}}', "serving.bad-field", "'seconds'"),
        (
            f'{{"type": "position", "seconds": 1, "stalls": {HUGE}}}',
            "serving.bad-field",
            "'stalls'",
        ),
        (f'{{"type": "prompt", "id": {HUGE}, "prompt": "a"}}', "serving.bad-field", "'id'"),
        (
            f'{{"type": "start", "prompt": "a", "seconds": {HUGE}}}',
            "serving.bad-field",
            "'seconds'",
        ),
        (f'{{"type": "start", "prompt": "a", "seed": {HUGE}}}', "serving.bad-field", "'seed'"),
        (
            f'{{"type": "start", "prompt": "a", "image": {HUGE}}}',
            "serving.bad-field",
            "'image'",
        ),
        (f'{{"type": "stop", "{"x" * 10_000}": 1}}', "serving.unknown-field", "'xxx"),
        (f'{{"type": "{"y" * 10_000}"}}', "serving.unknown-message", "'yyy"),
        (f'{{"type": "start", "prompt": "{" " * 900}"}}', "streaming.no-prompt", "' "),
        ('{"type": "start", "prompt": "a \\ud800 b"}', "streaming.bad-prompt", "character 3"),
        (f'{{"type": "start", "seconds": {"9" * 5000}}}', "serving.malformed-message", "json"),
        (
            json.dumps({"type": "start", "prompt": "x" * 1_000_000}),
            "serving.prompt-too-long",
            "1,000,000 characters, at most 1,000",
        ),
    ],
)
def test_a_bad_message_is_one_sentence(text: str, code: str, named: str) -> None:
    with pytest.raises(OmniForcingError) as error:
        parse(text, LIMITS)
    check(error.value.code, str(error.value), code, named)
    assert len(str(error.value)) <= 300


def test_a_message_of_the_server_has_the_fields_that_are_declared() -> None:
    assert json.loads(compose("received", {"id": 3})) == {"type": "received", "id": 3}
    for wrong in ({}, {"id": 3, "now": True}):
        with pytest.raises(ValueError, match="'received' has"):
            compose("received", wrong)
