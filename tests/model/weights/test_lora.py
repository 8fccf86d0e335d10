"""Adapters' files: every naming, every refusal, and diffusers reads what we write."""

from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from diffusers import LTX2Pipeline, LTX2VideoTransformer3DModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from benchmarks.published.transformer import tiny_core
from omniforcing.cli.data import weights as weights_command
from omniforcing.core.layout import clip_latents
from omniforcing.core.pair import Pair
from omniforcing.distill.sampling import full_view
from omniforcing.model.transformer import DualStream
from omniforcing.model.weights.checkpoint import open_checkpoint
from omniforcing.model.weights.lora import (
    Lora,
    merged,
    read_lora,
    weights_digest,
    with_scale,
    write_lora,
)
from omniforcing.model.weights.names import to_original
from omniforcing.model.weights.rope_layout import with_rope
from omniforcing.model.weights.student import load_model, save_model
from omniforcing.model.weights.writing import write_original
from tests.support.refusals import refuses
from tests.support.tiny_loras import add, tiny_lora
from tests.support.tiny_models import (
    GRID,
    TOLERANCE,
    difference,
    features,
    latents,
    library_core,
    tiny_model,
)

COUNTS = clip_latents(1)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    save_model(tiny_model(), tmp_path)
    return tmp_path


def velocity(model: DualStream) -> Any:
    view = full_view(model, COUNTS, GRID)
    return model(latents(COUNTS), 0.5, model.cache_text(features()), view)


def written(lora: Lora, path: Path, **metadata: str) -> Path:
    write_lora(Lora(path, lora.layers, metadata), path)
    return path


@pytest.mark.parametrize("naming", ["diffusers", "lightricks"])
def test_diffusers_opens_our_file_and_computes_what_our_merged_weights_do(
    base: Path, naming: str
) -> None:
    """By the loader of its LTX-2 pipeline, on layers of blocks and on others that are renamed."""
    lora = tiny_lora(tiny_model().core, [".to_q", "net.2", "audio_proj_in", "linear_1"])
    write_lora(lora, base / "lora.safetensors", naming)
    model = LTX2VideoTransformer3DModel.from_pretrained(base / "transformer")
    pipeline = LTX2Pipeline(*[None] * 6, transformer=model, vocoder=None)
    pipeline.load_lora_weights(str(base), weight_name="lora.safetensors")
    inputs = diffusers_inputs()
    with torch.no_grad():
        theirs = Pair(*model(**inputs, return_dict=False))
        checkpoint = merged(open_checkpoint(base), [(read_lora(base / "lora.safetensors"), 1.0)])
        whole = library_core(checkpoint.core())
        ours = Pair(*whole(**inputs, return_dict=False))
        plain = Pair(*library_core(open_checkpoint(base).core())(**inputs, return_dict=False))
    assert difference(ours, theirs) < TOLERANCE
    assert difference(ours, plain) > 1e-2
    expected = tiny_model()
    add(expected.core, lora, 1.0)
    assert difference(velocity(DualStream(whole)), velocity(expected)) < TOLERANCE


def diffusers_inputs() -> dict[str, Any]:
    x, text = latents(COUNTS), features()
    frames = COUNTS.video
    return {
        "hidden_states": x.video.flatten(1, 2),
        "audio_hidden_states": x.audio,
        "encoder_hidden_states": text.video,
        "audio_encoder_hidden_states": text.audio,
        "timestep": torch.full((2,), 500.0),
        "num_frames": frames,
        "height": GRID[0],
        "width": GRID[1],
        "fps": 24.0,
        "audio_num_frames": COUNTS.audio,
    }


@pytest.mark.parametrize("factors", ["lora_A lora_B", "lora_down lora_up"])
@pytest.mark.parametrize("prefix", ["transformer.", "diffusion_model.", "base_model.model.", ""])
def test_files_of_every_naming_are_read_alike(tmp_path: Path, prefix: str, factors: str) -> None:
    lora, (first, second) = tiny_lora(tiny_model().core, ["to_q", "linear_1"]), factors.split()
    tensors = {}
    for name, (a, b) in lora.layers.items():
        own = to_original(name) if prefix == "diffusion_model." else name
        tensors[f"{prefix}{own}.{first}.weight"] = a
        tensors[f"{prefix}{own}.{second}.weight"] = b
        if second == "lora_up":
            tensors[f"{prefix}{own}.alpha"] = torch.tensor(1.0)  # half of the rank
    save_file(tensors, tmp_path / "x.safetensors")
    found, scale = read_lora(tmp_path / "x.safetensors"), 0.5 if second == "lora_up" else 1.0
    assert set(found.layers) == set(lora.layers)
    for name, (a, b) in lora.layers.items():
        assert torch.equal(found.layers[name].a, a)
        assert torch.equal(found.layers[name].b, b * scale)


def test_an_adapter_of_split_weights_fits_interleaved_ones(base: Path) -> None:
    """Rows of queries and keys are permuted as the weights' own are."""
    split = open_checkpoint(base)
    lora = tiny_lora(tiny_model().core)
    turned = with_rope(split, "interleaved")
    expected = velocity(DualStream(merged(split, [(lora, 0.7)]).core()))
    found = DualStream(merged(turned, [(lora, 0.7)]).core())
    assert found.core.config.rope_type == "interleaved"
    assert difference(velocity(found), expected) < TOLERANCE
    back = lora.fitted(turned).in_convention(split.config, "split")
    for name, (a, b) in lora.layers.items():
        assert torch.equal(back.layers[name].a, a) and torch.equal(back.layers[name].b, b)


def test_a_merged_checkpoint_keeps_its_precision_and_all_other_tensors(base: Path) -> None:
    lora = tiny_lora(tiny_model().core, ["attn1.to_q"])
    half = tiny_model().core.to(torch.bfloat16)
    half.save_pretrained(base / "half")
    checkpoint = open_checkpoint(base / "half")
    found = dict(merged(checkpoint, [(lora, 1.0), (lora, 0.5)]).tensors())
    for name, tensor in checkpoint.tensors():
        assert found[name].dtype is torch.bfloat16
        layer = name.removesuffix(".weight")
        if layer in lora.layers and layer != name:
            whole = tensor.float() + 1.5 * lora.layers[layer].delta
            torch.testing.assert_close(found[name].float(), whole, rtol=1e-2, atol=1e-3)
            assert not torch.equal(found[name], tensor)
        else:
            assert torch.equal(found[name], tensor)


def test_the_hash_is_that_of_the_weights_not_of_the_file(base: Path) -> None:
    tiny_core().save_pretrained(base / "whole")
    checkpoint = open_checkpoint(base / "whole")
    write_original(checkpoint, base)
    again = open_checkpoint(base / "transformer.safetensors")
    assert again.format == "original"
    assert weights_digest(again) == weights_digest(checkpoint)
    lora = tiny_lora(tiny_core(), ["to_q"])
    assert weights_digest(merged(checkpoint, [(lora, 1.0)])) != weights_digest(checkpoint)


def test_what_does_not_fit_is_named(base: Path) -> None:
    checkpoint = open_checkpoint(base)
    lora = tiny_lora(tiny_model().core, ["to_q"])
    name, (a, b) = next(iter(lora.layers.items()))
    for layers, code, named in (
        ({"transformer_blocks.9.attn1.to_q": (a, b)}, "adapter.unknown-layer", "blocks.9"),
        ({name: (a[:, :-1].contiguous(), b)}, "adapter.wrong-shape", name),
        ({name: (torch.zeros(40, 48), torch.zeros(48, 40))}, "", ""),
        ({name: (torch.zeros(49, 48), torch.zeros(48, 49))}, "adapter.rank-too-large", "49"),
    ):
        path = base / "bad.safetensors"
        tensors: dict[str, torch.Tensor] = {}
        for layer, (first, second) in layers.items():
            tensors |= {f"{layer}.lora_A.weight": first, f"{layer}.lora_B.weight": second}
        save_file(tensors, path)
        if not code:
            merged(checkpoint, [(read_lora(path), 1.0)])
            continue
        with refuses(code, "bad.safetensors", named):
            merged(checkpoint, [(read_lora(path), 1.0)])
    with refuses("adapter.bad-scale", "nan"):
        merged(checkpoint, [(lora, float("nan"))])


def test_files_that_are_no_adapters_are_refused(tmp_path: Path) -> None:
    a, b = torch.zeros(2, 4), torch.zeros(4, 2)
    path = tmp_path / "x.safetensors"
    for tensors, code in (
        ({"x.lora_A.weight": a}, "adapter.missing-factor"),
        ({"x.lora_A.weight": a, "x.lora_B.weight": a.clone()}, "adapter.wrong-shape"),
        ({"x.lora_A.weight": a, "x.lora_B.weight": b / 0}, "weights.not-finite"),
        ({"x.weight": a}, "adapter.not-one"),
        ({"x.lora_A.weight": a, "x.dora_scale": b}, "adapter.not-one"),
        ({"x.lora_A.weight": a.to(torch.int8), "x.lora_B.weight": b}, "weights.quantised"),
        ({}, "adapter.not-one"),
    ):
        save_file(tensors, path)
        with refuses(code, "x.safetensors"):
            read_lora(path)
    with refuses("file.missing"):
        read_lora(tmp_path / "none.safetensors")
    (tmp_path / "x.pt").write_bytes(b"pickle")
    with refuses("weights.not-safetensors"):
        read_lora(tmp_path / "x.pt")


def test_a_scale_follows_the_name() -> None:
    assert with_scale("a.safetensors") == (Path("a.safetensors"), 1.0)
    assert with_scale("b:c/a.safetensors:-0.5") == (Path("b:c/a.safetensors"), -0.5)
    for scale in ("nan", "inf"):
        with refuses("adapter.bad-scale", "a.safetensors"):
            with_scale(f"a.safetensors:{scale}")


def test_the_commands_merge_and_rename(base: Path) -> None:
    lora, out = tiny_lora(tiny_model().core, ["to_q", "linear_1"]), base / "out"
    path = written(lora, base / "lora.safetensors", base="LTX-2", base_sha256="ab")
    run = CliRunner().invoke
    arguments = ["merge-lora", str(base), str(out), "--lora", f"{path}:0.5"]
    assert run(weights_command, arguments).exit_code == 0
    expected = tiny_model()
    add(expected.core, lora, 0.5)
    assert difference(velocity(load_model(out, 0)), velocity(expected)) < TOLERANCE
    renamed = base / "comfy.safetensors"
    arguments = ["export-lora", str(path), str(renamed), "--names", "lightricks"]
    assert run(weights_command, arguments).exit_code == 0
    assert all(key.startswith("diffusion_model.") for key in load_file(renamed))
    with safe_open(renamed, "pt") as file:
        assert file.metadata()["base"] == "LTX-2" and file.metadata()["base_sha256"] == "ab"
    assert set(read_lora(renamed).layers) == set(lora.layers)
