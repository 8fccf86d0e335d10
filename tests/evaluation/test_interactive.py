"""The interactive track: what is right after a change, how soon, and what stays as it was."""

from collections.abc import Sequence
from functools import cache
from itertools import count

import numpy as np
import pytest

from omniforcing.core.pair import Media, Pair
from omniforcing.evaluation.interactive.figures import Recording, Segment, interactive, table
from omniforcing.evaluation.interactive.judges import BallColour, ClipFollows, ImpactTone, Judge
from omniforcing.pocket.synthetic import make_clip

RED, BLUE, GREEN = (
    f"a {colour} ball bounces low on the floor" for colour in ("red", "blue", "green")
)


@cache
def rendered(caption: str) -> Media:
    """Three seconds of the pocket world with this caption."""
    for index in count():
        clip = make_clip(0, index, 3, 64, 64)
        if clip.caption == caption:
            return Pair(clip.frames, clip.samples)
    raise AssertionError


def joined(parts: Sequence[Media]) -> Media:
    """Clips one after the other; the first frame of each but the first is left out."""
    frames = [np.asarray(parts[0].video), *(np.asarray(part.video)[1:] for part in parts[1:])]
    return Pair(np.concatenate(frames), np.concatenate([part.audio for part in parts], 1))


def recording(*prompts: str, shown: Sequence[str] = (), late: float = 0.0) -> Recording:
    """Three seconds of each prompt, or of what is ``shown``; asked for ``late`` seconds before."""
    media = joined([rendered(caption) for caption in shown or prompts])
    segments = [Segment(prompts[0])]
    for index, prompt in enumerate(prompts[1:], 1):
        segments.append(Segment(prompt, 1 + 72 * index, 3 * index - late))
    return Recording(media, segments)


def figures(*recordings: Recording) -> dict:
    return interactive(recordings, [BallColour(), ImpactTone()])


def test_a_stream_that_follows_at_once_is_right_from_the_first_second() -> None:
    found = figures(recording(RED, BLUE, late=0.25), recording(GREEN, RED, late=0.25))["judges"]
    for name in ("ball_colour", "impact_tone"):
        assert found[name]["after"] == [1.0, 1.0, 1.0] and found[name]["before"] == 1.0
        assert found[name]["never"] == 0
    assert found["ball_colour"]["first_right_s"] == pytest.approx(0.25)
    assert found["ball_colour"]["n"] == [2, 2, 2]


def test_a_stream_that_never_follows_is_told() -> None:
    found = figures(recording(RED, BLUE, shown=(RED, RED)))["judges"]["ball_colour"]
    assert found["after"] == [0.0, 0.0, 0.0] and found["never"] == 1
    assert found["first_right_s"] is None and found["before"] == 1.0


def test_a_return_to_an_earlier_prompt_is_a_figure_of_its_own() -> None:
    follows = figures(recording(RED, BLUE, RED))["judges"]["ball_colour"]
    forgets = figures(recording(RED, BLUE, RED, shown=(RED, BLUE, BLUE)))["judges"]["ball_colour"]
    assert (follows["returned"], forgets["returned"]) == (1.0, 0.0)
    assert figures(recording(RED, BLUE))["judges"]["ball_colour"]["returned"] is None


def test_the_scene_is_kept_where_only_the_ball_changes() -> None:
    same = recording(RED, BLUE, shown=(RED, RED))
    found = figures(same, recording(GREEN, RED, shown=(GREEN, GREEN)))["scene"]
    assert found["after"][0] < found["chance"]
    assert found["n"] == [2, 2, 2]


def test_prompts_of_another_world_are_not_judged_by_colours() -> None:
    assert figures(recording("rain", "snow", shown=(RED, BLUE)))["judges"] == {}


class Leaning:
    """Stands in for an encoder: pictures are near to what their mean brightness names."""

    def frames(self, clip: object) -> np.ndarray:
        bright = np.asarray(clip.media.video).mean() > 100  # type: ignore[attr-defined]
        return np.array([[1.0, 0.0] if bright else [0.0, 1.0]])

    def text(self, caption: str) -> np.ndarray:
        return np.array([1.0, 0.0] if caption == "day" else [0.0, 1.0])


def test_an_encoder_judges_by_the_nearer_of_both_prompts() -> None:
    frames = np.zeros((145, 8, 8, 3), np.uint8)
    frames[73:] = 200
    media = Pair(frames, np.zeros((2, 96000), np.float32))
    judges: list[Judge] = [ClipFollows(Leaning())]
    for prompts, right in ((("night", "day"), 1.0), (("day", "night"), 0.0)):
        taken = Recording(media, [Segment(prompts[0]), Segment(prompts[1], 73, 3.0)])
        assert interactive([taken], judges)["judges"]["clip_follows"]["after"] == [right] * 3


def test_the_table_has_a_line_for_each_judge() -> None:
    lines = table(figures(recording(RED, BLUE), recording(BLUE, RED))).splitlines()
    assert {"ball_colour", "impact_tone", "scene"} <= {line.split()[0] for line in lines if line}
