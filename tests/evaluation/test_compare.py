"""The page that compares two evaluations, clip by clip."""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from omniforcing.core.files import read_json, write_json
from omniforcing.core.pair import Pair
from omniforcing.evaluation.measures.base import observe_clips
from omniforcing.evaluation.measures.clips import Clip
from omniforcing.evaluation.measures.compare import compare
from omniforcing.evaluation.measures.registry import chosen_measures
from omniforcing.evaluation.measures.tables import measure_sets
from tests.support.refusals import refuses

CLIPS = 6


def evaluation(folder: Path, gain: float, margin: float) -> Path:
    """An evaluation of one model whose sound is louder by ``gain``."""
    generator = np.random.default_rng(0)
    clips = []
    for index in range(CLIPS):
        level = (1 + index) / 20
        sound = gain * level * generator.normal(0, 0.3, (2, 16000)).astype(np.float32)
        grey = np.full((25, 16, 16, 3), 100, np.uint8)
        clips.append(Clip(str(index), Pair(grey, sound), f"clip {index} <b>"))
    measures = chosen_measures(["loudness", "flicker"])
    found = measure_sets({"student": observe_clips(clips, measures)}, measures)
    figures = {"sync_margin": margin, "sync_margin_error": 0.03, "measures": {}}
    metrics = {"models": {"student": figures}, "protocols": found.protocols}
    (folder / "clips").mkdir(parents=True)
    (folder / "clips" / "0.mp4").touch()
    write_json(folder / "metrics.json", metrics)
    write_json(folder / "clips.json", found.clip_table({("student", "0"): "clips/0.mp4"}))
    return folder


def test_pairs_show_a_difference_that_the_spread_of_clips_hides(tmp_path: Path) -> None:
    quiet, loud = evaluation(tmp_path / "a", 1.0, 0.5), evaluation(tmp_path / "b", 1.12, 0.4)
    out = tmp_path / "pages" / "compare.html"
    out.parent.mkdir()
    student = compare(loud, quiet, out)["student"]
    loudness = student["paired"]["loudness"]
    assert loudness["value"] == pytest.approx(20 * np.log10(1.12), abs=0.11) and loudness["low"] > 0
    assert loudness["n"] == CLIPS and student["paired"]["flicker"]["value"] == 0
    margin = student["figures"]["sync_margin"]
    assert margin["value"] == pytest.approx(-0.1)
    assert margin["error"] == pytest.approx(0.03 * 2**0.5)
    html = out.read_text()
    assert "clip 0 &lt;b&gt;" in html and "clip 0 <b>" not in html
    links = re.findall(r'src="([^"]+)"', html)
    assert len(links) == 2 and all((out.parent / link).is_file() for link in links)


def test_figures_of_different_protocols_are_not_compared(tmp_path: Path) -> None:
    first = evaluation(tmp_path / "a", 1.0, 0.5)
    second = Path(shutil.copytree(first, tmp_path / "b"))
    metrics = read_json(second / "metrics.json")
    metrics["protocols"]["loudness"]["id"] = "other"
    write_json(second / "metrics.json", metrics)
    found = compare(first, second, tmp_path / "page.html")["student"]["paired"]
    assert found["loudness"] == {"why": "of different protocols"} and "value" in found["flicker"]


def test_what_cannot_be_compared_is_one_sentence(tmp_path: Path) -> None:
    first = evaluation(tmp_path / "a", 1.0, 0.5)
    with refuses("evaluation.no-clip-table", tmp_path, "clips.json"):
        compare(first, tmp_path, tmp_path / "page.html")
    second = Path(shutil.copytree(first, tmp_path / "b"))
    table = read_json(second / "clips.json")
    damaged: list[tuple[Any, str]] = [
        ([], "file.unreadable"),
        ({}, "file.damaged"),
        ({**table, "data": [[1]]}, "file.damaged"),
        ({"columns": ["set"], "data": [["student"]]}, "file.damaged"),
    ]
    for content, code in damaged:
        write_json(second / "clips.json", content)
        for pair in ((first, second), (second, first)):
            with refuses(code, second / "clips.json"):
                compare(*pair, tmp_path / "page.html")
    write_json(second / "clips.json", {**table, "data": []})
    for pair in ((first, second), (second, first)):
        found = compare(*pair, tmp_path / "page.html")["student"]
        assert found["figures"] and not found["paired"]
    metrics = read_json(second / "metrics.json")
    write_json(second / "metrics.json", {})
    with refuses("file.damaged", second / "metrics.json"):
        compare(first, second, tmp_path / "page.html")
    write_json(second / "metrics.json", {**metrics, "models": {"teacher": {}}})
    with refuses("evaluation.nothing-in-common", first, second):
        compare(first, second, tmp_path / "page.html")
