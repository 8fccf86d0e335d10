"""The parts around the transformer: in from the published files, out again, bit for bit."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from torch import Tensor

from benchmarks.published.parts import PARTS, released_module, save_gemma, save_published
from benchmarks.published.transformer import RELEASES
from omniforcing.cli import main
from omniforcing.codec.codec import Codec
from omniforcing.codec.config import TextConfig
from omniforcing.codec.networks import load_parts
from omniforcing.codec.text import TextEncoder, build_tiny
from omniforcing.model.weights.parts.bundle import open_bundle
from omniforcing.model.weights.parts.part import KINDS
from tests.support.pipeline_features import pipeline_features
from tests.support.refusals import refused, refuses
from tests.support.tiny_models import difference

pytestmark = pytest.mark.extended

NORM, FP8 = "layers.1.post_feedforward_layernorm.weight", torch.float8_e4m3fn
UNREAD = ("mean-of-stds", "decoder.type_emb")


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as end:
        main(["weights", *map(str, words)])
    assert isinstance(end.value.code, int)
    return end.value.code


def tensors_of(folder: Path, but: str = "tokenizer") -> dict[str, Tensor]:
    """Every tensor below a folder, by file and name, ``but`` those of one part."""
    return {
        f"{file.relative_to(folder)}:{name}": tensor
        for file in sorted(folder.rglob("*.safetensors"))
        if but not in file.parts
        for name, tensor in load_file(file).items()
    }


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys() and one
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype
        assert torch.equal(tensor.view(torch.uint8), other[name].view(torch.uint8)), name


@pytest.mark.parametrize("release", ["2.0", "2.3"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_names_and_shapes_are_those_of_the_released_files(release: str, kind: Any) -> None:
    config, module = released_module(kind, release)
    lines = sorted(
        f"{kind.prefix}{kind.to_original(name, config)} {list(tensor.shape)}"
        for name, tensor in module.state_dict().items()
    )
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    assert [len(lines), digest] == PARTS[release]["tensors"][kind.name]


@pytest.mark.parametrize("release", RELEASES)
def test_published_files_become_a_whole_folder_and_files_again_bit_for_bit(
    release: str, tmp_path: Path
) -> None:
    source = save_published(release, tmp_path / "published")
    # LTX-2.5's files bring their text encoder.
    own = release == "2.5"
    named = () if own else ("--text-encoder", save_gemma(release, tmp_path / "gemma"))
    folders = [tmp_path / name for name in ("one", "two")]
    assert run("import", source, folders[0], *named) == 0
    assert run("export", folders[0], tmp_path / "out") == 0
    written = tmp_path / "out"
    if not own:
        (written,) = written.iterdir()
    assert run("import", written, folders[1], *named, "--copy") == 0
    # Others' text encoder is a link in the first folder and a copy in the second.
    part = "tokenizer" if own else "text_encoder"
    assert_same(*(tensors_of(folder, part) for folder in folders))
    second = ("diffusion_decoder", "text_encoder") if own else ()
    for name in ("transformer", *(kind.name for kind in KINDS), *second):
        configs = [(folder / name / "config.json").read_bytes() for folder in folders]
        assert configs[0] == configs[1]
    # Against the source: the same tensors under the same names, but for those that nobody reads.
    before, after = (
        {n: t for f in _files(place) for n, t in load_file(f).items() if not n.endswith(UNREAD)}
        for place in (source, written)
    )
    assert_same(before, after)
    assert (folders[0] / "text_encoder").is_symlink() != own
    assert not (folders[1] / "text_encoder").is_symlink()


def _files(place: Path) -> list[Path]:
    return [place] if place.is_file() else sorted(place.rglob("*.safetensors"))


@pytest.mark.parametrize("release", RELEASES)
def test_an_imported_folder_is_a_codec_and_a_text_encoder(release: str, tmp_path: Path) -> None:
    source = save_published(release, tmp_path / "published")
    gemma = save_gemma(release, tmp_path / "gemma")
    assert run("import", source, tmp_path / "ltx", "--text-encoder", gemma) == 0
    codec = Codec(*load_parts(tmp_path / "ltx"), 64, 96)
    assert codec.sample_rate == (24_000 if release == "2.0" else 48_000)
    assert codec.latent_shape(64, 96) == (6, 8, 16)
    assert not codec.video_vae.config.decoder_causal
    prompts = ["a ball bounces", ""]
    for dtype in (torch.float32, torch.bfloat16):
        found = TextEncoder.load(tmp_path / "ltx", dtype=dtype).encode(prompts)
        assert difference(found, pipeline_features(tmp_path / "ltx", prompts, dtype)) < 1e-5


def test_connectors_without_registers_are_refused(tmp_path: Path) -> None:
    build_tiny(tmp_path, TextConfig(layers=1, hidden=32, heads=2, length=16, registers=8), ["a"], 0)
    config = tmp_path / "tokenizer" / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "model_max_length": 20}))
    with refuses("codec.wrong-registers", "8 registers", "20 tokens"):
        TextEncoder.load(tmp_path)


def test_a_whole_diffusers_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    source = save_published("2.3", tmp_path / "published")
    gemma = save_gemma("2.3", tmp_path / "gemma")
    run("import", source, tmp_path / "one", "--text-encoder", gemma)
    assert run("import", tmp_path / "one", tmp_path / "two") == 0
    assert_same(tensors_of(tmp_path / "one"), tensors_of(tmp_path / "two"))
    # A student brings its transformer alone; the rest comes from another folder.
    shutil.copytree(tmp_path / "one" / "transformer", tmp_path / "student")
    words = ("import", tmp_path / "student", tmp_path / "three", "--with", tmp_path / "one")
    assert run(*words) == 0
    assert_same(tensors_of(tmp_path / "one"), tensors_of(tmp_path / "three"))


def test_joyai_echo_is_no_teacher_but_its_transformer_can_be_converted(
    tmp_path: Path, capsys: Any
) -> None:
    """It has LTX-2.0's parts, and an index of its own."""
    source = save_published("2.0", tmp_path / "published")
    gemma = save_gemma("2.0", tmp_path / "gemma")
    echo = tmp_path / "echo"
    run("import", source, echo, "--text-encoder", gemma)
    index = {
        "_class_name": "EchoModularPipeline",
        "transformer": ["diffusers", "LTX2VideoTransformer3DModel", {}],
    }
    (echo / "modular_model_index.json").write_text(json.dumps(index))
    assert run("import", echo, tmp_path / "two") == 2
    refused(capsys.readouterr().err, "weights.unsupported-model", echo, "no teacher")
    assert run("import", echo, tmp_path / "two", "--transformer-only") == 0
    only = tensors_of(echo / "transformer")
    assert_same(only, tensors_of(tmp_path / "two" / "transformer"))


# --- what is refused ------------------------------------------------------------------------------


def edited(file: Path, change: Any) -> Path:
    """Change a file's tensors and metadata."""
    with safe_open(file, "pt") as opened:
        metadata = dict(opened.metadata() or {})
    tensors = load_file(file)
    change(tensors, metadata)
    save_file(tensors, file, metadata)
    return file


def test_a_single_file_without_the_codecs(tmp_path: Path, capsys: Any) -> None:
    file = save_published("2.0", tmp_path)
    edited(file, lambda t, _: [t.pop(name) for name in list(t) if name.startswith("vocoder.")])
    assert run("import", file, tmp_path / "out") == 2
    refused(capsys.readouterr().err, "weights.missing-part", file, "vocoder", "--with")
    assert not (tmp_path / "out").exists()
    assert run("import", file, tmp_path / "out", "--transformer-only") == 0


@pytest.mark.parametrize("name", ["vae.decoder.conv_in.conv.bias", "vocoder.conv_pre.bias"])
def test_a_component_that_lacks_a_tensor(name: str, tmp_path: Path) -> None:
    file = save_published("2.0", tmp_path)
    edited(file, lambda t, _: t.pop(name))
    with refuses("weights.wrong-tensors", file, "1 missing"):
        open_bundle(file, with_text=False)


def test_a_truncated_component_is_named(tmp_path: Path) -> None:
    folder = save_published("2.5", tmp_path / "ltx")
    file = folder / "vae" / "audio-vae.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with refuses("weights.truncated", file):
        open_bundle(folder, with_text=False)


def test_a_component_of_another_generation(tmp_path: Path) -> None:
    old, new = (save_published(release, tmp_path / release) for release in ("2.0", "2.3"))
    edited(new, lambda t, _: [t.pop(name) for name in list(t) if name.startswith("vocoder.")])
    only = ("vocoder.",)
    edited(old, lambda t, _: [t.pop(name) for name in list(t) if not name.startswith(only)])
    with refuses("weights.mixed-releases", old, "vocoder", "LTX-2.0", "LTX-2.3"):
        open_bundle(new, [old], with_text=False)


def test_a_part_whose_config_is_missing_or_of_the_diffusion_decoder(tmp_path: Path) -> None:
    file = save_published("2.3", tmp_path)
    told = json.loads(edited_metadata(file)["config"])
    del told["audio_vae"]["preprocessing"]
    edited(file, lambda _, m: m.update(config=json.dumps(told)))
    with refuses("weights.no-config", file, "audio VAE", "preprocessing"):
        open_bundle(file, with_text=False)
    told["vae"] = {"_class_name": "CausalDiffusionVAE"}
    edited(file, lambda _, m: m.update(config=json.dumps(told)))
    with refuses("weights.unsupported-part", file, "CausalDiffusionVAE", "video-vae-conv"):
        open_bundle(file, with_text=False)


def edited_metadata(file: Path) -> dict[str, str]:
    with safe_open(file, "pt") as opened:
        return dict(opened.metadata())


def test_gemma_is_missing_or_another_one(tmp_path: Path) -> None:
    file = save_published("2.3", tmp_path)
    with refuses("weights.missing-part", "Gemma 3 12B", "--text-encoder"):
        open_bundle(file)
    gemma = save_gemma("2.3", tmp_path / "gemma")
    (gemma / "tokenizer" / "tokenizer.json").rename(tmp_path / "kept.json")
    with refuses("weights.missing-part", gemma / "tokenizer", "tokenizer.json"):
        open_bundle(file, text=gemma)
    (tmp_path / "kept.json").rename(gemma / "tokenizer" / "tokenizer.json")
    config = json.loads((gemma / "text_encoder" / "config.json").read_text())
    config["num_hidden_layers"] += 1
    (gemma / "text_encoder" / "config.json").write_text(json.dumps(config))
    with refuses("weights.wrong-text-encoder", gemma / "text_encoder", "(16, 3)", "(16, 2)"):
        open_bundle(file, text=gemma)
    (gemma / "text_encoder" / "model.safetensors").unlink()
    with refuses("weights.missing-part", gemma / "text_encoder", "safetensors"):
        open_bundle(file, text=gemma)


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The single file of LTX-2.3."""
    return save_published("2.3", tmp_path_factory.mktemp("single"))


@pytest.fixture(scope="module")
def whole_gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_gemma("2.3", tmp_path_factory.mktemp("gemma"))


def _cut(folder: Path) -> None:
    file = folder / "text_encoder" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-50])


def _changed(**changes: Any) -> Any:
    def change(folder: Path) -> None:
        def update(tensors: dict[str, Tensor], _: Any) -> None:
            for name, make in changes.items():
                tensors[name] = make(tensors.pop(name))
                if tensors[name] is None:
                    del tensors[name]

        edited(folder / "text_encoder" / "model.safetensors", update)

    return change


def _tokenizer(**settings: str) -> Any:
    def change(folder: Path) -> None:
        file = folder / "tokenizer" / "tokenizer_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | settings))

    return change


def _vocabulary(count: int) -> Any:
    def change(folder: Path) -> None:
        words = {f"w{number}": number for number in range(count)}
        Tokenizer(models.WordLevel(words)).save(str(folder / "tokenizer" / "tokenizer.json"))

    return change


@pytest.mark.parametrize(
    ("change", "code", "facts"),
    [
        (_cut, "weights.truncated", ["model.safetensors"]),
        (_changed(**{NORM: lambda _: None}), "weights.wrong-tensors", [NORM, "1 missing"]),
        (_changed(**{NORM: lambda t: t[:3]}), "weights.wrong-shape", [NORM, "[3]", "[16]"]),
        (_changed(**{NORM: lambda t: t.to(torch.uint8)}), "weights.quantised", [NORM, "U8"]),
        (_changed(**{NORM: lambda t: t.to(FP8)}), "weights.quantised", [NORM, "F8_E4M3"]),
        (_vocabulary(600), "weights.wrong-tokenizer", ["tokenizer.json", "600", "512"]),
        (_vocabulary(100), "weights.wrong-tokenizer", ["tokenizer.json", "100", "512"]),
        (_tokenizer(pad_token="<bos>"), "weights.wrong-tokenizer", ["pad_token", "2", "0"]),
    ],
)
def test_a_text_encoder_or_tokenizer_that_does_not_fit(
    change: Any, code: str, facts: list[str], single: Path, whole_gemma: Path, tmp_path: Path
) -> None:
    gemma = Path(shutil.copytree(whole_gemma, tmp_path / "gemma"))
    change(gemma)
    with refuses(code, gemma, *facts):
        open_bundle(single, text=gemma)


@pytest.mark.parametrize(
    ("place", "value", "code", "facts"),
    [
        (["vocoder", "bwe", "output_sampling_rate"], 44100, "codec.wrong-sample-rate", ["44100"]),
        (["vocoder", "bwe", "input_sampling_rate"], 22050, "codec.wrong-sample-rate", ["22050"]),
        (["audio_vae", "preprocessing", "stft", "hop_length"], 256, "weights.wrong-rate", ["256"]),
        (["audio_vae", "model", "params", "sampling_rate"], 24000, "weights.wrong-rate", ["24000"]),
    ],
)
def test_sound_of_another_rate_than_100_mel_frames_a_second(
    place: list[str], value: int, code: str, facts: list[str], single: Path, tmp_path: Path
) -> None:
    def change(_: Any, metadata: dict[str, str]) -> None:
        config = section = json.loads(metadata["config"])
        for key in place[:-1]:
            section = section[key]
        section[place[-1]] = value
        metadata["config"] = json.dumps(config)

    file = edited(Path(shutil.copy(single, tmp_path)), change)
    with refuses(code, file, *facts):
        open_bundle(file, with_text=False)


def test_two_files_with_the_same_part(tmp_path: Path) -> None:
    folder = save_published("2.5", tmp_path / "ltx")
    file = folder / "vae" / "audio-vae.safetensors"
    shutil.copy(file, folder / "vae" / "audio-vae-2.safetensors")
    with refuses("weights.several-checkpoints", "audio-vae-2.safetensors", file):
        open_bundle(folder, with_text=False)
