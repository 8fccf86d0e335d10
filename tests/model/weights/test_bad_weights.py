"""Weights that cannot be used: each is refused with one sentence that says what, where and what to
do.
"""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.published.transformer import FACTS, original_tensors, tiny_core
from omniforcing.model.weights.architecture import to_metadata
from omniforcing.model.weights.checkpoint import SINKS_FILE, open_checkpoint
from omniforcing.model.weights.names import TRANSFORMER
from omniforcing.model.weights.student import load_model
from omniforcing.model.weights.writing import write_diffusers
from tests.support.refusals import refuses
from tests.support.tiny_checkpoints import (
    config_of,
    save_authors,
    save_original,
    save_sharded,
)

WEIGHTS = "diffusion_pytorch_model.safetensors"


def assert_refused(source: Path, code: str, *facts: object) -> None:
    """Opening and reading fails with this code, and a sentence that names the facts."""
    with refuses(code, *facts):
        load_model(source)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A diffusers folder."""
    tiny_core().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A Lightricks file."""
    return save_original(tiny_core(), tmp_path / "ltx.safetensors")


def edit_config(folder: Path, **changes: Any) -> None:
    config = {**json.loads((folder / "config.json").read_text()), **changes}
    (folder / "config.json").write_text(
        json.dumps({key: value for key, value in config.items() if value is not ...})
    )


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


@pytest.mark.parametrize("keep", [0, 5, 400, -1000, -1])
def test_a_truncated_file(file: Path, keep: int) -> None:
    file.write_bytes(file.read_bytes()[:keep])
    assert_refused(file, "weights.truncated", file)


@pytest.mark.parametrize(
    ("config", "weights"), [("2.0", "2.3"), ("2.3", "2.0"), ("2.3", "2.5"), ("2.5", "2.0")]
)
def test_weights_of_another_generation_than_their_config(
    config: str, weights: str, tmp_path: Path
) -> None:
    tiny_core(weights).save_pretrained(tmp_path)
    tiny_core(config).save_config(tmp_path)
    assert_refused(tmp_path, "weights.mixed-releases", f"LTX-{config}", f"LTX-{weights}")


def test_unknown_keys_in_a_diffusers_config(folder: Path) -> None:
    edit_config(folder, gated_atn=True)
    assert_refused(
        folder, "weights.unknown-key", folder / "config.json", "'gated_atn'", "'gated_attn'?"
    )


def test_unknown_keys_in_the_metadata(tmp_path: Path) -> None:
    file = save_original(
        tiny_core(), tmp_path / "ltx.safetensors", per_layer_video_attn1_heads=[2, 1]
    )
    assert_refused(file, "weights.unknown-key", file, "'per_layer_video_attn1_heads'")


class Bomb:
    """Unpickling it leaves a trace."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize(
    "name", ["model.bin", "model.pt", "model.pth", "model.ckpt", "model.safetensors"]
)
@pytest.mark.parametrize("whole_folder", [False, True])
def test_pickles_are_never_opened(name: str, whole_folder: bool, tmp_path: Path) -> None:
    mark, place = tmp_path / "mark", tmp_path / "weights"
    place.mkdir()
    (place / name).write_bytes(pickle.dumps(Bomb(mark)))
    code = "weights.truncated" if name.endswith(".safetensors") else "weights.pickle"
    assert_refused(place if whole_folder else place / name, code, name)
    assert not mark.exists()


def test_heads_that_differ_between_the_streams(folder: Path) -> None:
    edit_config(folder, audio_num_attention_heads=4)
    assert_refused(
        folder,
        "weights.unsupported-config",
        "num_attention_heads is 2",
        "audio_num_attention_heads is 4",
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_value_that_is_not_finite(value: float, dtype: torch.dtype, tmp_path: Path) -> None:
    core = tiny_core(dtype=dtype)
    core.transformer_blocks[1].attn2.to_v.weight.data[3, 5] = value
    file = save_original(core, tmp_path / "ltx.safetensors")
    name = "transformer_blocks.1.attn2.to_v.weight"
    assert_refused(file, "weights.not-finite", file, name)
    with refuses("weights.not-finite", file, name):
        write_diffusers(open_checkpoint(file), tmp_path)


def test_sinks_that_are_not_finite_or_not_as_wide_as_the_audio_stream(tmp_path: Path) -> None:
    tiny_core().save_pretrained(tmp_path / "transformer")
    for sinks, code, named in (
        (torch.full((3, 32), torch.nan), "weights.not-finite", "sinks"),
        (torch.zeros(3, 31), "weights.wrong-shape", "[3, 31], its config expects [3, 32]"),
    ):
        save_file({"sinks": sinks}, tmp_path / SINKS_FILE)
        assert_refused(tmp_path, code, tmp_path / SINKS_FILE, named)
    save_file({"sink": torch.zeros(3, 32)}, tmp_path / SINKS_FILE)
    assert_refused(tmp_path, "weights.missing-tensor", tmp_path / SINKS_FILE, "['sink']")


def test_an_empty_folder_and_a_place_that_is_not_there(tmp_path: Path) -> None:
    assert_refused(tmp_path, "weights.no-transformer", tmp_path)
    assert_refused(tmp_path / "gone", "file.missing", "gone")
    assert_refused(tmp_path / "gone.safetensors", "file.missing", "gone.safetensors")
    assert_refused(
        tmp_path / "gone.safetensors.index.json", "file.missing", "gone.safetensors.index.json"
    )


def test_a_shard_that_is_missing_or_lies_elsewhere(tmp_path: Path) -> None:
    index = save_authors(tiny_core(), tmp_path)
    second = "omniforcing_ltx2_5s_causal-00002-of-00003.safetensors"
    (tmp_path / second).unlink()
    assert_refused(index, "weights.missing-shard", index, second)
    places = json.loads(index.read_text())["weight_map"]
    index.write_text(
        json.dumps({"weight_map": {name: "../" + place for name, place in places.items()}})
    )
    assert_refused(index, "weights.missing-shard", "../omniforcing")


def test_an_index_that_promises_what_its_shard_lacks(tmp_path: Path) -> None:
    index = save_sharded(original_tensors(tiny_core(), "model."), tmp_path, "student")
    places = json.loads(index.read_text())["weight_map"]
    first, second = (
        places["model.audio_patchify_proj.bias"],
        places["model.transformer_blocks.1.ff.net.2.bias"],
    )
    assert first != second
    index.write_text(
        json.dumps({"weight_map": {**places, "model.audio_patchify_proj.bias": second}})
    )
    assert_refused(
        index, "weights.missing-tensor", tmp_path / second, "model.audio_patchify_proj.bias"
    )


@pytest.mark.parametrize(
    ("content", "code"),
    [
        ("[]", "weights.bad-index"),
        ("{}", "weights.bad-index"),
        ('{"weight_map": 3}', "weights.bad-index"),
        ("{", "file.unreadable"),
    ],
)
def test_an_index_that_is_none(content: str, code: str, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors.index.json").write_text(content)
    assert_refused(tmp_path, code, "a.safetensors.index.json")


def test_a_missing_an_unexpected_and_a_misshapen_tensor_are_named(folder: Path) -> None:
    name = "transformer_blocks.0.attn1.to_q.bias"
    edit_weights(folder, lambda tensors: tensors.update({name: torch.zeros(47)}))
    assert_refused(folder, "weights.wrong-shape", folder / WEIGHTS, name, "[47]", "[48]")
    edit_weights(folder, lambda tensors: tensors.pop(name))
    assert_refused(
        folder, "weights.wrong-tensors", folder, f"{name} [48]", "1 missing, 0 unexpected"
    )
    edit_weights(
        folder,
        lambda tensors: tensors.update({name: torch.zeros(48), "extra.weight": torch.zeros(1)}),
    )
    assert_refused(
        folder, "weights.wrong-tensors", folder, "extra.weight", "0 missing, 1 unexpected"
    )


def test_a_part_that_no_release_has(tmp_path: Path) -> None:
    for key, code in (
        ("lora.weight", "weights.unknown-tensor"),
        (f"{TRANSFORMER}proj_in.weight", "weights.unknown-tensor"),
        (f"{TRANSFORMER}novel.weight", "weights.wrong-tensors"),
    ):
        tensors = {**original_tensors(tiny_core()), key: torch.zeros(1)}
        file = tmp_path / "ltx.safetensors"
        config = {**FACTS["metadata"]["2.0"], **to_metadata(config_of(tiny_core()), "here")}
        save_file(tensors, file, {"config": json.dumps({"transformer": config})})
        assert_refused(file, code, file, key.removeprefix(TRANSFORMER))


@pytest.mark.parametrize(
    "metadata",
    [None, {"config": "{}"}, {"config": "{"}, {"config": "[]"}, {"config": '{"transformer": 3}'}],
)
def test_a_lightricks_file_without_its_config(
    metadata: dict[str, str] | None, tmp_path: Path
) -> None:
    save_file(original_tensors(tiny_core()), tmp_path / "ltx.safetensors", metadata)
    assert_refused(tmp_path / "ltx.safetensors", "weights.no-config", "ltx.safetensors")


@pytest.mark.parametrize(
    "key", ["rope_type", "frequencies_precision", "av_ca_timestep_scale_multiplier", "norm_eps"]
)
def test_metadata_that_lacks_what_no_shape_shows(key: str, tmp_path: Path) -> None:
    file = save_original(tiny_core(), tmp_path / "ltx.safetensors")
    config = {**FACTS["metadata"]["2.0"], "num_layers": 2}
    del config[key]
    save_file(load_file(file), file, {"config": json.dumps({"transformer": config})})
    assert_refused(file, "weights.missing-key", file, repr(key))


def test_a_diffusers_config_of_patches_or_without_what_no_shape_shows(folder: Path) -> None:
    edit_config(folder, patch_size=2)
    assert_refused(folder, "weights.unsupported-config", "config.json", "patch_size=2")
    edit_config(folder, patch_size=1, rope_type=...)
    assert_refused(folder, "weights.missing-key", "config.json", "'rope_type'")


@pytest.mark.parametrize(
    ("change", "code", "named"),
    [
        (
            {"use_middle_indices_grid": False},
            "weights.unsupported-config",
            "use_middle_indices_grid=False",
        ),
        (
            {"_class_name": "Transformer3DModel"},
            "weights.unsupported-config",
            "'AVTransformer3DModel'",
        ),
        ({"positional_embedding_max_pos": [20]}, "weights.bad-value", "a list of 3"),
        ({"rope_type": "spiral"}, "weights.unsupported-config", "spiral"),
        ({"num_layers": "two"}, "weights.unsupported-config", "str"),
        ({"activation_fn": "x"}, "weights.unsupported-config", ""),
        (
            {"frequencies_precision": "float16"},
            "weights.bad-value",
            "frequencies_precision='float16'",
        ),
        ({"norm_eps": None}, "weights.bad-value", "norm_eps=None"),
        ({"rope_type": 1}, "weights.bad-value", "rope_type=1"),
    ],
)
def test_metadata_of_another_architecture(
    change: dict[str, Any], code: str, named: str, tmp_path: Path
) -> None:
    assert_refused(
        save_original(tiny_core(), tmp_path / "ltx.safetensors", **change),
        code,
        "ltx.safetensors",
        named,
    )


def test_several_files_without_an_index(tmp_path: Path) -> None:
    for name in ("dev", "distilled"):
        save_original(tiny_core(), tmp_path / f"{name}.safetensors")
    assert_refused(
        tmp_path, "weights.several-checkpoints", "dev.safetensors, distilled.safetensors"
    )


def test_weights_that_are_none_of_ltx_2s(tmp_path: Path) -> None:
    save_file({"model.embed_tokens.weight": torch.zeros(2)}, tmp_path / "gemma.safetensors")
    assert_refused(tmp_path, "weights.no-transformer", "'model.embed_tokens.weight'")
    tensors = {
        key: value for key, value in original_tensors(tiny_core()).items() if "audio" not in key
    }
    save_file(tensors, tmp_path / "gemma.safetensors")
    assert_refused(tmp_path, "weights.no-sound", tmp_path)
    save_file({"model.patchify_proj.weight": torch.zeros(2)}, tmp_path / "gemma.safetensors")
    assert_refused(tmp_path, "weights.wrong-shape", "proj_in.weight", "[2]")


def test_the_config_of_another_class(folder: Path) -> None:
    edit_config(folder, _class_name="WanTransformer3DModel")
    assert_refused(
        folder,
        "weights.wrong-class",
        "config.json",
        "WanTransformer3DModel",
        "LTX2VideoTransformer3DModel",
    )
    (folder / "config.json").write_text("[]")
    assert_refused(folder, "weights.no-config", "config.json")
    (folder / "config.json").unlink()
    assert_refused(folder, "file.missing", "config.json")


def test_a_model_that_lightricks_format_cannot_describe(tmp_path: Path) -> None:
    from omniforcing.model.weights.writing import write_original

    for change in ({"vae_scale_factors": (8, 16, 16)}, {"gated_attn": True}):
        tiny_core(**change).save_pretrained(tmp_path / "in")
        with refuses("weights.cannot-convert", next(iter(change))):
            write_original(open_checkpoint(tmp_path / "in"), tmp_path)


def test_mixed_types_are_fine(tmp_path: Path) -> None:
    core = tiny_core()
    core.transformer_blocks[0].to(torch.bfloat16)
    core.proj_out.to(torch.float16)
    core.save_pretrained(tmp_path)
    assert set(config_of(core)) == set(open_checkpoint(tmp_path).config)
    assert {p.dtype for p in load_model(tmp_path, dtype=None).core.parameters()} == {
        torch.float32,
        torch.bfloat16,
        torch.float16,
    }
