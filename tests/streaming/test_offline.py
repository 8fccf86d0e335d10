"""The kept teacher beside a student: a whole clip in the place of a stream."""

from __future__ import annotations

from threading import Event

import numpy as np
import pytest

from omniforcing.core.errors import OmniForcingError
from omniforcing.serving.offline.teacher import OfflineTeacher
from omniforcing.streaming.steering import NotApplied
from tests.support.streams import PROMPT

pytestmark = pytest.mark.extended


@pytest.fixture(scope="module")
def teacher() -> OfflineTeacher:
    return OfflineTeacher()


def test_its_clip_comes_in_seconds_after_all_of_it_is_made(teacher: OfflineTeacher) -> None:
    stream = teacher.stream(PROMPT, 60, seed=1)
    chunks = list(stream)
    assert [len(chunk.frames) for chunk in chunks] == [1, 24, 24, 24, 24]
    assert [chunk.samples.shape[1] for chunk in chunks] == [0, *4 * [16_000]]
    assert [chunk.first_frame for chunk in chunks] == [0, 1, 25, 49, 73]
    took = 4 * chunks[0].timing.generate
    assert took > 0 and all(chunk.timing.elapsed >= took for chunk in chunks)
    shorter = list(teacher.stream(PROMPT, 1.5, seed=1))
    assert [len(chunk.frames) for chunk in shorter] == [1, 24, 12]
    assert np.array_equal(shorter[1].frames, chunks[1].frames)
    assert shorter[2].samples.shape[1] == 8_000


def test_it_is_not_steered_and_stops_where_it_is_closed(teacher: OfflineTeacher) -> None:
    stream = teacher.stream(PROMPT, 4, seed=1)
    with pytest.raises(NotApplied, match="cannot be steered"):
        stream.steer("another").result()
    with pytest.raises(OmniForcingError, match="remove the first frame"):
        teacher.image(b"")
    stream.close()
    assert list(stream) == []
    stopped = Event()
    stopped.set()
    assert teacher.sample(PROMPT, 1, stopped) is None
