"""What LTX-2.5 alone publishes: a text encoder in one file, and a second video decoder."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import LTX2VideoDiffusionDecoderModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import Gemma4UnifiedForConditionalGeneration

from benchmarks.published.parts import diffusion_vae, released_diffusion_decoder, save_published
from omniforcing.codec.text import TextEncoder, text_precision
from omniforcing.model.weights.command import import_whole
from omniforcing.model.weights.parts import diffusion_decoder
from omniforcing.model.weights.parts.bundle import open_bundle
from omniforcing.model.weights.parts.part import DIFFUSION
from tests.support.pipeline_features import pipeline_features
from tests.support.refusals import refuses
from tests.support.tiny_models import difference

pytestmark = pytest.mark.extended


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_published("2.5", tmp_path_factory.mktemp("published"))


def changed(published: Path, folder: Path, name: str, change: Any) -> Path:
    """Copy the files, with links to all but one, whose tensors and metadata are changed."""
    for file in published.rglob("*.safetensors"):
        place = folder / file.relative_to(published)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(file)
    (target,) = folder.rglob(name)
    with safe_open(target, "pt") as opened:
        metadata = dict(opened.metadata() or {})
    tensors = load_file(target)
    target.unlink()
    change(tensors, metadata)
    save_file(tensors, target, metadata)
    return target


@pytest.fixture(scope="module")
def imported(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("imported") / "ltx"
    import_whole(published, place, [], None, copy=False, rope=None)
    return place


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_features_of_the_files_own_gemma_are_those_of_diffusers_pipeline(
    dtype: torch.dtype, imported: Path
) -> None:
    prompts = ["a ball bounces", ""]
    theirs = pipeline_features(imported, prompts, dtype, Gemma4UnifiedForConditionalGeneration)
    found = TextEncoder.load(imported, dtype=dtype).encode(prompts)
    assert text_precision(imported) is torch.bfloat16  # as published
    assert difference(found, theirs) < 1e-5


def test_diffusers_opens_the_imported_diffusion_decoder(published: Path, imported: Path) -> None:
    theirs, told = LTX2VideoDiffusionDecoderModel.from_pretrained(
        imported / "diffusion_decoder", output_loading_info=True
    )
    assert not told["missing_keys"] and not told["unexpected_keys"]
    file = load_file(published / "vae" / "video-vae.safetensors")
    joined = file["decoder.det_stages.1.0.attn.qkv.weight"].float()
    block = theirs.decoder.det_stages[1][0].attn
    parts = [layer.weight for layer in (block.to_q, block.to_k, block.to_v)]
    assert torch.equal(torch.cat(parts), joined)


def test_the_released_decoder_has_its_published_size_and_config() -> None:
    config, module = released_diffusion_decoder()
    count = sum(math.prod(p.shape) for p in module.parameters())
    assert round(count / 1e6) == 417
    originals = {DIFFUSION.to_original(name, config) for name in module.state_dict()}
    # Of 396 tensors in the file 84 are the encoder's, and one is read by nobody.
    assert len(originals) == 396 - 84 - 1
    again = {"decoder": DIFFUSION.to_metadata(config, "here")}
    widths = {f"{DIFFUSION.prefix}decoder.shared_adaln.proj.weight": (7 * 256, 384)}
    assert config == DIFFUSION.from_metadata(again, widths, "here")
    assert module.smallest == (3, 7, 7)


# --- what is refused ------------------------------------------------------------------------------


def _without(key: str) -> Any:
    return lambda tensors, _: tensors.pop(key)


def _told(**changes: Any) -> Any:
    def change(_: Any, metadata: dict[str, str]) -> None:
        metadata["gemma_config"] = json.dumps(json.loads(metadata["gemma_config"]) | changes)

    return change


@pytest.mark.parametrize(
    ("change", "code", "facts"),
    [
        (_without("tokenizer_json"), "weights.missing-part", ["tokenizer.json"]),
        (
            _without("hf_asset__tokenizer_config.json"),
            "weights.missing-part",
            ["tokenizer_config.json"],
        ),
        (
            _without("model.norm.weight"),
            "weights.wrong-tensors",
            ["model.norm", "1 missing"],
        ),
        (
            lambda tensors, _: tensors.update(tokenizer_json=torch.zeros(9, dtype=torch.uint8)),
            "weights.wrong-tokenizer",
            ["readable"],
        ),
        (lambda _, metadata: metadata.pop("gemma_config"), "weights.no-config", ["gemma_config"]),
        (_told(model_type="gemma3"), "weights.wrong-text-encoder", ["gemma3", "gemma4_unified"]),
        (_told(gemma_version="another"), "weights.wrong-text-encoder", ["another", "tiny-v1"]),
    ],
)
def test_a_text_encoder_that_does_not_fit_is_named(
    change: Any, code: str, facts: list[str], published: Path, tmp_path: Path
) -> None:
    file = changed(published, tmp_path / "ltx", "gemma4-with-proj.safetensors", change)
    with refuses(code, file, *facts):
        open_bundle(tmp_path / "ltx")


def test_files_without_gemma_say_which_is_needed_and_where(published: Path, tmp_path: Path) -> None:
    def strip(tensors: dict[str, Any], _: Any) -> None:
        for name in [n for n in tensors if not n.startswith("text_embedding_projection.")]:
            del tensors[name]

    changed(published, tmp_path / "ltx", "gemma4-with-proj.safetensors", strip)
    with refuses("weights.missing-part", "gemma4-12b-with-proj", "text_encoders/", "--text-enc"):
        open_bundle(tmp_path / "ltx")
    # The file may also lie elsewhere.
    pack = published / "text_encoders" / "gemma4-with-proj.safetensors"
    bundle = open_bundle(tmp_path / "ltx", text=pack)
    assert bundle.text is not None


def test_files_without_the_transformer_say_so(published: Path, tmp_path: Path) -> None:
    file = changed(published, tmp_path / "ltx", "transformer.safetensors", lambda *_: None)
    file.unlink()
    with refuses("weights.no-transformer", tmp_path / "ltx", "diffusion_models/"):
        open_bundle(tmp_path / "ltx")


def test_a_text_encoder_in_fp8_is_read_as_bf16_and_said_to_be(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "model.layers.0.mlp.up_proj.weight"

    def quantise(tensors: dict[str, Any], _: Any) -> None:
        tensors[name] = tensors[name].to(torch.float8_e4m3fn)
        tensors[name.replace("weight", "scale_weight")] = torch.tensor(0.5)

    file = changed(published, tmp_path / "ltx", "gemma4-with-proj.safetensors", quantise)
    import_whole(tmp_path / "ltx", tmp_path / "out", [], None, copy=False, rope=None)
    assert "1 F8_E4M3" in capsys.readouterr().err
    written = load_file(tmp_path / "out" / "text_encoder" / "model.safetensors")
    found = written[name.replace("model.", "model.language_model.", 1)]
    assert torch.equal(found, (0.5 * load_file(file)[name].float()).bfloat16())


def test_a_diffusion_vae_alone_needs_the_convolutional_one(published: Path, tmp_path: Path) -> None:
    changed(published, tmp_path / "ltx", "video-vae.safetensors", lambda *_: None)
    (tmp_path / "ltx" / "vae" / "video-vae-conv.safetensors").unlink()
    with refuses("weights.unsupported-part", "CausalDiffusionVAE", "video-vae-conv", "--with"):
        open_bundle(tmp_path / "ltx")


@pytest.mark.parametrize(
    "changes", [{"default_num_inference_steps": 2}, {"gates": True}, {"stage5_channels": 32}]
)
def test_a_diffusion_decoder_of_no_release_is_refused(changes: dict[str, Any]) -> None:
    encoder: dict[str, Any] = {"encoder_blocks": [], "latent_channels": 8, "patch_size": 4}
    told = diffusion_vae(encoder)
    told["decoder"] |= changes
    with refuses("weights.unsupported-config", *changes):
        diffusion_decoder.from_metadata(told, {}, "here")
