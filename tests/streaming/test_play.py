"""``omniforcing play``: recordings with receipts, resumed, and scenarios that are refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from omniforcing.core.errors import OmniForcingError
from omniforcing.pipeline.experiments.play import measure_recordings, play, read_recording, table
from omniforcing.pipeline.experiments.scenario import Scenario, read_scenarios
from omniforcing.streaming.engine import Engine
from tests.support.refusals import refuses

RED, BLUE = "a red ball", "a blue ball"
WHOLE: dict[str, Any] = {
    "name": "back",
    "prompt": RED,
    "seconds": 4,
    "seed": 3,
    "updates": [{"at": 1, "prompt": BLUE}, {"at": 2.5, "prompt": RED, "rewrite": True}],
}


def written(folder: Path, *scenarios: dict[str, Any]) -> list[Scenario]:
    file = folder / "scenarios.json"
    file.write_text(json.dumps(scenarios))
    return read_scenarios(file)


def test_a_scenario_leaves_a_recording_and_where_each_change_took_effect(
    engine: Engine, tmp_path: Path
) -> None:
    play(engine, written(tmp_path, WHOLE), tmp_path / "out")
    receipts = json.loads((tmp_path / "out" / "back.json").read_text())["receipts"]
    # The first block that begins at 1 s or later is block 2, whose first frame is number 25.
    assert [(r["at"], r["block"], r["seconds"]) for r in receipts] == [
        (1, 2, 25 / 24),
        (2.5, 4, 73 / 24),
    ]
    recording = read_recording(tmp_path / "out" / "back.json")
    assert recording.media.video.shape[0] == 97 and recording.media.audio.shape == (2, 64000)
    assert [segment.frame for segment in recording.segments] == [1, 25, 73]
    assert [len(list(recording.seconds(index))) for index in range(3)] == [1, 2, 1]


def test_a_run_that_was_killed_goes_on_and_other_scenarios_are_not_mixed_in(
    engine: Engine, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    first, second = written(tmp_path, WHOLE, {**WHOLE, "name": "again"})
    play(engine, [first], out)
    before = (out / "back.mp4").stat().st_mtime_ns
    (out / "again.mp4").write_bytes(b"half")  # as a killed run would leave it, were it not atomic
    play(engine, [first, second], out)
    assert (out / "back.mp4").stat().st_mtime_ns == before
    assert (out / "back.mp4").read_bytes() == (out / "again.mp4").read_bytes()
    with refuses("pipeline.other-recording", "back.json"):
        play(engine, written(tmp_path, {**WHOLE, "seed": 4}), out)


def test_figures_lie_beside_the_recordings_and_a_changed_one_is_refused(
    engine: Engine, tmp_path: Path
) -> None:
    scenarios, out = written(tmp_path, WHOLE), tmp_path / "out"
    play(engine, scenarios, out)
    figures = measure_recordings(out, scenarios, None)
    assert figures == json.loads((out / "interactive.json").read_text())
    assert figures["changes"] == 2 and figures["judges"]["ball_colour"]["n"] == [2, 1]
    assert set(figures["missing"]) == {"clip_follows", "clap_follows"}
    assert "clap_follows: no weights" in table(figures)
    with (out / "back.mp4").open("ab") as file:
        file.write(b"x")
    with refuses("file.damaged", "back.mp4"):
        measure_recordings(out, scenarios, None)


def test_of_two_changes_for_one_block_the_later_holds(engine: Engine, tmp_path: Path) -> None:
    updates = [{"at": 1.1, "prompt": BLUE}, {"at": 1.2, "prompt": RED}]
    play(engine, written(tmp_path, {**WHOLE, "seconds": 3, "updates": updates}), tmp_path)
    overtaken, applied = json.loads((tmp_path / "back.json").read_text())["receipts"]
    assert overtaken["block"] is None and overtaken["why"] and applied["block"] == 3
    assert len(read_recording(tmp_path / "back.json").segments) == 2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sed": 1}, ["'sed'", "'seed'"]),
        ({"name": "../x"}, ["letters, digits"]),
        ({"prompt": " "}, ["' '"]),
        ({"prompt": 3}, ["prompt is 3", "text"]),
        ({"seconds": "4"}, ["seconds is '4'", "number"]),
        ({"seed": -1}, ["-1"]),
        ({"updates": [{"at": 9, "prompt": RED}]}, ["second 9"]),
        ({"updates": [{"at": 1}]}, ["'prompt'"]),
        (
            {"updates": [{"at": 2, "prompt": RED}, {"at": 1, "prompt": RED}]},
            ["order"],
        ),
        ({"updates": "at once"}, ["list"]),
        ({"name": "interactive"}, ["'interactive'"]),
        ({"name": "a" * 300}, ["100 bytes"]),
        ({"seconds": 0.5, "updates": []}, ["seconds is 0.5", "least is 1"]),
    ],
)
def test_what_is_wrong_with_a_scenario_is_one_sentence(
    change: dict[str, Any], says: list[str], tmp_path: Path
) -> None:
    with refuses("pipeline.bad-scenario", "scenarios.json, scenario", *says):
        written(tmp_path, {**WHOLE, **change})


@pytest.mark.parametrize(
    ("name", "text", "code"),
    [
        ("none.yaml", None, "file.unreadable"),
        ("bad.yaml", "- {", "file.unreadable"),
        ("bad.jsonl", "{}\n{", "file.unreadable"),
        ("empty.yaml", "", "pipeline.bad-scenario"),
        ("one.yaml", "name: x", "pipeline.bad-scenario"),
    ],
)
def test_a_file_without_scenarios_is_refused(
    name: str, text: str | None, code: str, tmp_path: Path
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with refuses(code, name):
        read_scenarios(tmp_path / name)


def test_two_scenarios_of_one_name_and_late_changes_are_refused(
    engine: Engine, tmp_path: Path
) -> None:
    with refuses("pipeline.bad-scenario", "'back'"):
        written(tmp_path, WHOLE, WHOLE)
    with refuses("pipeline.bad-scenario", "'back'"):
        written(tmp_path, WHOLE, {**WHOLE, "name": "Back"})
    taken = tmp_path / "taken"
    taken.write_text("a file")
    with refuses("file.cannot-write", taken):
        play(engine, written(tmp_path, WHOLE), taken)
    late = {**WHOLE, "updates": [{"at": 3.9, "prompt": BLUE}]}
    with refuses("streaming.no-moment", "3.9"):
        play(engine, written(tmp_path, late), tmp_path)
    with pytest.raises(OmniForcingError):
        play(engine, written(tmp_path, {**WHOLE, "prompt": "ball " * 60}), tmp_path)
    assert not list(tmp_path.glob("*.mp4"))
