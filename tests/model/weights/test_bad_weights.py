"""Weights that cannot be used: each is refused with one sentence that says what, where and what to do."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from omniforcing.core.errors import OmniForcingError
from omniforcing.model.weights.architecture import to_metadata
from omniforcing.model.weights.checkpoint import SINKS_FILE, open_checkpoint
from omniforcing.model.weights.names import TRANSFORMER
from omniforcing.model.weights.student import load_model
from omniforcing.model.weights.writing import write_diffusers
from tests.support.tiny_checkpoints import (
    FACTS,
    config_of,
    original_tensors,
    save_authors,
    save_original,
    save_sharded,
    tiny_core,
)

WEIGHTS = "diffusion_pytorch_model.safetensors"


def refused(source: Path, *parts: str) -> None:
    """Opening and reading fails with one sentence of one line, which holds the parts."""
    with pytest.raises(OmniForcingError) as caught:
        load_model(source)
    sentence = str(caught.value)
    assert "\n" not in sentence
    for part in parts:
        assert part in sentence, sentence


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
    refused(file, f"{file} is truncated or damaged", "copy or download it again")


@pytest.mark.parametrize(
    ("config", "weights"), [("2.0", "2.3"), ("2.3", "2.0"), ("2.3", "2.5"), ("2.5", "2.0")]
)
def test_weights_of_another_generation_than_their_config(
    config: str, weights: str, tmp_path: Path
) -> None:
    tiny_core(weights).save_pretrained(tmp_path)
    tiny_core(config).save_config(tmp_path)
    refused(
        tmp_path,
        f"the config describes LTX-{config} but the tensors are LTX-{weights}'s",
        "of one release",
    )


def test_unknown_keys_in_a_diffusers_config(folder: Path) -> None:
    edit_config(folder, gated_atn=True)
    refused(
        folder,
        f"{folder / 'config.json'}: the transformer config has the unknown key 'gated_atn' (like 'gated_attn'?)",
    )


def test_unknown_keys_in_the_metadata(tmp_path: Path) -> None:
    file = save_original(
        tiny_core(), tmp_path / "ltx.safetensors", per_layer_video_attn1_heads=[2, 1]
    )
    refused(file, str(file), "unknown key 'per_layer_video_attn1_heads'", "pruned model")


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
    said = (
        "is truncated or damaged"
        if name.endswith(".safetensors")
        else "is a pickle, which can run code"
    )
    refused(place if whole_folder else place / name, name, said)
    assert not mark.exists()


def test_heads_that_differ_between_the_streams(folder: Path) -> None:
    edit_config(folder, audio_num_attention_heads=4)
    refused(
        folder,
        "num_attention_heads is 2 but audio_num_attention_heads is 4",
        "the cross-modal RoPE needs them equal",
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_value_that_is_not_finite(value: float, dtype: torch.dtype, tmp_path: Path) -> None:
    core = tiny_core(dtype=dtype)
    core.transformer_blocks[1].attn2.to_v.weight.data[3, 5] = value
    file = save_original(core, tmp_path / "ltx.safetensors")
    name = "transformer_blocks.1.attn2.to_v.weight holds NaN or infinity"
    refused(file, str(file), name)
    with pytest.raises(OmniForcingError, match=name):
        write_diffusers(open_checkpoint(file), tmp_path)


def test_sinks_that_are_not_finite_or_not_as_wide_as_the_audio_stream(tmp_path: Path) -> None:
    tiny_core().save_pretrained(tmp_path / "transformer")
    for sinks, said in (
        (torch.full((3, 32), torch.nan), "sinks holds NaN"),
        (torch.zeros(3, 31), "[3, 31], its config expects [3, 32]"),
    ):
        save_file({"sinks": sinks}, tmp_path / SINKS_FILE)
        refused(tmp_path, str(tmp_path / SINKS_FILE), said)
    save_file({"sink": torch.zeros(3, 32)}, tmp_path / SINKS_FILE)
    refused(tmp_path, "must hold sinks", "['sink']")


def test_an_empty_folder_and_a_place_that_is_not_there(tmp_path: Path) -> None:
    refused(tmp_path, f"{tmp_path} holds no transformer: there is no .safetensors file in it")
    refused(tmp_path / "gone", "gone does not exist")
    refused(tmp_path / "gone.safetensors", "gone.safetensors does not exist")
    refused(tmp_path / "gone.safetensors.index.json", "gone.safetensors.index.json is missing")


def test_a_shard_that_is_missing_or_lies_elsewhere(tmp_path: Path) -> None:
    index = save_authors(tiny_core(), tmp_path)
    second = "omniforcing_ltx2_5s_causal-00002-of-00003.safetensors"
    (tmp_path / second).unlink()
    refused(index, f"{index} names the shard {second}, which is not beside it")
    places = json.loads(index.read_text())["weight_map"]
    index.write_text(
        json.dumps({"weight_map": {name: "../" + place for name, place in places.items()}})
    )
    refused(index, "names the shard ../omniforcing")


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
    refused(
        index,
        f"{tmp_path / second} lacks model.audio_patchify_proj.bias, which the index says it holds",
    )


@pytest.mark.parametrize("content", ["[]", "{}", '{"weight_map": 3}', "{"])
def test_an_index_that_is_none(content: str, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors.index.json").write_text(content)
    refused(tmp_path, "a.safetensors.index.json")


def test_a_missing_an_unexpected_and_a_misshapen_tensor_are_named(folder: Path) -> None:
    name = "transformer_blocks.0.attn1.to_q.bias"
    edit_weights(folder, lambda tensors: tensors.update({name: torch.zeros(47)}))
    refused(folder, str(folder / WEIGHTS), f"tensor {name} has shape [47], its config expects [48]")
    edit_weights(folder, lambda tensors: tensors.pop(name))
    refused(folder, f"{folder} lacks {name} [48] (1 missing, 0 unexpected")
    edit_weights(
        folder,
        lambda tensors: tensors.update({name: torch.zeros(48), "extra.weight": torch.zeros(1)}),
    )
    refused(
        folder,
        f"{folder} holds extra.weight, which its config has no place for (0 missing, 1 unexpected",
    )


def test_a_part_that_no_release_has(tmp_path: Path) -> None:
    for key in ("lora.weight", f"{TRANSFORMER}proj_in.weight", f"{TRANSFORMER}novel.weight"):
        tensors = {**original_tensors(tiny_core()), key: torch.zeros(1)}
        file = tmp_path / "ltx.safetensors"
        config = {**FACTS["metadata"]["2.0"], **to_metadata(config_of(tiny_core()), "here")}
        save_file(tensors, file, {"config": json.dumps({"transformer": config})})
        refused(file, str(file), key.removeprefix(f"{TRANSFORMER}"))


@pytest.mark.parametrize(
    "metadata",
    [None, {"config": "{}"}, {"config": "{"}, {"config": "[]"}, {"config": '{"transformer": 3}'}],
)
def test_a_lightricks_file_without_its_config(
    metadata: dict[str, str] | None, tmp_path: Path
) -> None:
    save_file(original_tensors(tiny_core()), tmp_path / "ltx.safetensors", metadata)
    refused(
        tmp_path / "ltx.safetensors",
        "carries no transformer config in its metadata, and the architecture is never guessed",
    )


@pytest.mark.parametrize(
    "key", ["rope_type", "frequencies_precision", "av_ca_timestep_scale_multiplier", "norm_eps"]
)
def test_metadata_that_lacks_what_no_shape_shows(key: str, tmp_path: Path) -> None:
    file = save_original(tiny_core(), tmp_path / "ltx.safetensors")
    config = {**FACTS["metadata"]["2.0"], "num_layers": 2}
    del config[key]
    save_file(load_file(file), file, {"config": json.dumps({"transformer": config})})
    refused(file, f"the transformer config lacks {key!r}, which no tensor's shape shows")


def test_a_diffusers_config_of_patches_or_without_what_no_shape_shows(folder: Path) -> None:
    edit_config(folder, patch_size=2)
    refused(
        folder,
        "config.json: the transformer config says patch_size=2; LTX-2 has tokens of one latent",
    )
    edit_config(folder, patch_size=1, rope_type=...)
    refused(folder, "config.json: the transformer config lacks 'rope_type'")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"use_middle_indices_grid": False}, "use_middle_indices_grid=False; LTX-2 has True"),
        ({"_class_name": "Transformer3DModel"}, "LTX-2 has 'AVTransformer3DModel'"),
        ({"positional_embedding_max_pos": [20]}, "a list of 3"),
        ({"rope_type": "spiral"}, "no transformer can be built from its config"),
        ({"num_layers": "two"}, "no transformer can be built from its config"),
        ({"activation_fn": "x"}, "no transformer can be built from its config"),
        (
            {"frequencies_precision": "float16"},
            "frequencies_precision='float16'; it must be one of",
        ),
        ({"norm_eps": None}, "says norm_eps=None; a positive number is needed there"),
        ({"rope_type": 1}, "says rope_type=1; a value like 'interleaved' is needed there"),
    ],
)
def test_metadata_of_another_architecture(
    change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    refused(
        save_original(tiny_core(), tmp_path / "ltx.safetensors", **change), "ltx.safetensors", said
    )


def test_several_files_without_an_index(tmp_path: Path) -> None:
    for name in ("dev", "distilled"):
        save_original(tiny_core(), tmp_path / f"{name}.safetensors")
    refused(
        tmp_path,
        "holds several checkpoints (dev.safetensors, distilled.safetensors)",
        "name one of the files",
    )


def test_quantised_weights(folder: Path) -> None:
    name = "transformer_blocks.0.ff.net.2.weight"
    edit_weights(
        folder, lambda tensors: tensors.update({name: tensors[name].to(torch.float8_e4m3fn)})
    )
    refused(folder, f"tensor {name} is stored as F8_E4M3; quantised weights are not read")


def test_weights_that_are_none_of_ltx_2s(tmp_path: Path) -> None:
    save_file({"model.embed_tokens.weight": torch.zeros(2)}, tmp_path / "gemma.safetensors")
    refused(tmp_path, "holds no LTX-2 transformer: it begins with 'model.embed_tokens.weight'")
    tensors = {
        key: value for key, value in original_tensors(tiny_core()).items() if "audio" not in key
    }
    save_file(tensors, tmp_path / "gemma.safetensors")
    refused(tmp_path, "holds a transformer without sound")
    save_file({"model.patchify_proj.weight": torch.zeros(2)}, tmp_path / "gemma.safetensors")
    refused(tmp_path, "tensor proj_in.weight has shape [2]; a matrix is expected")


def test_the_config_of_another_class(folder: Path) -> None:
    edit_config(folder, _class_name="WanTransformer3DModel")
    refused(
        folder,
        "config.json describes a WanTransformer3DModel; a LTX2VideoTransformer3DModel is needed there",
    )
    (folder / "config.json").write_text("[]")
    refused(folder, "config.json is no config of a model")
    (folder / "config.json").unlink()
    refused(folder, "config.json is missing")


def test_a_model_that_lightricks_format_cannot_describe(tmp_path: Path) -> None:
    from omniforcing.model.weights.writing import write_original

    for change in ({"vae_scale_factors": (8, 16, 16)}, {"gated_attn": True}):
        tiny_core(**change).save_pretrained(tmp_path / "in")
        with pytest.raises(
            OmniForcingError, match=f"Lightricks' format cannot say {next(iter(change))}="
        ):
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
