"""Split and interleaved RoPE are one model in two orders of channels."""

from pathlib import Path

import pytest
import torch
from diffusers import LTX2VideoTransformer3DModel
from torch import Tensor

from benchmarks.published.transformer import RELEASES, tiny_core
from omniforcing.model.weights.checkpoint import open_checkpoint
from omniforcing.model.weights.rope_layout import CONVENTIONS, rope_rows, with_rope
from omniforcing.model.weights.writing import write_diffusers
from tests.support.refusals import refuses
from tests.support.tiny_models import library_core

pytestmark = pytest.mark.extended


@torch.no_grad()
def outputs(core: LTX2VideoTransformer3DModel, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Run diffusers' own forward over three video and nine audio latents, coordinates in fp64."""
    g = torch.Generator().manual_seed(0)
    core = core.to(dtype)
    audio_context = core.config.caption_channels if core.config.use_prompt_embeddings else 32
    video, audio, text, audio_text = (
        torch.randn(shape, generator=g).to(dtype)
        for shape in (
            (2, 18, 8),
            (2, 9, 12),
            (2, 5, core.config.caption_channels),
            (2, 5, audio_context),
        )
    )
    sigma = torch.tensor([300.0, 900.0], dtype=dtype)
    return library_core(core)(
        hidden_states=video,
        audio_hidden_states=audio,
        encoder_hidden_states=text,
        audio_encoder_hidden_states=audio_text,
        timestep=sigma,
        sigma=sigma,
        video_coords=core.rope.prepare_video_coords(2, 3, 2, 3, device="cpu").double(),
        audio_coords=core.audio_rope.prepare_audio_coords(2, 9, device="cpu").double(),
        use_cross_timestep=False,
        return_dict=False,
    )


def difference(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> float:
    return max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize(("own", "other"), [CONVENTIONS, CONVENTIONS[::-1]])
def test_the_exchanged_model_with_the_other_convention_gives_equal_outputs(
    own: str, other: str, release: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    core = tiny_core(release, rope_type=own)
    core.save_pretrained(tmp_path)
    expected = outputs(core, dtype)
    exchanged = with_rope(open_checkpoint(tmp_path), other).core()
    assert exchanged.config.rope_type == other
    assert difference(outputs(exchanged, dtype), expected) < 1e-5
    # Without the exchange the other convention computes something else.
    kept = tiny_core(release, rope_type=other)
    assert difference(outputs(kept, dtype), expected) > 1e-2


@pytest.mark.parametrize(("own", "other"), [CONVENTIONS, CONVENTIONS[::-1]])
def test_exchanging_there_and_back_changes_no_bit(own: str, other: str, tmp_path: Path) -> None:
    core = tiny_core(rope_type=own)
    core.save_pretrained(tmp_path / "transformer")
    write_diffusers(with_rope(open_checkpoint(tmp_path), other), tmp_path / "there")
    back = with_rope(open_checkpoint(tmp_path / "there"), own).core()
    assert back.config.rope_type == own
    saved = core.state_dict()
    assert all(torch.equal(tensor, saved[name]) for name, tensor in back.state_dict().items())


def test_the_convention_that_the_weights_have_leaves_them_alone(tmp_path: Path) -> None:
    tiny_core().save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    assert with_rope(checkpoint, "split") is checkpoint


def test_interleaved_channels_2j_and_2j_plus_1_are_the_split_halves_channel_j_of_each_head() -> (
    None
):
    assert rope_rows(2, 6, "interleaved").tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]


def test_only_roped_queries_and_keys_change_places(tmp_path: Path) -> None:
    core = tiny_core("2.3")
    core.save_pretrained(tmp_path)
    exchanged = with_rope(open_checkpoint(tmp_path), "interleaved").core().state_dict()
    moved = {
        name.split(".", 2)[2]
        for name, tensor in core.state_dict().items()
        if not torch.equal(tensor, exchanged[name])
    }
    sites = ("attn1", "audio_attn1", "audio_to_video_attn", "video_to_audio_attn")
    parts = (
        "to_q.weight",
        "to_q.bias",
        "to_k.weight",
        "to_k.bias",
        "norm_q.weight",
        "norm_k.weight",
    )
    assert moved == {f"{site}.{part}" for site in sites for part in parts}


def test_widths_that_have_no_exact_counterpart_are_refused(tmp_path: Path) -> None:
    with refuses("weights.cannot-convert", "heads of 5 channels"):
        rope_rows(2, 5, "split")
    tiny_core(rope_type="interleaved", audio_cross_attention_dim=40).save_pretrained(tmp_path)
    with refuses("weights.cannot-convert", "audio_cross_attention_dim is 40", "32"):
        with_rope(open_checkpoint(tmp_path), "split")


def test_interleaved_order_brings_the_halves_of_a_head_together() -> None:
    assert rope_rows(2, 4, "interleaved").tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
