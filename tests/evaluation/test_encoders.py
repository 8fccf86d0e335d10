"""Measures with weights: tiny random models in the published format, loaded by the real code."""

import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from omniforcing.core.files import sha256_file
from omniforcing.core.pair import Pair
from omniforcing.evaluation.measures.base import Observed, figures_of, observe_clips
from omniforcing.evaluation.measures.clips import Clip
from omniforcing.evaluation.measures.encoders.distances import mmd
from omniforcing.evaluation.measures.encoders.programs import SIDE
from omniforcing.evaluation.measures.encoders.speech import WhisperEncoder, word_errors, words
from omniforcing.evaluation.measures.encoders.weights import Entry, Weights
from omniforcing.evaluation.measures.registry import WITH_WEIGHTS, chosen_measures
from omniforcing.evaluation.measures.tables import about
from omniforcing.evaluation.quality import floor, gaussian_distance
from tests.support.refusals import refuses
from tests.support.tiny_encoders import Flow, coloured, measure, value, write_weights

pytestmark = pytest.mark.extended


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """The file that names all weights, read."""
    return Weights.read(write_weights(tmp_path_factory.mktemp("weights")))


@cache
def noisy(level: float) -> list[Clip]:
    """Clips that last 2 s, darker and louder by ``level``."""
    clips = []
    for index in range(36):
        clip = coloured(index)
        frames = (clip.media.video * (1 - level)).astype(np.uint8)
        clips.append(Clip(clip.name, Pair(frames, clip.media.audio * (1 + 3 * level))))
    return clips


def test_captions_that_change_places_lower_the_text_score(weights: Weights) -> None:
    right = measure(weights, [coloured(i) for i in range(6)], "clip_text_video")
    changed = [coloured(i, caption=coloured(i + 1).caption) for i in range(6)]
    wrong = measure(weights, changed, "clip_text_video")
    assert value(right, "clip_text_video") > value(wrong, "clip_text_video") + 0.2
    silent = [Clip(clip.name, clip.media) for clip in changed]
    row = measure(weights, silent, "clip_text_video").rows[0]
    assert row.figure is None and "found 0" in row.why  # no captions


def test_sound_and_caption_have_a_cosine(weights: Weights) -> None:
    clips = [coloured(0), coloured(1)]
    name = "clap_text_audio"
    found = value(measure(weights, clips, name), name)
    assert -1 <= found <= 1 and found == value(measure(weights, clips, name), name)


def test_words_that_a_caption_quotes_are_compared_with_those_that_are_said(
    weights: Weights,
) -> None:
    clip, name = coloured(0), "wer_whisper"
    said = WhisperEncoder(weights).transcript(clip)
    assert words(said)
    quoting = Clip("a", clip.media, f'a man says: "{said.upper()}!"')
    assert value(measure(weights, [quoting], name), name) == 0
    other = Clip("b", clip.media, "a man says: \u201czebra\u201d")
    row = measure(weights, [quoting, other, clip], name).rows[0]
    assert row.figure is not None and row.figure.n == 2 and row.figure.value > 0
    row = measure(weights, [clip], name).rows[0]
    assert row.figure is None and "found 0" in row.why


def test_word_errors_are_the_least_number_of_changes() -> None:
    assert word_errors(["the", "cat", "sat"], ["the", "cat", "sat"]) == 0
    assert word_errors(["the", "cat"], ["the", "cat", "sat"]) == 1
    assert word_errors(["a", "the", "cat", "sat", "down"], ["the", "dog", "sat"]) == 3
    assert word_errors([], ["the", "dog"]) == 2


def test_a_subject_that_stays_is_one_and_one_that_changes_is_less(weights: Weights) -> None:
    still, name = coloured(0), "dinov2_subject"
    changed = np.concatenate([coloured(0).media.video[:24], coloured(2).media.video[:25]])
    assert value(measure(weights, [still], name), name) == pytest.approx(1, abs=1e-5)
    clip = Clip("changed", Pair(changed, still.media.audio))
    assert value(measure(weights, [clip], name), name) < 0.999


def test_distances_of_a_set_to_itself_are_zero_and_grow_with_the_change(weights: Weights) -> None:
    names = ["frechet_vjepa2", "mmd_vjepa2", "frechet_clap", "fvd_i3d"]
    real = noisy(0.0)
    same, near, far = (
        measure(weights, noisy(level), *names, against=real) for level in (0.0, 0.2, 0.5)
    )
    for name in names:
        assert value(same, name) == pytest.approx(0, abs=1e-4) or "mmd" in name
        assert value(same, name) < value(near, name) < value(far, name), name
    figure = far.rows[1].figure
    assert figure is not None and figure.floor is not None and figure.n == 36


def test_too_few_clips_for_a_distance_are_counted(weights: Weights) -> None:
    few = noisy(0.0)[:5]
    row = measure(weights, few, "frechet_vjepa2", against=few).rows[0]
    assert row.figure is None and "needs 32 clips" in row.why and "found 5" in row.why
    row = measure(weights, noisy(0.0), "mmd_vjepa2").rows[0]
    assert row.figure is None and row.why == "needs 4 clips to compare with, found 0"


def test_kernel_distance_has_no_bias_where_frechet_has_a_floor() -> None:
    generator = np.random.default_rng(0)
    sets = [generator.normal(size=(64, 16)) for _ in range(40)]
    distances = [mmd(sets[i], sets[i + 1])[0] for i in range(0, 40, 2)]
    assert abs(np.mean(distances)) < 2 * np.std(distances) / np.sqrt(len(distances))
    frechets = [gaussian_distance(sets[i], sets[i + 1]) for i in range(0, 40, 2)]
    expected = floor(sets[0], 64, 64, gaussian_distance)
    assert np.mean(frechets) == pytest.approx(expected, rel=0.35) and expected > 0.5


def flash(late: float, seconds: int) -> Clip:
    """A bright frame at 2.0 s and a click that is ``late``."""
    frames = np.zeros((1 + 24 * seconds, 32, 32, 3), np.uint8)
    sound = np.zeros((2, 16000 * seconds), np.float32)
    frames[48] = 255
    sound[:, round((2.0 + late) * 16000)] = 1
    return Clip("flash", Pair(frames, sound))


def test_desync_grows_with_the_shift_of_the_sound_in_both_samplings(weights: Weights) -> None:
    for name in ("desync_synchformer_first_last", "desync_synchformer_all_windows"):
        found = [value(measure(weights, [flash(late, 5)], name), name) for late in (0, 0.4, 1.2)]
        assert found == pytest.approx([0, 0.4, 1.2], abs=0.21) and sorted(found) == found
    short = measure(weights, [flash(0.4, 3)], "desync_synchformer_first_last").rows[0]
    assert short.figure is None and "found 0" in short.why
    name = "desync_synchformer_all_windows"
    assert value(measure(weights, [flash(0.4, 3)], name), name) == pytest.approx(0.4, abs=0.21)


def test_the_windowed_score_falls_as_the_sound_leaves_its_picture(weights: Weights) -> None:
    frames = np.zeros((1 + 24 * 6, 32, 32, 3), np.uint8)
    frames[48:96] = 255
    found = []
    for shift in (0, 1, 2):
        sound = np.zeros((2, 16000 * 6), np.float32)
        sound[:, (2 + shift) * 16000 : (4 + shift) * 16000] = 1
        clip = Clip("pair", Pair(frames, sound))
        found.append(value(measure(weights, [clip], "javis_pair"), "javis_pair"))
    assert found[0] > found[1] > found[2]
    assert value(measure(weights, [clip], "av_pair"), "av_pair") <= 1


class Raising(nn.Module):
    """Raises at frames that are wider than this."""

    def __init__(self, most: int = 0) -> None:
        super().__init__()
        self.most = most

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        if first.shape[3] > self.most:
            raise ValueError("too wide for me")
        return (second - first)[:, :2]


def test_weights_that_cannot_be_used_are_rows_with_their_reason(
    weights: Weights, tmp_path: Path
) -> None:
    def why(name: str, entry: Entry | None, measure_name: str) -> str:
        named = Weights({name: entry} if entry else {})
        (row,) = measure(named, [coloured(0)], measure_name).rows
        assert row.figure is None
        return row.why

    clip, i3d = weights.entries["clip"], weights.entries["i3d"]
    assert "name clip in the file of --weights" in why("clip", None, "clip_text_video")
    assert "missing" in why("clip", Entry(tmp_path, "0" * 64), "clip_text_video")
    assert "sha256" in why("clip", Entry(clip.path, "0" * 64), "clip_text_video")
    assert "another architecture" in why("dinov2", clip, "dinov2_subject")
    assert "another signature" in why("pair", i3d, "av_pair")
    mixed = why("synchformer", i3d, "desync_synchformer_first_last")
    assert "another signature" in mixed and "'rescale'" in mixed
    raising = tmp_path / "raising.pt"
    torch.jit.script(Raising()).save(raising)
    said = why("raft", Entry(raising, sha256_file(raising)), "dynamic_degree_raft")
    assert "another signature" in said and "too wide for me" in said
    folder = tmp_path / "whisper"
    shutil.copytree(weights.entries["whisper"].path, folder)
    model = folder / "model.safetensors"
    model.write_bytes(model.read_bytes()[:2000])
    named = Entry(folder, sha256_file(model))
    assert "cannot be loaded" in why("whisper", named, "wer_whisper")
    (folder / "config.json").write_text("{")
    assert "cannot be read as JSON" in why("whisper", named, "wer_whisper")
    export = tmp_path / "program.pt2"
    program: Any = torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),))
    torch.export.save(program, export)
    assert "refused" in why("i3d", Entry(export, sha256_file(export)), "fvd_i3d")


def test_an_encoder_that_fails_on_a_clip_is_a_row_that_names_it(tmp_path: Path) -> None:
    torch.jit.script(Raising(128)).save(tmp_path / "raft.pt")
    named = Weights({"raft": Entry(tmp_path / "raft.pt", sha256_file(tmp_path / "raft.pt"))})
    measures = chosen_measures(["motion", "dynamic_degree_raft"], named)
    observed = observe_clips([coloured(0), coloured(1)], measures)  # 128 rows, 192 columns
    observed.save(tmp_path / "seen.json")
    for seen in (observed, Observed.load(tmp_path / "seen.json")):
        motion, dynamic = figures_of(seen, measures).rows
        assert motion.figure is not None and motion.figure.n == 2
        assert dynamic.figure is None
        assert "failed on clip 0" in dynamic.why and "too wide for me" in dynamic.why


class Spoilt(nn.Module):
    """Gives features that are no numbers, or others at each call."""

    def __init__(self, varies: bool) -> None:
        super().__init__()
        self.varies = varies

    def forward(self, video: Tensor, rescale: bool, resize: bool, return_features: bool) -> Tensor:
        assert return_features and not rescale and not resize
        if self.varies:
            return torch.zeros(1, 1 + int(video.mean() * 1000) % 7)
        return video.mean(dim=(3, 4)).flatten(1) * float("nan")


@pytest.mark.parametrize(("varies", "says"), [(False, "is not finite"), (True, "makes no figure")])
def test_features_that_make_no_figure_are_a_row(varies: bool, says: str, tmp_path: Path) -> None:
    torch.jit.script(Spoilt(varies)).save(tmp_path / "i3d.pt")
    named = Weights({"i3d": Entry(tmp_path / "i3d.pt", sha256_file(tmp_path / "i3d.pt"))})
    clips = [coloured(index, 1) for index in range(33)]
    measured = measure(named, clips, "fvd_i3d", against=clips)
    assert measured.rows[0].figure is None and says in measured.rows[0].why
    measures = chosen_measures(["fvd_i3d"], named)
    whole = Observed(seen={"fvd_i3d": [np.zeros(4)] * 33})
    other = observe_clips(clips, measures) if not varies else Observed(failed={"fvd_i3d": "x"})
    (row,) = figures_of(whole, measures, other).rows
    assert row.figure is None and "of the clips to compare with" in row.why


def test_figures_of_other_weights_have_another_protocol(weights: Weights) -> None:
    entry = weights.entries["clip"]
    (mine,) = chosen_measures(["clip_text_video"], weights)
    assert entry.sha256[:12] in mine.protocol
    (none,) = chosen_measures(["clip_text_video"], Weights())
    assert none.missing and none.protocol_id != mine.protocol_id
    assert about(mine)["licence"] == mine.licence != ""


def test_a_model_that_lacks_a_tensor_is_not_filled_with_noise(
    weights: Weights, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    source = weights.entries["dinov2"].path
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    tensors = load_file(source / "model.safetensors")
    tensors.pop("layernorm.weight")
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    named = Weights({"dinov2": Entry(tmp_path, sha256_file(tmp_path / "model.safetensors"))})
    row = measure(named, [coloured(0)], "dinov2_subject").rows[0]
    assert row.figure is None and "lacks 1 tensors, first layernorm.weight" in row.why


@pytest.mark.parametrize(
    ("name", "file", "content", "measure_name"),
    [
        ("clip", "tokenizer.json", "{}", "clip_text_video"),
        ("clip", "tokenizer_config.json", "[]", "clip_text_video"),
        ("clap", "preprocessor_config.json", "[]", "clap_text_audio"),
        ("clip", "config.json", '{"model_type": "clip", "vision_config": []}', "clip_text_video"),
        ("whisper", "preprocessor_config.json", '{"feature_size": "x"}', "wer_whisper"),
    ],
)
def test_files_beside_the_weights_that_are_damaged_are_a_row(
    name: str, file: str, content: str, measure_name: str, weights: Weights, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(weights.entries[name].path, tmp_path / name))
    (folder / file).write_text(content)
    named = Weights({name: Entry(folder, weights.entries[name].sha256)})
    (row,) = measure(named, [coloured(0)], measure_name).rows
    assert row.figure is None and str(folder) in row.why and "loaded" in row.why


def test_a_file_of_weights_that_is_malformed_is_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "weights.yaml"
    with refuses("file.unreadable", file):
        Weights.read(file)
    file.write_text("clipp: {path: x, sha256: y}")
    with refuses("evaluation.malformed-weights", "'clipp'", "'clip'"):
        Weights.read(file)
    digest = "a" * 64
    for text, says in (
        ("clip: {path: x, sha256: y}", "sha256 of clip is 'y'"),
        (f"clip: {{path: x, sha256: {'1' * 64}}}", "in quotes"),
        (f"clip: {{path: null, sha256: {digest}}}", "path of clip is None"),
        ("clip: weights/clip", "'weights/clip'"),
        ("- clip", "names no weights"),
        ("", "names no weights"),
    ):
        file.write_text(text)
        with refuses("evaluation.malformed-weights", file, says):
            Weights.read(file)
    file.write_text("clip: {path: [")
    with refuses("file.unreadable", file):
        Weights.read(file)
    file.write_text(f"clip: {{path: x, sha256: {'A' * 64}}}")
    assert Weights.read(file).entries["clip"] == Entry(tmp_path / "x", digest)


def test_every_measure_with_weights_names_licence_and_protocol() -> None:
    assert all(kind.licence and kind.protocol and SIDE for kind in WITH_WEIGHTS)
    named = chosen_measures()
    assert not {measure.name for measure in named} & {kind.name for kind in WITH_WEIGHTS}


@pytest.mark.parametrize(("pixels", "dynamic"), [(0, 0.0), (1, 0.0), (3, 1.0)])
def test_a_clip_is_dynamic_if_it_moves_six_of_256_pixels_in_an_eighth_of_a_second(
    weights: Weights, pixels: int, dynamic: float
) -> None:
    """Of 64 pixels that is one and a half: frames are compared three apart, at 8 per second."""
    frames = np.zeros((49, 64, 64, 3), np.uint8)
    for number, frame in enumerate(frames):
        at = pixels * (number // 3)
        frame[20:28, at % 40 : at % 40 + 8] = 255
    name = "dynamic_degree_raft"
    clip = Clip("square", Pair(frames, np.zeros((2, 32000), np.float32)))
    assert value(measure(weights, [clip], name), name) == dynamic
    row = measure(weights, [Clip("one", Pair(frames[:1], clip.media.audio))], name).rows[0]
    assert row.figure is None


def test_a_flow_of_another_size_is_refused(tmp_path: Path) -> None:
    class Half(Flow):
        def forward(self, first: Tensor, second: Tensor) -> Tensor:
            return (second - first)[:, :2, ::2, ::2]

    torch.jit.script(Half()).save(tmp_path / "raft.pt")
    entry = Entry(tmp_path / "raft.pt", sha256_file(tmp_path / "raft.pt"))
    row = measure(Weights({"raft": entry}), [coloured(0)], "dynamic_degree_raft").rows[0]
    assert row.figure is None and "another signature" in row.why and "[1, 2, H, W]" in row.why
