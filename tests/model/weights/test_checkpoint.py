"""Weights in and out, in every format and release: bit for bit, one tensor at a time."""

import json
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import LTX2VideoTransformer3DModel
from torch import Tensor

from benchmarks.published.transformer import RELEASES, tiny_core
from omniforcing.model.transformer import DualStream
from omniforcing.model.weights.checkpoint import Checkpoint, open_checkpoint
from omniforcing.model.weights.student import load_model, save_model
from omniforcing.model.weights.writing import ORIGINAL_FILE, write_diffusers, write_original
from tests.support.tiny_checkpoints import (
    config_of,
    save_authors,
    save_original,
    tiny_authors_core,
)

pytestmark = pytest.mark.extended

State = dict[str, Tensor]


def bits(state: State) -> dict[str, bytes]:
    return {
        name: tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        for name, tensor in state.items()
    }


def same(a: LTX2VideoTransformer3DModel, b: LTX2VideoTransformer3DModel) -> bool:
    """Configs are equal but for what has no weights; weights and dtypes are equal to the bit."""
    configs = [
        {
            k: list(v) if isinstance(v, tuple) else v
            for k, v in config_of(m).items()
            if k != "perturbed_attn"
        }
        for m in (a, b)
    ]
    types = [{name: tensor.dtype for name, tensor in m.state_dict().items()} for m in (a, b)]
    return (
        configs[0] == configs[1]
        and types[0] == types[1]
        and bits(a.state_dict()) == bits(b.state_dict())
    )


def mixed_core(release: str) -> LTX2VideoTransformer3DModel:
    """bf16 weights with fp32 tables, as Lightricks' files have them."""
    core = tiny_core(release, torch.bfloat16)
    for name, parameter in core.named_parameters():
        if name.endswith("table"):
            parameter.data = parameter.data.float()
    return core


@pytest.mark.parametrize("release", RELEASES)
def test_original_to_diffusers_to_original_is_bit_exact(release: str, tmp_path: Path) -> None:
    core = mixed_core(release)
    file = save_original(core, tmp_path / "ltx.safetensors")
    write_diffusers(open_checkpoint(file), tmp_path)
    assert same(open_checkpoint(tmp_path / "transformer").core(), core)
    for folder, source in (("once", tmp_path), ("twice", tmp_path / "once")):
        (tmp_path / folder).mkdir()
        write_original(open_checkpoint(source), tmp_path / folder)
    assert same(open_checkpoint(tmp_path / "once" / ORIGINAL_FILE).core(), core)
    assert (tmp_path / "once" / ORIGINAL_FILE).read_bytes() == (
        tmp_path / "twice" / ORIGINAL_FILE
    ).read_bytes()


@pytest.mark.parametrize("release", RELEASES)
def test_diffusers_in_and_out_is_bit_exact_and_opens_with_diffusers(
    release: str, tmp_path: Path
) -> None:
    core = tiny_core(release)
    core.save_pretrained(tmp_path / "in", max_shard_size="100KB")
    write_diffusers(open_checkpoint(tmp_path / "in"), tmp_path / "out", max_shard_size="150KB")
    files = sorted(path.name for path in (tmp_path / "out" / "transformer").iterdir())
    assert "diffusion_pytorch_model.safetensors.index.json" in files
    assert len(files) > 4
    opened, report = LTX2VideoTransformer3DModel.from_pretrained(
        tmp_path / "out" / "transformer", output_loading_info=True, low_cpu_mem_usage=False
    )
    assert not any(report.values())
    assert same(opened, core)


def test_diffusers_own_converter_reads_the_original_format_to_the_same_weights(
    tmp_path: Path,
) -> None:
    """Diffusers' converter for 2.0 knows the names independently of ours."""
    core = tiny_core()
    file = save_original(core, tmp_path / "ltx.safetensors")
    core.save_config(tmp_path / "config")
    theirs = LTX2VideoTransformer3DModel.from_single_file(
        str(file), config=str(tmp_path / "config"), low_cpu_mem_usage=False
    )
    assert bits(theirs.state_dict()) == bits(open_checkpoint(file).core().state_dict())


def test_our_export_opens_with_diffusers_own_converter(tmp_path: Path) -> None:
    core = tiny_core()
    core.save_pretrained(tmp_path / "in")
    write_original(open_checkpoint(tmp_path / "in"), tmp_path)
    theirs = LTX2VideoTransformer3DModel.from_single_file(
        str(tmp_path / ORIGINAL_FILE), config=str(tmp_path / "in"), low_cpu_mem_usage=False
    )
    assert bits(theirs.state_dict()) == bits(core.state_dict())


@pytest.mark.parametrize("sinks", [0, 3])
def test_the_authors_student_loads_with_interleaved_rope_and_its_sinks(
    sinks: int, tmp_path: Path
) -> None:
    core = tiny_authors_core()
    index = save_authors(core, tmp_path, sinks)
    for source in (index, tmp_path):
        model = load_model(source, dtype=None)
        assert bits(model.core.state_dict()) == bits(core.state_dict())
        assert model.core.config.rope_type == "interleaved"
        assert model.core.config.cross_attn_timestep_scale_multiplier == 1
        assert model.sinks.shape == (sinks, 64)
    (tmp_path / "out").mkdir()
    write_diffusers(open_checkpoint(index), tmp_path / "out")
    again = load_model(tmp_path / "out", sinks=sinks, dtype=None)
    assert bits(again.state_dict()) == bits(model.state_dict())


def test_a_students_sinks_go_along_in_either_format(tmp_path: Path) -> None:
    model = DualStream(tiny_core(), sinks=4)
    save_model(model, tmp_path / "ours", max_shard_size="100KB")
    for folder, write in (("diffusers", write_diffusers), ("original", write_original)):
        (tmp_path / folder).mkdir()
        write(open_checkpoint(tmp_path / "ours"), tmp_path / folder)
        assert bits(load_model(tmp_path / folder, sinks=4).state_dict()) == bits(model.state_dict())


def test_weights_are_loaded_as_stored_or_in_the_type_asked_for(tmp_path: Path) -> None:
    core = mixed_core("2.0")
    file = save_original(core, tmp_path / "ltx.safetensors")
    assert same(load_model(file, dtype=None).core, core)
    assert {p.dtype for p in load_model(file).parameters()} == {torch.float32}
    assert {p.dtype for p in load_model(file, dtype=torch.bfloat16).core.parameters()} == {
        torch.bfloat16
    }


def test_loaded_weights_train_and_do_not_depend_on_their_file(tmp_path: Path) -> None:
    file = save_original(tiny_core(), tmp_path / "ltx.safetensors")
    before, model = file.read_bytes(), load_model(file)
    assert all(parameter.requires_grad for parameter in model.parameters())
    with torch.no_grad():
        model.core.proj_in.weight.zero_()
    assert file.read_bytes() == before
    file.write_bytes(b"")
    assert model.core.proj_out.weight.abs().sum().item() > 0


@pytest.mark.parametrize("write", [write_diffusers, write_original])
def test_conversion_holds_one_tensor_in_memory_at_a_time(
    write: Callable[..., object], tmp_path: Path
) -> None:
    tiny_core().save_pretrained(tmp_path / "in", max_shard_size="100KB")
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    def count(name: str, tensor: Tensor) -> Tensor:  # noqa: ARG001
        nonlocal most
        alive.append(weakref.ref(tensor))
        most = max(most, sum(reference() is not None for reference in alive))
        return tensor

    write(replace(open_checkpoint(tmp_path / "in"), turn=count), tmp_path)
    # The one just read, and the one before it, which its name still holds.
    assert most <= 2


def test_every_byte_written_is_reported(tmp_path: Path) -> None:
    tiny_core().save_pretrained(tmp_path / "in")
    seen: list[int] = []
    checkpoint = open_checkpoint(tmp_path / "in")
    write_diffusers(checkpoint, tmp_path, watch=seen.append)
    assert len(seen) == len(checkpoint.entries)
    assert sum(seen) == sum(entry.size for entry in checkpoint.entries.values())


def test_metadata_goes_there_and_back_unchanged(tmp_path: Path) -> None:
    def config(checkpoint: Checkpoint) -> dict[str, object]:
        return {key: value for key, value in checkpoint.config.items() if key != "perturbed_attn"}

    for release in RELEASES:
        file = save_original(tiny_core(release), tmp_path / f"{release}.safetensors")
        opened = open_checkpoint(file)
        (tmp_path / release).mkdir()
        write_original(opened, tmp_path / release)
        assert config(open_checkpoint(tmp_path / release / ORIGINAL_FILE)) == config(opened)
        saved = json.loads(json.dumps(config_of(tiny_core(release))))
        assert {
            k: list(v) if isinstance(v, tuple) else v for k, v in config(opened).items()
        }.items() <= saved.items()
