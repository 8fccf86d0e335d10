"""Measures with weights: tiny random models in the published format, loaded by the real code."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from omniforcing.core.files import sha256_file
from omniforcing.core.pair import Pair
from omniforcing.evaluation.measures.base import Measured, figures_of, observe_clips
from omniforcing.evaluation.measures.clips import Clip
from omniforcing.evaluation.measures.encoders.distances import mmd
from omniforcing.evaluation.measures.encoders.programs import SIDE
from omniforcing.evaluation.measures.encoders.speech import WhisperEncoder, word_errors, words
from omniforcing.evaluation.measures.encoders.weights import Entry, Weights
from omniforcing.evaluation.measures.registry import WITH_WEIGHTS, chosen_measures
from omniforcing.evaluation.quality import floor, gaussian_distance
from tests.support.refusals import refuses

pytestmark = pytest.mark.extended
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220)}
WORDS = ["<|startoftext|>", "<|endoftext|>", *(f"{name}</w>" for name in (*COLOURS, "ball"))]


def coloured(index: int, seconds: int = 2, caption: str | None = None) -> Clip:
    """A clip of one colour, with noise of its own."""
    name = list(COLOURS)[index % len(COLOURS)]
    generator = np.random.default_rng(index)
    frames = np.empty((1 + 24 * seconds, 32, 48, 3), np.uint8)
    frames[:] = np.clip(COLOURS[name] + generator.integers(-20, 20, (32, 48, 1)), 0, 255)
    sound = generator.normal(0, 0.1, (2, 16000 * seconds)).astype(np.float32)
    return Clip(str(index), Pair(frames, sound), caption or f"{name} ball")


def tokenizer(folder: Path) -> None:
    """A tokenizer of a few words, in CLIP's format."""
    from transformers import CLIPTokenizer

    vocabulary = folder / "vocab.json"
    letters = sorted({letter for word in WORDS for letter in word.removesuffix("</w>")})
    known = [*WORDS, *letters, *(f"{letter}</w>" for letter in letters)]
    merges = []
    for word in (*COLOURS, "ball"):
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            merges.append(f"{parts[0]} {parts[1]}")
            parts = ["".join(parts[:2]), *parts[2:]]
            known.append(parts[0])
    pairs = list(dict.fromkeys(known))
    vocabulary.write_text(json.dumps({word: index for index, word in enumerate(pairs)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(dict.fromkeys(merges)))
    CLIPTokenizer(str(vocabulary), str(folder / "merges.txt")).save_pretrained(folder)


def tiny_clip(folder: Path) -> None:
    """CLIP whose projection of pictures is a linear probe: colours lie at their captions."""
    from transformers import AutoTokenizer, CLIPConfig, CLIPModel

    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    small |= {"num_attention_heads": 2, "projection_dim": 12}
    text = {**small, "vocab_size": 60, "max_position_embeddings": 16, "eos_token_id": 1}
    vision = {**small, "image_size": 32, "patch_size": 16}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)).eval()
    model.save_pretrained(folder)
    tokenizer(folder)
    words = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    from omniforcing.evaluation.measures.encoders.models import OPENAI, pictures

    seen, said = [], []
    with torch.no_grad():
        for index in range(9):
            clip = coloured(index)
            pixels = pictures(clip.media.video[:1], 32, *OPENAI)
            seen.append(model.vision_model(pixels).pooler_output[0])
            tokens = words([clip.caption], return_tensors="pt")
            said.append(model.get_text_features(**tokens).pooler_output[0])
        wanted = torch.stack(said) - torch.stack(said).mean(0)
        model.visual_projection.weight.copy_(torch.linalg.lstsq(torch.stack(seen), wanted)[0].T)
    model.save_pretrained(folder)


def tiny_clap(folder: Path) -> None:
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel

    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 60}
    text |= {"num_attention_heads": 2, "max_position_embeddings": 90, "projection_dim": 8}
    audio = {"patch_embeds_hidden_size": 8, "hidden_size": 16, "depths": [1, 1]}
    audio |= {"num_attention_heads": [2, 2], "num_hidden_layers": 2, "projection_dim": 8}
    torch.manual_seed(0)
    ClapModel(ClapConfig(text_config=text, audio_config=audio, projection_dim=8)).save_pretrained(
        folder
    )
    ClapFeatureExtractor(truncation="rand_trunc", padding="repeatpad").save_pretrained(folder)
    tokenizer(folder)


def tiny_dinov2(folder: Path) -> None:
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    config.image_size = 28
    Dinov2Model(config).save_pretrained(folder)


def tiny_vjepa2(folder: Path) -> None:
    from transformers import VJEPA2Config, VJEPA2Model

    torch.manual_seed(0)
    small = {"crop_size": 32, "frames_per_clip": 4, "hidden_size": 24, "num_hidden_layers": 1}
    small |= {"num_attention_heads": 2, "pred_hidden_size": 24, "pred_num_hidden_layers": 1}
    VJEPA2Model(VJEPA2Config(**small, pred_num_attention_heads=2)).save_pretrained(folder)


def tiny_whisper(folder: Path) -> None:
    from transformers import AutoTokenizer, WhisperConfig, WhisperFeatureExtractor
    from transformers import WhisperForConditionalGeneration as Whisper

    torch.manual_seed(1)
    small = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "num_mel_bins": 80}
    small |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "vocab_size": 60}
    small |= {"encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "max_target_positions": 12}
    small |= {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    model = Whisper(WhisperConfig(**small, suppress_tokens=None, begin_suppress_tokens=None))
    tokenizer(folder)
    known = len(AutoTokenizer.from_pretrained(folder, local_files_only=True))
    # What is said is words, not the signs of begin and end.
    model.generation_config.suppress_tokens = [0, 1, *range(known, 60)]
    model.save_pretrained(folder)
    WhisperFeatureExtractor().save_pretrained(folder)


class I3d(nn.Module):
    """Stand-in of the published I3D file's signature."""

    def forward(self, video: Tensor, rescale: bool, resize: bool, return_features: bool) -> Tensor:
        assert return_features and not rescale and not resize
        return video.mean(dim=(3, 4)).flatten(1)


class Synchformer(nn.Module):
    """Finds a bright frame and a loud sample: the offset of one from the other."""

    def forward(self, video: Tensor, sound: Tensor) -> Tensor:
        bright = video.mean(dim=(3, 4, 5))[0].flatten().argmax()
        seen = (bright // 16 * 8 + bright % 16) / 25.0
        loud = sound[0].abs().flatten().argmax()
        heard = (loud // 10240 * 5120 + loud % 10240) / 16000.0
        offsets = torch.linspace(-2.0, 2.0, 21)
        return -(offsets - (heard - seen)).abs()[None]


class Flow(nn.Module):
    """The whole picture moves as its centre of brightness does."""

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        rows = torch.arange(first.shape[2]).view(1, 1, -1, 1)
        columns = torch.arange(first.shape[3])
        found: list[Tensor] = []
        for places in (columns, rows):
            a = (first * places).sum((1, 2, 3)) / first.sum((1, 2, 3)).clamp(min=1e-6)
            b = (second * places).sum((1, 2, 3)) / second.sum((1, 2, 3)).clamp(min=1e-6)
            found.append(b - a)
        flow = torch.stack(found, 1)[:, :, None, None]
        return flow.expand(-1, -1, first.shape[2], first.shape[3])


class PairEncoder(nn.Module):
    """Bright frames and loud sounds point the same way."""

    @torch.jit.export
    def frames(self, frames: Tensor) -> Tensor:
        level = frames.mean(dim=(1, 2, 3))
        return torch.stack([level, 1 - level], 1)

    @torch.jit.export
    def sound(self, sound: Tensor) -> Tensor:
        level = sound.abs().mean(1).clamp(0, 1)
        return torch.stack([level, 1 - level], 1)


FOLDERS = {"clip": tiny_clip, "clap": tiny_clap, "dinov2": tiny_dinov2, "vjepa2": tiny_vjepa2}
FOLDERS["whisper"] = tiny_whisper
PROGRAMS: dict[str, type[nn.Module]] = {
    "i3d": I3d,
    "raft": Flow,
    "synchformer": Synchformer,
    "pair": PairEncoder,
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """The file that names all weights, read."""
    root, lines = tmp_path_factory.mktemp("weights"), []
    for name, write in FOLDERS.items():
        (root / name).mkdir()
        write(root / name)
        digest = sha256_file(root / name / "model.safetensors")
        lines.append(f"{name}: {{path: {name}, sha256: {digest}}}")
    for name, kind in PROGRAMS.items():
        torch.jit.script(kind()).save(root / f"{name}.pt")
        lines.append(f"{name}: {{path: {name}.pt, sha256: {sha256_file(root / f'{name}.pt')}}}")
    (root / "weights.yaml").write_text("\n".join(lines))
    return Weights.read(root / "weights.yaml")


def measure(
    weights: Weights, clips: list[Clip], *names: str, against: list[Clip] | None = None
) -> Measured:
    measures = chosen_measures(names, weights)
    others = observe_clips(against, measures) if against else None
    return figures_of(observe_clips(clips, measures), measures, others)


def value(measured: Measured, name: str) -> float:
    (row,) = [row for row in measured.rows if row.measure.name == name]
    assert row.figure is not None, row.why
    return row.figure.value


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
    export = tmp_path / "program.pt2"
    program: Any = torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),))
    torch.export.save(program, export)
    assert "refused" in why("i3d", Entry(export, sha256_file(export)), "fvd_i3d")


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


def test_a_file_of_weights_that_is_malformed_is_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "weights.yaml"
    with refuses("file.unreadable", file):
        Weights.read(file)
    file.write_text("clipp: {path: x, sha256: y}")
    with refuses("evaluation.malformed-weights", "'clipp'", "'clip'"):
        Weights.read(file)
    file.write_text("clip: {path: x, sha256: y}")
    with refuses("evaluation.malformed-weights", "sha256"):
        Weights.read(file)


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
