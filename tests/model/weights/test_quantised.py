"""Quantised files that people share are read as bf16, or refused by the name of their scheme."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.published.transformer import FACTS, original_tensors, tiny_core
from omniforcing.cli import main
from omniforcing.model.weights.architecture import to_metadata
from omniforcing.model.weights.checkpoint import open_checkpoint
from omniforcing.model.weights.names import TRANSFORMER
from tests.support.refusals import refuses

pytestmark = pytest.mark.extended
OURS = "transformer_blocks.0.ff.net.2.weight"
LAYER = f"{TRANSFORMER}transformer_blocks.0.ff.net.2"
FP8 = torch.float8_e4m3fn


def quantised(
    file: Path, weight: Tensor, beside: dict[str, Tensor] | None = None, **metadata: str
) -> Path:
    """A Lightricks file, one weight of which is replaced, with tensors beside it."""
    core = tiny_core(dtype=torch.bfloat16)
    tensors = {**original_tensors(core), f"{LAYER}.weight": weight}
    tensors |= {name if "." in name else f"{LAYER}.{name}": t for name, t in (beside or {}).items()}
    config = {**FACTS["metadata"]["2.0"], **to_metadata(core.config, "here")}
    save_file(tensors, file, {"config": json.dumps({"transformer": config}), **metadata})
    return file


def told(**scheme: Any) -> Tensor:
    return torch.tensor(list(json.dumps(scheme).encode()), dtype=torch.uint8)


def original() -> Tensor:
    return tiny_core(dtype=torch.bfloat16).state_dict()[OURS].float()


def read(file: Path) -> Tensor:
    return dict(open_checkpoint(file).tensors([OURS]))[OURS]


def test_fp8_without_a_scale_is_taken_as_numbers(tmp_path: Path) -> None:
    stored = original().to(FP8)
    found = read(quantised(tmp_path / "a.safetensors", stored))
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, stored.bfloat16())


@pytest.mark.parametrize("newer", [False, True])
def test_fp8_with_a_scale_of_the_tensor_in_either_spelling(newer: bool, tmp_path: Path) -> None:
    scale = original().abs().max() / 448
    stored = (original() / scale).to(FP8)
    beside = {"weight_scale" if newer else "scale_weight": scale}
    if newer:
        beside |= {"comfy_quant": told(format="float8_e4m3fn"), "input_scale": torch.ones(())}
    else:
        beside |= {f"{TRANSFORMER}scaled_fp8": torch.zeros(2).to(FP8)}
    found = read(quantised(tmp_path / "a.safetensors", stored, beside))
    assert torch.equal(found, (stored.float() * scale).bfloat16())
    assert (found.float() - original()).abs().max() < 0.07 * original().abs().max()


@pytest.mark.parametrize("in_metadata", [False, True])
def test_int8_with_a_scale_per_row(in_metadata: bool, tmp_path: Path) -> None:
    scale = original().abs().amax(1, keepdim=True) / 127
    stored = (original() / scale).round().to(torch.int8)
    scheme = {"format": "int8_tensorwise", "per_row": True}
    beside, metadata = {"weight_scale": scale}, {}
    if in_metadata:
        metadata["_quantization_metadata"] = json.dumps({"layers": {LAYER: scheme}})
    else:
        beside["comfy_quant"] = told(**scheme)
    found = read(quantised(tmp_path / "a.safetensors", stored, beside, **metadata))
    assert torch.equal(found, (stored.float() * scale).bfloat16())


def test_import_says_what_it_dequantised_and_writes_bf16(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = quantised(tmp_path / "a.safetensors", original().to(FP8))
    with pytest.raises(SystemExit):
        main(["weights", "import", str(file), str(tmp_path / "out"), "--transformer-only"])
    assert "1 F8_E4M3" in capsys.readouterr().err
    (entry,) = (e for n, e in open_checkpoint(tmp_path / "out").entries.items() if n == OURS)
    assert (entry.dtype, entry.quantised) == ("BF16", None)


INT8 = torch.zeros(48, 192, dtype=torch.int8)


@pytest.mark.parametrize(
    ("weight", "beside", "fact"),
    [
        (INT8, {"comfy_quant": told(format="int8_tensorwise", convrot=True)}, "convrot"),
        (INT8, {"comfy_quant": told(format="int8_tensorwise")}, "without a weight_scale"),
        (INT8, {"weight_scale": torch.ones(())}, "I8"),
        (INT8.to(torch.uint8), {"comfy_quant": told(format="nvfp4")}, "nvfp4"),
        (INT8.to(FP8), {"weight_scale": torch.ones(48, 6)}, "float8_e4m3fn"),
        (INT8, {"comfy_quant": torch.zeros(3, dtype=torch.uint8)}, "JSON"),
    ],
)
def test_schemes_that_are_not_read_are_named(
    weight: Tensor, beside: dict[str, Tensor], fact: str, tmp_path: Path
) -> None:
    if "convrot" in fact:
        beside = {**beside, "weight_scale": torch.ones(48, 1)}
    file = quantised(tmp_path / "a.safetensors", weight, beside)
    with refuses("weights.quantised", file, fact, "bf16"):
        open_checkpoint(file)
