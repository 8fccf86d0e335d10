"""The evaluation end to end on real clips: what it writes, what it resumes, what cheats and
mistakes look like in it.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from omniforcing.core.pair import Media, Pair
from omniforcing.evaluation.config import EvaluateConfig
from omniforcing.evaluation.evaluate import (
    NEAREST,
    Evaluation,
    EvaluationInputs,
    Sampler,
    evaluate,
    other_sounds,
    page_clips,
    prompts_and_seeds,
)
from omniforcing.evaluation.nearest import TrainingClips
from omniforcing.evaluation.report import format_number, write_report
from omniforcing.evaluation.summary import colour_score, pitch_score
from omniforcing.pocket.drift import measure_drift
from omniforcing.pocket.observe import Clips, observe
from omniforcing.pocket.synthetic import COLOURS, SyntheticClip, make_clip
from tests.support.refusals import refuses

pytestmark = pytest.mark.extended

CLIPS, SECONDS, TRAINED = 6, 2, 12
SETTINGS = EvaluateConfig(clips=CLIPS, seeds=2, page_clips=2, drift_clips=3)
REQUIRED = {
    *(
        "sync_f1",
        "sync_margin",
        "sync_offset_ms",
        "sync_offset_signed_ms",
        "events_video",
        "events_audio",
        "ball_present",
    ),
    *("colour_accuracy", "pitch_accuracy", "frechet_video", "frechet_audio", "clips"),
    *("nearest_train", "memorised_share"),
}


def clip(index: int, seconds: int = SECONDS, balls: int = 1) -> SyntheticClip:
    return make_clip(31, index, seconds, 64, 64, balls)


def real(seed: int, count: int, balls: int = 1) -> Clips:
    made = [make_clip(seed, i, SECONDS, 64, 64, balls) for i in range(count)]
    return Clips(
        [c.caption for c in made],
        lambda chosen=range(count): (media(c) for i, c in enumerate(made) if i in chosen),
    )


def heldout() -> Clips:
    return real(31, CLIPS)


def media(made: SyntheticClip) -> Media:
    return Pair(made.frames, made.samples)


def in_sync(captions: Sequence[str], seeds: Sequence[int]) -> Iterator[Media]:
    """A model that makes a clip of the caption's colour, another for each seed, in perfect sync."""
    for caption, seed in zip(captions, seeds, strict=True):
        colour = next(name for name in COLOURS if name in caption)
        index = next(
            i for i in range(1000) if make_clip(seed % 2**31, i, 1, 32, 32).colour == colour
        )
        yield media(make_clip(seed % 2**31, index, SECONDS, 64, 64))


def silent(captions: Sequence[str], seeds: Sequence[int]) -> Iterator[Media]:
    return (Pair(clip.video, 0 * clip.audio) for clip in in_sync(captions, seeds))


def memory(captions: Sequence[str], _seeds: Sequence[int]) -> Iterator[Media]:
    """A model that replays its training clips whatever it is asked."""
    return (media(make_clip(30, i % TRAINED, SECONDS, 64, 64)) for i in range(len(captions)))


def unreachable(*_: Any) -> Any:
    raise AssertionError("a finished model was sampled again")


def rollout(captions: Sequence[str], _seeds: Sequence[int]) -> Iterator[Media]:
    return (media(clip(i, 3 * SECONDS)) for i in range(len(captions)))


def inputs(
    clips: Clips,
    models: Mapping[str, Sampler],
    work: Path,
    settings: EvaluateConfig = SETTINGS,
    codec: Callable[[Media], Media] = lambda clip: clip,
    rollouts: Mapping[str, Sampler] | None = None,
) -> EvaluationInputs:
    return EvaluationInputs(clips, codec, models, rollouts or {}, work, settings, seed=0)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> TrainingClips:
    return TrainingClips.collect(real(30, TRAINED), tmp_path_factory.mktemp("training") / "train")


@pytest.fixture(scope="module")
def found(training: TrainingClips, work: Path) -> Evaluation:
    models = {"teacher": in_sync, "self_forcing": silent}
    return evaluate(inputs(heldout(), models, work, rollouts={"self_forcing": rollout}), training)


@pytest.fixture(scope="module")
def duets(training: TrainingClips, work: Path) -> Evaluation:
    """The harder split, with a model that shows one of the two balls."""
    settings = dataclasses.replace(SETTINGS, seeds=1, page_clips=1)
    return evaluate(
        inputs(real(32, 4, balls=2), {"teacher": in_sync}, work / "duets", settings), training
    )


@pytest.fixture(scope="module")
def page(
    found: Evaluation, duets: Evaluation, work: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("evaluation")
    speed = {"ttfc_s": 0.3, "fps": 100.0, "device": "cpu"}
    gradients = {"teacher": {"video": 1.0, "audio": 2.0}}
    write_report(
        folder, work, found, {"preset": "test", "tolerance_ms": 80.0}, speed, gradients, duets
    )
    return folder


def test_every_model_has_every_measure(found: Evaluation) -> None:
    assert list(found.models) == ["real", "codec", "shuffled", "teacher", "self_forcing"]
    for metrics in found.models.values():
        assert metrics.keys() >= REQUIRED
    assert found.models["real"]["clips"] == CLIPS and found.models["teacher"]["clips"] == 2 * CLIPS


def test_ceiling_chance_and_cheat_stand_where_they_must(found: Evaluation) -> None:
    real, codec, shuffled, teacher, mute = found.models.values()
    assert (
        real["sync_f1"] >= 0.98
        and real["colour_accuracy"] == real["pitch_accuracy"] == real["ball_present"] == 1
    )
    assert real["frechet_video"] == pytest.approx(0, abs=1e-9) and codec[
        "frechet_audio"
    ] == pytest.approx(0, abs=1e-9)
    assert shuffled["sync_f1"] < 0.5 and shuffled["frechet_video"] == pytest.approx(0, abs=1e-9)
    assert teacher["sync_margin"] > 0.5 and teacher["pitch_accuracy"] == 1
    assert mute["sync_f1"] == mute["pitch_accuracy"] == mute["events_audio"] == 0
    assert mute["sync_offset_ms"] is None and mute["frechet_audio"] > teacher["frechet_audio"]


def test_drift_stands_with_the_models_that_can_go_on(found: Evaluation) -> None:
    assert "drift_margin" not in found.models["teacher"]
    drifted = found.models["self_forcing"]
    assert drifted["drift_margin"] == drifted["drift"]["thirds"]["margin"][-1]
    assert len(drifted["drift"]["per_second"]["margin"]) == 3 * SECONDS
    assert drifted["drift"]["ball_present_thirds"] == [1, 1, 1]


def test_a_model_that_replays_its_training_clips_is_found_out(
    found: Evaluation, training: TrainingClips, tmp_path: Path
) -> None:
    replays = evaluate(inputs(heldout(), {"memory": memory}, tmp_path, SETTINGS), training)
    assert (
        replays.models["memory"]["nearest_train"] < 0.05
        and replays.models["memory"]["memorised_share"] == 1
    )
    assert replays.models["memory"]["sync_margin"] > 0.5  # which the other measures reward
    for name, metrics in found.models.items():
        assert (
            metrics["nearest_train"] == 1
            if name in ("real", "codec")
            else metrics["nearest_train"] > 0.5
        )
        assert metrics["memorised_share"] <= 0.2
    assert (
        found.memorisation["training_clips"] == TRAINED
        and found.memorisation["heldout_distance"] > 0
    )
    assert (tmp_path / NEAREST).is_file()


def test_two_balls_are_measured_by_the_same_names(found: Evaluation, duets: Evaluation) -> None:
    assert list(duets.models) == ["real", "codec", "shuffled", "teacher"]
    assert duets.models["real"].keys() == found.models["real"].keys()
    truth, half = duets.models["real"], duets.models["teacher"]
    assert truth["clips"] == half["clips"] == 4
    assert truth["colour_accuracy"] == truth["pitch_accuracy"] == 1 and truth["sync_f1"] > 0.8
    assert half["colour_accuracy"] <= 0.75 and half["ball_present"] < truth["ball_present"]


def test_a_killed_evaluation_goes_on_with_the_first_model_that_is_missing(
    found: Evaluation, training: TrainingClips, work: Path
) -> None:
    models = {"teacher": unreachable, "self_forcing": unreachable}
    again = evaluate(
        inputs(heldout(), models, work, codec=unreachable, rollouts={"self_forcing": unreachable}),
        training,
    )
    assert again == found


def test_a_model_that_fails_leaves_nothing_behind(training: TrainingClips, tmp_path: Path) -> None:
    def dies(captions: Sequence[str], seeds: Sequence[int]) -> Iterator[Media]:
        yield from list(in_sync(captions, seeds))[:3]

    with refuses("evaluation.wrong-count", "teacher gave 3 clips", "12"):
        evaluate(inputs(heldout(), {"teacher": dies}, tmp_path), training)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["codec", "real", "shuffled"]


def test_one_heldout_clip_is_refused(training: TrainingClips, tmp_path: Path) -> None:
    one = Clips(["a red ball"], lambda: iter([media(clip(0))]))
    with refuses("data.too-few-clips", "clips.heldout"):
        evaluate(inputs(one, {}, tmp_path), training)


def test_captions_of_another_world_are_measured_by_distance_alone(
    training: TrainingClips, tmp_path: Path
) -> None:
    other = Clips(["rain on a roof", "a dog barks"], lambda: (media(clip(i)) for i in range(2)))
    settings = dataclasses.replace(SETTINGS, drift_clips=0)
    found = evaluate(
        inputs(other, {}, tmp_path / "work", settings, rollouts={"self_forcing": unreachable}),
        training,
    )
    assert found.models["real"].keys() == {
        "clips",
        "frechet_video",
        "frechet_audio",
        "nearest_train",
        "memorised_share",
        "measures",
    }
    (tmp_path / "page").mkdir()
    write_report(
        tmp_path / "page",
        tmp_path / "work",
        found,
        {"preset": "test", "tolerance_ms": 80.0},
        {},
        {},
    )
    assert [p.name for p in (tmp_path / "page" / "plots").iterdir()] == ["frechet.png"]


def test_metrics_json_has_the_promised_form(page: Path) -> None:
    metrics = json.loads((page / "metrics.json").read_text())
    assert metrics["schema"] == 1 and metrics["speed"]["fps"] == 100
    assert metrics["models"]["teacher"].keys() >= REQUIRED
    assert set(metrics["frechet"]["features"]) == {"video", "audio"}
    assert (
        metrics["frechet"]["floor_clips"] == [2 * CLIPS, CLIPS]
        and metrics["frechet"]["floor_video"] > 0
    )
    assert metrics["gradients"]["teacher"]["video"] == 1
    assert metrics["memorisation"]["descriptor"] == "motion-8x8x6fps+mel16-v1"
    assert metrics["duets"]["teacher"].keys() >= REQUIRED
    assert metrics["duets_frechet"]["floor_clips"] == [4, 4]
    assert metrics["duets_memorisation"].keys() == metrics["memorisation"].keys()


def test_measures_of_any_clips_stand_with_their_protocol_and_ratios(page: Path) -> None:
    metrics = json.loads((page / "metrics.json").read_text())
    protocols = metrics["protocols"]
    for name, model in metrics["models"].items():
        assert model["measures"].keys() == protocols.keys()
        for measure, figure in model["measures"].items():
            assert figure["id"] == protocols[measure]["id"]
            assert figure["why"] if "why" in figure else figure["n"] >= 2, (name, measure)
    teacher, mute = (metrics["models"][name]["measures"] for name in ("teacher", "self_forcing"))
    motion = teacher["motion"]
    assert motion["low"] < motion["value"] < motion["high"] and motion["n"] == 2 * CLIPS
    real = metrics["models"]["real"]["measures"]["motion"]
    assert motion["to_real"] == pytest.approx(motion["value"] / real["value"])
    assert "to_real" not in real and "to_teacher" not in motion
    assert mute["motion"]["to_teacher"] == pytest.approx(1)
    assert mute["silent_share"]["value"] == 1 and "found 0" in mute["loudness"]["why"]
    assert teacher["onset_motion_margin"]["value"] > 0.5
    assert format_number(motion["value"]) in (page / "index.html").read_text()


def test_every_clip_has_a_row_of_its_own_with_its_video(page: Path) -> None:
    table = json.loads((page / "clips.json").read_text())
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert len(rows) == 3 * CLIPS + 2 * 2 * CLIPS
    shown = [row for row in rows if row["video"]]
    assert len(shown) == 5 * 2 and all((page / row["video"]).is_file() for row in shown)
    silent = [row for row in rows if row["set"] == "self_forcing"]
    assert all(row["silent_share"] == 1 and row["loudness"] is None for row in silent)


def test_parts_of_the_clips_add_up_to_the_sync_of_their_set(page: Path) -> None:
    table = json.loads((page / "clips.json").read_text())
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    for name, model in json.loads((page / "metrics.json").read_text())["models"].items():
        parts = [row for row in rows if row["set"] == name]
        keys = ("sync_events", "sync_hits", "sync_chance")
        events, hits, chance = (sum(row[key] for row in parts) for key in keys)
        assert hits / events == pytest.approx(model["sync_f1"])
        assert (hits - chance) / events == pytest.approx(model["sync_margin"])


def test_without_clips_of_two_balls_there_is_no_trace_of_them(
    found: Evaluation, work: Path, tmp_path: Path
) -> None:
    metrics = write_report(tmp_path, work, found, {"preset": "test", "tolerance_ms": 80.0}, {}, {})
    assert (
        not any("duets" in key for key in metrics) and not (tmp_path / "clips" / "duets").exists()
    )
    assert "wo balls" not in (tmp_path / "index.html").read_text()


def test_the_page_says_what_distances_of_either_split_are_measured_by(
    page: Path, found: Evaluation, duets: Evaluation
) -> None:
    html = (page / "index.html").read_text()
    for part in (found, duets):
        for figure in (
            part.frechet["floor_video"],
            part.frechet["floor_audio"],
            part.memorisation["threshold"],
        ):
            assert format_number(figure) in html


def test_the_page_links_only_to_files_beside_it(page: Path) -> None:
    html = (page / "index.html").read_text()
    links = re.findall(r'(?:src|href)="([^"]+)"', html)
    assert (
        len([link for link in links if link.endswith(".mp4")]) == 5 * 2 + 4 * 1
    )  # models x captions
    assert {"plots/nearest.png", "plots/duets/nearest.png"} <= set(links)
    for link in links:
        assert not Path(link).is_absolute() and "//" not in link
        # The ablation is measured later, by a command of its own.
        assert (page / link).is_file() or link == "../ablation/index.html", link


def test_a_caption_cannot_write_into_the_page(
    found: Evaluation, work: Path, tmp_path: Path
) -> None:
    hostile = dataclasses.replace(found, shown={"0": "<script>alert(1)</script>"})
    write_report(tmp_path, work, hostile, {"preset": "test", "tolerance_ms": 80.0}, {}, {})
    assert "<script>alert" not in (tmp_path / "index.html").read_text()


def test_seeds_differ_between_clips_and_not_between_runs() -> None:
    prompts, seeds = prompts_and_seeds(["a", "b"], 2, 7)
    assert prompts == ["a", "b", "a", "b"] and len(set(seeds)) == 4
    assert prompts_and_seeds(["a", "b"], 2, 7)[1] == seeds != prompts_and_seeds(["a", "b"], 2, 8)[1]


def test_the_page_shows_distinct_captions_first() -> None:
    assert page_clips(["a", "a", "b", "a", "c"], 3) == [0, 2, 4]
    assert page_clips(["a", "a", "b"], 5) == [0, 1, 2]


def test_shuffling_gives_every_picture_the_sound_of_another_clip() -> None:
    mixed = list(other_sounds(Pair(i, i) for i in range(4)))
    assert [(pair.video, pair.audio) for pair in mixed] == [(0, 1), (1, 2), (2, 3), (3, 0)]


def test_swapped_colours_cost_colour_accuracy_and_swapped_tones_pitch_accuracy() -> None:
    made = clip(0)
    right = observe(media(made), made.caption)
    swapped = Pair(
        np.roll(made.frames, 1, -1), made.samples
    )  # red turns green, green turns blue, blue turns red
    other = next(clip(i) for i in range(50) if clip(i).colour != made.colour)
    assert colour_score(right) == pitch_score(right) == 1
    assert colour_score(observe(swapped, made.caption)) == 0
    assert pitch_score(observe(Pair(made.frames, other.samples), made.caption)) == 0


def test_drift_sees_sync_that_is_lost_after_the_first_third() -> None:
    def lose(made: SyntheticClip, late: int) -> Media:
        kept, lost = np.split(made.samples, [3 * 16000], 1)
        return Pair(made.frames, np.concatenate([kept, np.roll(lost, late, 1)], 1))

    made = [clip(i, 9) for i in range(8)]
    found = measure_drift(
        [observe(lose(c, 4000 + 500 * i), c.caption) for i, c in enumerate(made)], 0.08
    )
    first, second, last = found["drift"]["thirds"]["margin"]
    assert first > 0.5 > 0.3 > max(second, last)
    assert found["drift_margin"] == last
