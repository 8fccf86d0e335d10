"""Measures without weights, on clips whose truth is known."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from omniforcing.cli import main
from omniforcing.core.pair import Media, Pair
from omniforcing.evaluation.measures.base import Figure, measure_clips
from omniforcing.evaluation.measures.clips import Clip, Skipped, measurable, read_clips
from omniforcing.evaluation.measures.command import Source, measure_sources
from omniforcing.evaluation.measures.curves import RATE, events, motion_curve, onset_curve
from omniforcing.evaluation.measures.registry import MEASURES, WITH_WEIGHTS, chosen_measures
from omniforcing.evaluation.measures.tables import paired_difference
from omniforcing.evaluation.report import COLUMNS
from omniforcing.media.files import write_mp4
from omniforcing.pocket.synthetic import SyntheticClip, make_clip
from tests.support.refusals import refused, refuses

CLIPS = 8
pytestmark = pytest.mark.extended


@cache
def rendered(index: int) -> SyntheticClip:
    return make_clip(5, index, 4, 64, 64)


def pocket(shift: float = 0.0, other: int = 0) -> list[Clip]:
    """Clips of bouncing balls whose sound is late by ``shift`` seconds, or another clip's."""
    clips = []
    for index in range(CLIPS):
        sound = np.roll(rendered((index + other) % CLIPS).samples, round(shift * 16000), 1)
        clips.append(Clip(str(index), Pair(rendered(index).frames, sound)))
    return clips


def figures(clips: list[Clip], *names: str) -> dict[str, Figure]:
    measured = measure_clips(clips, chosen_measures(names))
    found = {}
    for row in measured.rows:
        assert row.figure is not None, row.why
        found[row.measure.name] = row.figure
    return found


def made(frames: np.ndarray | None = None, samples: np.ndarray | None = None) -> Clip:
    """A clip of one second, grey and silent where nothing is given."""
    grey, silence = np.full((25, 32, 32, 3), 128, np.uint8), np.zeros((2, 16000), np.float32)
    return Clip(
        "made",
        Media(grey if frames is None else frames, silence if samples is None else samples),
    )


# --- together -----------------------------------------------------------------------------------


def test_a_sudden_sound_is_an_onset_to_five_milliseconds() -> None:
    sound = np.zeros((2, 32000), np.float32)
    for start in (8000, 20000):
        sound[:, start : start + 800] = 0.3 * np.sin(np.arange(800))
    assert events(onset_curve(sound), RATE) == pytest.approx([0.5, 1.25], abs=0.005)


def test_impacts_are_changes_of_motion_to_half_a_frame() -> None:
    found = [events(motion_curve(rendered(i).frames), 24) for i in range(CLIPS)]
    inside = [[t for t in rendered(i).impacts if 0.15 < t < 3.85] for i in range(CLIPS)]
    near = [
        min((abs(t - other) for other in found[index]), default=9)
        for index in range(CLIPS)
        for t in inside[index]
    ]
    assert np.mean(np.array(near) < 0.5 / 24) > 0.9


def test_nothing_moves_and_nothing_sounds_in_a_still_and_silent_clip() -> None:
    clip = made()
    assert not clip.motion.any() and not clip.onsets.any()
    row = measure_clips([clip, clip], chosen_measures(["onset_motion_margin"])).rows[0]
    assert row.figure is None
    assert row.why == "needs 2 clips in which something moves or sounds, found 0"


def test_clips_without_a_sound_have_no_agreement_and_no_zero() -> None:
    silence = np.zeros_like(rendered(0).samples)
    clips = [Clip(str(index), Pair(rendered(index).frames, silence)) for index in range(2)]
    names = ("onset_motion_margin", "onset_motion_f1", "onset_motion_chance")
    for row in measure_clips(clips, chosen_measures(names)).rows:
        assert row.figure is None and "no sound begins in any of 2 clips" in row.why
    still = [
        Clip("", Pair(np.zeros_like(clip.frames), clip.samples)) for clip in map(rendered, (0, 1))
    ]
    for row in measure_clips(still, chosen_measures(names)).rows:
        assert row.figure is None and "nothing moves" in row.why


def test_late_sound_has_its_offset_and_a_lower_margin() -> None:
    margins = []
    for shift in (0.0, 0.08, 0.16, 0.32):
        found = figures(pocket(shift), "onset_motion_margin", "av_offset")
        margins.append(found["onset_motion_margin"].value)
        assert found["av_offset"].value == pytest.approx(1000 * shift, abs=10)
    assert margins[0] > 0.6 and margins[0] > margins[1] > margins[2] + 0.3
    assert max(margins[2:]) < 0.1


def test_another_clips_sound_is_chance() -> None:
    own, others = (figures(pocket(other=other), "onset_motion_margin") for other in (0, 3))
    assert others["onset_motion_margin"].value < 0.1
    low, high = own["onset_motion_margin"].low, own["onset_motion_margin"].high
    assert low is not None and high is not None and low > 0.3 and high - low < 0.8


def test_sound_that_falls_behind_drifts() -> None:
    clips = []
    for clip in pocket():
        # A hundredth slower: 100 ms in ten seconds.
        places = np.arange(clip.media.audio.shape[1]) / 1.01
        whole = np.arange(clip.media.audio.shape[1])
        slow = np.stack([np.interp(places, whole, side) for side in clip.media.audio])
        clips.append(Clip(clip.name, Pair(clip.media.video, slow.astype(np.float32))))
    assert figures(clips, "av_drift")["av_drift"].value == pytest.approx(100, abs=30)
    assert figures(pocket(), "av_drift")["av_drift"].value == pytest.approx(0, abs=30)


# --- picture ------------------------------------------------------------------------------------


def test_frozen_flickering_and_moving_pictures_have_their_figures() -> None:
    held = np.random.default_rng(0).integers(0, 256, (25, 32, 32, 3), np.uint8)
    held[13:] = held[12]
    assert figures([made(held)], "frozen_share")["frozen_share"].value == pytest.approx(12 / 24)
    swaying = np.full((25, 32, 32, 3), 100, np.uint8)
    swaying[1::2] += 4
    found = figures([made(swaying)], "flicker", "motion")
    assert found["flicker"].value == pytest.approx(8, abs=1e-3)  # up by 4, down by 4
    assert found["motion"].value == pytest.approx(4, abs=1e-3)
    assert figures([made()], "flicker", "motion")["flicker"].value == 0


# --- sound --------------------------------------------------------------------------------------


def test_loudness_is_that_of_the_standard() -> None:
    """A sine of 997 Hz at full scale on one side is -3.01 LUFS (ITU-R BS.1770-4)."""
    wave = np.zeros((2, 32000), np.float32)
    wave[0] = np.sin(2 * np.pi * 997 * np.arange(32000) / 16000)
    assert figures([made(samples=wave)], "loudness")["loudness"].value == pytest.approx(
        -3.01, abs=0.1
    )
    row = measure_clips([made()], chosen_measures(["loudness"])).rows[0]
    assert row.figure is None and "found 0" in row.why


def test_silence_and_clipping_have_their_shares() -> None:
    sound = np.zeros((2, 16000), np.float32)
    sound[:, :4000] = 0.1 * np.sin(np.arange(4000))
    sound[0, 4000:4800] = 1.0
    sound[1, 5000] = 1.0  # one sample is a top, not a cut
    found = figures([made(samples=sound)], "silent_share", "clipped_share")
    assert found["silent_share"].value == pytest.approx(0.65)  # a piece has the lone top
    assert found["clipped_share"].value == pytest.approx(800 / 32000)


def test_no_measure_has_the_name_of_a_figure_of_the_pocket_world() -> None:
    """A release compares the figures of both tables by name."""
    assert not {measure.name for measure in (*MEASURES, *WITH_WEIGHTS)} & set(COLUMNS)


def test_flatness_tells_noise_from_a_tone() -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, (2, 16000)).astype(np.float32)
    tone = np.tile(0.1 * np.sin(2 * np.pi * 600 * np.arange(16000) / 16000), (2, 1))
    name = "spectral_flatness"
    assert figures([made(samples=noise)], name)[name].value > 0.4
    assert figures([made(samples=tone.astype(np.float32))], name)[name].value < 0.01


# --- folders and the command --------------------------------------------------------------------


def test_a_folder_of_videos_is_measured_and_what_cannot_be_is_named(tmp_path: Path) -> None:
    for index in range(3):
        clip = rendered(index)
        write_mp4(tmp_path / f"{index}.mp4", Pair(clip.frames, clip.samples))
    (tmp_path / "0.txt").write_text("a ball\n")
    (tmp_path / "1.txt").write_bytes(b"\xff\xfe\x00")  # no text
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    found = list(read_clips(tmp_path))
    assert [clip.name for clip in found] == ["0.mp4", "1.mp4", "2.mp4", "broken.mp4"]
    captions = [clip.caption for clip in found if isinstance(clip, Clip)]
    assert captions == ["a ball", None, None]
    assert isinstance(found[3], Skipped) and found[3].why
    out = tmp_path / "figures.json"
    source, against = Source.of_folder(tmp_path), Source.of_folder(tmp_path)
    table = measure_sources(source, chosen_measures(), against, out)
    assert f"{tmp_path}: 3 clips; against {tmp_path}: 3 clips" in table
    assert "broken.mp4" in table and "av_drift" in table
    content = json.loads(out.read_text())
    for name in (kind.name for kind in MEASURES):
        figure = content["source"]["figures"][name]
        assert figure["n"] == 3 and figure == content["against"]["figures"][name]
    assert [row["clip"] for row in content["source"]["clips"]] == ["0.mp4", "1.mp4", "2.mp4"]
    assert "0.000 (0.000 to 0.000)" in table  # each clip is its own pair


def test_what_is_not_known_of_the_other_clips_has_its_reason(tmp_path: Path) -> None:
    for name, loudness in (("loud", 1.0), ("silent", 0.0)):
        clip = rendered(0)
        (tmp_path / name).mkdir()
        write_mp4(tmp_path / name / "a.mp4", Pair(clip.frames, clip.samples * loudness))
    sources = [Source.of_folder(tmp_path / name) for name in ("loud", "silent")]
    table = measure_sources(sources[0], chosen_measures(("loudness",)), sources[1])
    _, _, row, _, heading, why, *_ = table.splitlines()[1:]
    assert row.split()[-1] == "-" and heading.endswith("silent:")
    assert why.startswith("  loudness: ") and len(why) > 30


def with_sound(file: Path, samples: np.ndarray) -> None:
    """A noisy picture with sound as 32-bit floats, which may hold any value."""
    with av.open(str(file), "w") as container:
        video: Any = container.add_stream("mpeg4", 24)
        video.width = video.height = 64
        video.pix_fmt = "yuv420p"
        audio: Any = container.add_stream("pcm_f32le", 16000)
        audio.layout = "stereo"
        for index in range(1 + 24 * (samples.shape[1] // 16000)):
            noise = np.random.default_rng(index).integers(0, 255, (64, 64, 3), np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(noise, format="rgb24")))
        container.mux(video.encode())
        packed = np.ascontiguousarray(samples.T.reshape(1, -1), np.float32)
        frame = av.AudioFrame.from_ndarray(packed, format="flt", layout="stereo")
        frame.rate, frame.pts = 16000, 0
        container.mux([*audio.encode(frame), *audio.encode()])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_sound_that_is_not_finite_is_not_measured(value: float, tmp_path: Path) -> None:
    sound = np.random.default_rng(0).normal(0, 0.1, (2, 25 * 16000))
    sound[:, 12 * 16000] = value
    with_sound(tmp_path / "a.mkv", sound)
    first, second = read_clips(tmp_path)
    assert isinstance(first, Clip) and first.name == "a.mkv#1"
    assert isinstance(second, Skipped) and second.name == "a.mkv#2" and "no numbers" in second.why


def test_a_clip_that_was_made_of_no_numbers_is_not_measured() -> None:
    clip = made()
    assert measurable(clip) is clip
    clip.media.audio[0, 5] = np.nan
    spoilt = measurable(clip)
    assert isinstance(spoilt, Skipped) and "no numbers" in spoilt.why


def test_captions_in_another_form_are_found_as_stage_clips_finds_them(tmp_path: Path) -> None:
    write_mp4(tmp_path / "a.mp4", made().media)
    (tmp_path / "captions.csv").write_text("video,caption\n/elsewhere/a.mp4,a red ball\n")
    (clip,) = read_clips(tmp_path)
    assert isinstance(clip, Clip) and clip.caption == "a red ball"


@pytest.mark.parametrize(
    ("manifest", "code"),
    [
        ("[]", "file.unreadable"),
        ("{", "file.unreadable"),
        ('{"kind": "latents"}', "data.wrong-folder"),
        ('{"kind": "shards"}', "data.damaged-manifest"),
        ('{"kind": "shards", "form": {"height": 3}}', "data.damaged-manifest"),
    ],
)
def test_a_damaged_manifest_is_one_sentence(manifest: str, code: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(manifest)
    with refuses(code, tmp_path):
        list(read_clips(tmp_path))


def test_pairs_tell_a_small_difference_that_the_sets_do_not() -> None:
    rows: list[dict[str, Any]] = [{"clip": n, "caption": "", "level": n} for n in range(8)]
    others = [{**row, "level": row["level"] - 0.1} for row in rows]
    found = paired_difference("level", rows, others)
    assert found is not None
    assert found.value == pytest.approx(0.1) and found.low == pytest.approx(0.1)
    others[0]["caption"], others[1]["level"] = "another", None
    assert (paired_difference("level", rows, others) or found).n == 6
    assert paired_difference("level", rows[:1], others) is None


def test_mistakes_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with refuses("evaluation.unknown-measure", "'loudnes'", "'loudness'"):
        chosen_measures(["loudnes"])
    with refuses("file.not-a-folder", tmp_path / "nowhere"):
        list(read_clips(tmp_path / "nowhere"))
    with refuses("data.no-clips", tmp_path):
        list(read_clips(tmp_path))
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    with refuses("data.no-clips", "broken.mp4: not a readable video"):
        list(read_clips(tmp_path))
    with pytest.raises(SystemExit) as end:
        main(["measure", str(tmp_path / "nowhere")])
    assert end.value.code == 2 and "file.not-a-folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["--measures", ","], "option.malformed", "at least one"),
        (["--measures", ""], "option.malformed", "at least one"),
        (["--device", "nonsense"], "device.unusable", "nonsense"),
        (["--captions", "x", "--seed", "0"], "option.conflict", "--captions and --seed"),
        (["--seconds", "3"], "option.conflict", "--seconds"),
    ],
)
def test_options_that_do_nothing_are_refused(
    options: list[str], code: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = made()
    write_mp4(tmp_path / "a.mp4", clip.media)
    with pytest.raises(SystemExit) as end:
        main(["measure", str(tmp_path), *options])
    assert end.value.code == 2
    refused(capsys.readouterr().err, code, says)
    with pytest.raises(SystemExit) as end:
        main(["measure", str(tmp_path), "--measures", " motion , motion"])
    assert end.value.code == 0 and capsys.readouterr().out.count("\nmotion ") == 1
