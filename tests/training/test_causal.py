"""A non-causal video decoder becomes a causal one: where it starts, that it learns, that a stopped
run goes on.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from omniforcing.codec.config import VideoCodecConfig
from omniforcing.codec.networks import build_video_vae
from omniforcing.codec.streaming import StreamingVideoDecoder
from omniforcing.training.codec import training
from omniforcing.training.codec.causal import (
    DecoderTraining,
    keep_still,
    latent_crops,
    with_decoder,
)
from omniforcing.training.config import CausalDecoderConfig, TrainerConfig
from omniforcing.training.loop import fit

pytestmark = pytest.mark.extended

VIDEO = VideoCodecConfig(
    latent_channels=8, encoder_channels=[8, 16, 32], decoder_channels=[8, 16, 32]
)
CONFIG = CausalDecoderConfig(steps=6, batch=2, latents=4, context=1)
TRAINER = TrainerConfig(checkpoint_every=2, log_every=1, accelerator="cpu")


@pytest.fixture(scope="module")
def teacher() -> Any:
    torch.manual_seed(0)
    return with_decoder(build_video_vae(VIDEO), causal=False).requires_grad_(False)


@pytest.fixture(scope="module")
def z() -> Tensor:
    return torch.randn(6, 8, 7, 4, 4, generator=torch.Generator().manual_seed(0))


class Stopped(Exception):
    pass


def adapt(
    teacher: Any, z: Tensor, work: Path, config: CausalDecoderConfig, die_at: int | None = None
) -> Any:
    student = with_decoder(teacher, causal=True)
    keep_still(student.decoder)
    draw = latent_crops(z, None, config, seed=1)

    def draw_or_die(step: int) -> Any:
        if step == die_at:
            raise Stopped
        return draw(step)

    def target(latents: Tensor, _: Tensor) -> Tensor:
        pictures: Tensor = teacher.decode(latents).sample
        return pictures

    module = DecoderTraining(student.decoder, config, 1, target)
    fit(
        module,
        training.batches_of(draw_or_die, config.steps, 2),
        steps=config.steps,
        work=work,
        trainer=TRAINER,
    )
    return student.requires_grad_(False).eval()


@torch.no_grad()
def test_a_convolution_sees_a_picture_that_stands_still_as_before(teacher: Any) -> None:
    kept = with_decoder(teacher, causal=True)
    keep_still(kept.decoder)
    before, after = teacher.decoder.conv_in, kept.decoder.conv_in
    still = torch.randn(1, before.conv.in_channels, 1, 4, 4).expand(-1, -1, 5, -1, -1)
    assert torch.allclose(after(still, causal=True), before(still, causal=False), atol=1e-5)
    moving = torch.randn(1, before.conv.in_channels, 5, 4, 4)
    assert not torch.allclose(after(moving, causal=True), before(moving, causal=False), atol=1e-2)


@torch.no_grad()
def test_a_moving_picture_is_nearer_to_the_teachers_than_with_the_weights_as_they_are(
    teacher: Any, z: Tensor
) -> None:
    as_is, kept = (with_decoder(teacher, causal=True) for _ in range(2))
    keep_still(kept.decoder)
    whole = teacher.decode(z).sample
    assert (kept.decode(z).sample - whole).square().mean() < 0.8 * (
        as_is.decode(z).sample - whole
    ).square().mean()


def test_it_learns_the_teachers_pictures_and_streams_exactly(
    teacher: Any, z: Tensor, tmp_path: Path
) -> None:
    fresh = with_decoder(teacher, causal=True)
    keep_still(fresh.decoder)
    student = adapt(
        teacher,
        z,
        tmp_path,
        CausalDecoderConfig(steps=60, batch=3, latents=7, context=3),
    )
    with torch.no_grad():
        whole, found = teacher.decode(z).sample, student.decode(z).sample
        before = (fresh.decode(z).sample - whole).square().mean()
        assert (found - whole).square().mean() < 0.8 * before
        stream = StreamingVideoDecoder(student)
        streamed = torch.cat([stream.push(piece) for piece in z[:1].split([1, 3, 3], 2)], 2)
        assert (streamed - found[:1]).abs().max() < 1e-4


def test_a_run_that_was_stopped_ends_in_the_weights_of_one_that_was_not(
    teacher: Any, z: Tensor, tmp_path: Path
) -> None:
    whole = adapt(teacher, z, tmp_path / "whole", CONFIG).state_dict()
    with pytest.raises(Stopped):
        adapt(teacher, z, tmp_path / "stopped", CONFIG, die_at=5)
    resumed = adapt(teacher, z, tmp_path / "stopped", CONFIG).state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_crops_cut_within_a_clip_do_not_count_at_the_cut(z: Tensor) -> None:
    """Of 7 latents, 4 from the first on are cut behind, 4 from the last but three before, others on
    both sides.
    """
    frames = torch.arange(1 + 8 * 6).expand(6, -1)[..., None, None, None].to(torch.uint8)
    drawn = [latent_crops(z, frames, CONFIG, seed=0)(step) for step in range(40)]
    found = {(int(known[0, 0].flatten()[0]), *counted) for _, known, counted in drawn}
    assert found == {(0, 0, 17), (8, 8, 17), (16, 8, 17), (24, 8, 25)}
    assert all(known.shape[1] == 25 and latents.shape[2] == 4 for latents, known, _ in drawn)


def test_recomputed_activations_change_no_weight(teacher: Any, z: Tensor, tmp_path: Path) -> None:
    kept = adapt(teacher, z, tmp_path / "kept", CONFIG)
    recomputed = adapt(teacher, z, tmp_path / "recomputed", replace(CONFIG, recompute=True))
    for a, b in zip(kept.parameters(), recomputed.parameters(), strict=True):
        torch.testing.assert_close(a, b)
