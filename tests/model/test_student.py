"""Saving and loading models, and what is refused."""

from pathlib import Path

import pytest
import torch
from diffusers import LTX2VideoTransformer3DModel

from benchmarks.published.transformer import tiny_config
from omniforcing.model.config import Stabiliser
from omniforcing.model.stabiliser import WITH_SINKS
from omniforcing.model.weights.student import load_model, save_model
from tests.support.refusals import refuses
from tests.support.tiny_models import tiny_model


def test_a_saved_model_is_loaded_bit_for_bit_and_opens_with_diffusers(tmp_path: Path) -> None:
    model = tiny_model(sinks=3)
    save_model(model, tmp_path)
    saved = model.state_dict()
    for name, value in load_model(tmp_path).state_dict().items():
        assert torch.equal(value, saved[name]), name
    opened = LTX2VideoTransformer3DModel.from_pretrained(tmp_path / "transformer")
    assert torch.equal(opened.proj_in.weight, model.core.proj_in.weight)
    assert opened.config.rope_type == "split"


def test_sinks_start_afresh_where_the_file_has_none(tmp_path: Path) -> None:
    save_model(tiny_model(), tmp_path)
    assert load_model(tmp_path, sinks=5, fresh=True).sinks.shape == (5, 32)


def test_sinks_that_the_file_lacks_are_not_made_up(tmp_path: Path) -> None:
    save_model(tiny_model(), tmp_path)
    with refuses("weights.other-stabiliser", "0 sinks", "expected 5", "student.sinks"):
        load_model(tmp_path, sinks=5)


def test_other_sinks_than_the_files_are_refused(tmp_path: Path) -> None:
    save_model(tiny_model(sinks=3), tmp_path)
    with refuses("weights.other-stabiliser", "3 sinks", "expected 5"):
        load_model(tmp_path, sinks=5, fresh=True)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with refuses("file.missing", "nowhere"):
        load_model(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "change", [{"num_layers": 3}, {"attention_head_dim": 12, "cross_attention_dim": 24}]
)
def test_weights_of_another_architecture_are_refused(
    tmp_path: Path, change: dict[str, int]
) -> None:
    save_model(tiny_model(), tmp_path / "mine")
    LTX2VideoTransformer3DModel(**tiny_config(**change)).save_config(
        tmp_path / "mine" / "transformer"
    )
    with refuses(
        "weights.wrong-tensors" if "num_layers" in change else "weights.wrong-shape", "transformer"
    ):
        load_model(tmp_path / "mine")


def test_junk_instead_of_weights_is_refused(tmp_path: Path) -> None:
    save_model(tiny_model(), tmp_path)
    (tmp_path / "transformer" / "diffusion_pytorch_model.safetensors").write_bytes(b"junk" * 100)
    with refuses("weights.truncated", "diffusion_pytorch_model.safetensors"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    "stabiliser", [Stabiliser.qk_norm, Stabiliser.tanh_gate, Stabiliser.sinks_rope_growing]
)
def test_what_a_stabiliser_learnt_is_saved_and_loaded_with_its_name(
    tmp_path: Path, stabiliser: Stabiliser
) -> None:
    sinks = 3 if stabiliser in WITH_SINKS else 0
    model = tiny_model(sinks, stabiliser)
    save_model(model, tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.stabiliser is stabiliser
    saved = model.state_dict()
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, saved[name]), name
    with refuses("weights.other-stabiliser", stabiliser.value, "expected sinks"):
        load_model(tmp_path, sinks=sinks, stabiliser=Stabiliser.sinks)


def test_a_stabiliser_starts_afresh_only_if_asked_where_the_file_has_none(tmp_path: Path) -> None:
    save_model(tiny_model(), tmp_path)
    with refuses("weights.other-stabiliser", "qk_norm"):
        load_model(tmp_path, sinks=0, stabiliser=Stabiliser.qk_norm)
    model = load_model(tmp_path, sinks=0, stabiliser=Stabiliser.qk_norm, fresh=True)
    assert (
        model.qk_gain is not None and model.qk_gain.shape == (2, 2) and (model.qk_gain == 1).all()
    )
