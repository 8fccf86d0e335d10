"""Training of the codec: exact resuming, a start that already carries the picture, losses that see
what matters.
"""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from omniforcing.codec.codec import to_pixels
from omniforcing.codec.config import AudioCodecConfig, CropConfig, VideoCodecConfig, VocoderConfig
from omniforcing.codec.networks import build_audio_vae, build_video_vae, build_vocoder
from omniforcing.media.mel import log_mel
from omniforcing.pocket.synthetic import make_clip
from omniforcing.training.codec import training
from omniforcing.training.config import TrainerConfig
from omniforcing.training.loop import fit

pytestmark = pytest.mark.extended

VIDEO = VideoCodecConfig(
    latent_channels=8,
    encoder_channels=[16, 32, 256],
    encoder_layers=[1, 1, 1, 0],
    decoder_channels=[16, 32, 64],
    steps=6,
    crops=[CropConfig(1, 2, 0.3), CropConfig(9, 2, 0.7)],
)
TRAINER = TrainerConfig(checkpoint_every=2, log_every=1, accelerator="cpu")


@pytest.fixture(scope="module")
def frames() -> torch.Tensor:
    return torch.stack(
        [torch.from_numpy(make_clip(0, index, 1, 64, 64).frames) for index in range(12)]
    )


@pytest.fixture(scope="module")
def samples() -> torch.Tensor:
    return torch.stack(
        [torch.from_numpy(make_clip(0, index, 1, 64, 64).samples) for index in range(4)]
    )


class Stopped(Exception):
    pass


def train_video(
    frames: torch.Tensor, work: Path, die_at: int | None = None
) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    vae = build_video_vae(VIDEO)
    training.initialise_video(vae, to_pixels(frames[:, 4:21]))
    draw = training.video_crops(frames, VIDEO, seed=3)

    def draw_or_die(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        if step == die_at:
            raise Stopped
        return draw(step)

    module = training.VideoVaeTraining(vae, VIDEO, seed=3)
    fit(
        module,
        training.batches_of(draw_or_die, VIDEO.steps, 2),
        steps=VIDEO.steps,
        work=work,
        trainer=TRAINER,
    )
    return vae.state_dict()


def test_a_run_that_was_stopped_ends_in_the_weights_of_one_that_was_not(
    frames: torch.Tensor, tmp_path: Path
) -> None:
    whole = train_video(frames, tmp_path / "whole")
    with pytest.raises(Stopped):
        train_video(frames, tmp_path / "stopped", die_at=5)
    resumed = train_video(frames, tmp_path / "stopped")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    curves = [(tmp_path / run / "curves.csv").read_text() for run in ("whole", "stopped")]
    assert curves[0] == curves[1]


def test_a_plain_loop_gives_the_weights_of_lightning(frames: torch.Tensor, tmp_path: Path) -> None:
    whole = train_video(frames, tmp_path)
    torch.manual_seed(0)
    vae = build_video_vae(VIDEO)
    training.initialise_video(vae, to_pixels(frames[:, 4:21]))
    module = training.VideoVaeTraining(vae, VIDEO, seed=3)
    draw = training.video_crops(frames, VIDEO, seed=3)
    optimiser, schedule = module.configure_optimizers()
    for step in range(VIDEO.steps):
        optimiser.zero_grad()
        loss, logged = module.training_step(step, draw(step))
        loss.backward()
        logged["gradient"] = module.clip()
        optimiser.step()
        schedule.step()
    assert all(torch.equal(whole[name], value) for name, value in vae.state_dict().items())
    row = list(csv.DictReader((tmp_path / "curves.csv").open()))[-1]
    assert row.pop("step") == str(VIDEO.steps - 1)
    assert row == {name: f"{float(value):.6g}" for name, value in logged.items()}


def explained(latents: torch.Tensor, targets: torch.Tensor) -> float:
    """Share of the targets' variance that a linear map of the latents gives."""
    inputs = torch.cat([latents, torch.ones(len(latents), 1)], 1)
    rest = targets - inputs @ torch.linalg.lstsq(inputs, targets).solution
    return 1 - float(rest.var(0).sum() / targets.var(0).sum())


def test_a_fresh_encoder_already_carries_the_moving_ball(frames: torch.Tensor) -> None:
    """8 whitened numbers for 16x16 pixels and 8 frames, against what they are without the
    initialisation.
    """
    pixels = to_pixels(frames[:, 4:21])
    cells = pixels[:, :, 1:].unflatten(2, (2, 8)).unflatten(4, (4, 16)).unflatten(6, (4, 16))
    targets = cells.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).flatten(0, 3)
    found = {}
    for start in ("random", "principal"):
        torch.manual_seed(0)
        vae = build_video_vae(VIDEO)
        if start == "principal":
            training.initialise_video(vae, pixels)
        with torch.no_grad():
            means = vae.encode(pixels).latent_dist.mean[:, :, 1:]
        found[start] = explained(means.permute(0, 2, 3, 4, 1).flatten(0, 3), targets)
        if start == "principal":
            assert torch.allclose(means.std((0, 2, 3, 4)), torch.ones(8), atol=0.3)
    assert found["principal"] > 0.5 and found["principal"] > found["random"] + 0.1


def test_foreground_is_what_moves(frames: torch.Tensor) -> None:
    draw = training.video_crops(frames, VIDEO, seed=0)
    cut, others = draw(5)
    weight = training.foreground(to_pixels(cut), to_pixels(others))
    saturated = (cut.amax(-1).int() - cut.amin(-1).int() > 50)[:, None]
    assert cut.shape == (2, 9, 64, 64, 3) and weight.shape == (2, 1, 9, 64, 64)
    assert weight[saturated].mean() > 0.8 and weight[~saturated].mean() < 0.1


def test_a_ball_that_hardly_leaves_its_place_is_foreground_too() -> None:
    """A red square on grey that covers its middle in two frames of three, which a median over time
    would call background.
    """
    frames = torch.full((24, 32, 32, 3), 128, dtype=torch.uint8)
    for time in range(24):
        frames[time, 12 + time % 3 * 4 : 20 + time % 3 * 4, 12:20] = torch.tensor(
            [224, 48, 40], dtype=torch.uint8
        )
    weight = training.foreground(to_pixels(frames[None]), to_pixels(frames[None, ::5]))
    red = (frames[..., 0] == 224)[None, None]
    assert weight[red].min() > 0.5 and weight[red].mean() > 2 * weight[~red].mean()


def test_crops_grow_and_follow_from_seed_and_step(frames: torch.Tensor) -> None:
    draw, again = (training.video_crops(frames, VIDEO, seed=1) for _ in range(2))
    assert [draw(step)[0].shape[1] for step in range(6)] == [1, 1, 9, 9, 9, 9]
    assert all(torch.equal(draw(step)[0], again(step)[0]) for step in range(6))
    assert not torch.equal(draw(3)[0], draw(4)[0])


def test_an_audio_vae_starts_at_the_level_of_the_mels(samples: torch.Tensor) -> None:
    mels = log_mel(samples)
    torch.manual_seed(0)
    vae = build_audio_vae(AudioCodecConfig())
    training.initialise_audio(vae, mels)
    with torch.no_grad():
        posterior = vae.encode(mels).latent_dist
        found = vae.decode(posterior.mean).sample
    assert (found.mean() - mels.mean()).abs() < mels.std()
    assert posterior.mean.std() == pytest.approx(1, abs=0.2)
    assert posterior.logvar.mean() == pytest.approx(training.LOG_VARIANCE)


def test_training_lowers_the_error_of_an_audio_vae(samples: torch.Tensor, tmp_path: Path) -> None:
    config = AudioCodecConfig(steps=30, batch=2, lr=1e-2, channel_multipliers=[1, 1, 2])
    mels = log_mel(samples)
    torch.manual_seed(0)
    vae = build_audio_vae(config)
    training.initialise_audio(vae, mels)

    def error() -> float:
        with torch.no_grad():
            return float((vae.decode(vae.encode(mels).latent_dist.mean).sample - mels).abs().mean())

    before = error()
    batches = training.batches_of(training.mel_crops(mels, config, 0), config.steps, 2)
    fit(
        training.AudioVaeTraining(vae, config, 0),
        batches,
        steps=config.steps,
        work=tmp_path,
        trainer=TRAINER,
    )
    assert error() < 0.8 * before


def test_training_lowers_the_error_of_a_vocoder(samples: torch.Tensor, tmp_path: Path) -> None:
    config = VocoderConfig(steps=20, batch=2, mel_frames=50, lr=1e-2)
    mels = log_mel(samples)
    torch.manual_seed(0)
    vocoder = build_vocoder(config)
    training.initialise_vocoder(vocoder, mels)

    def error() -> float:
        with torch.no_grad():
            return float(training.spectral_distance(vocoder(mels)[..., :16000], samples, 0.1))

    before = error()
    batches = training.batches_of(
        training.sound_crops(mels, mels, samples, config, 0), config.steps, 2
    )
    fit(
        training.VocoderTraining(vocoder, config, 0),
        batches,
        steps=config.steps,
        work=tmp_path,
        trainer=TRAINER,
    )
    assert error() < 0.995 * before


def test_sound_crops_hold_the_samples_from_160_m_on(samples: torch.Tensor) -> None:
    config = VocoderConfig(batch=4, mel_frames=20)
    mels = log_mel(samples)
    mel, heard = training.sound_crops(mels, mels + 100, samples, config, 0)(0)
    assert mel.shape == (4, 2, 20, 64) and heard.shape == (4, 2, 3200)
    # Inside the crop, where no window leaves it, the mel of its samples is the crop itself.
    assert torch.allclose(log_mel(heard)[0, :, 4:16], mel[0, :, 4:16], atol=1e-3)
    assert mel[1].mean() > 50  # every other one is what the audio VAE makes of it


def test_the_spectral_distance_hears_pitch_and_level() -> None:
    time = torch.arange(16000) / 16000

    def tone(hertz: float, level: float = 0.3) -> torch.Tensor:
        return (level * torch.sin(2 * torch.pi * hertz * time)).expand(1, 2, -1)

    sounds = tone(330), tone(332), tone(494), tone(330, 0.1)
    distance = [float(training.spectral_distance(found, tone(330), 0.1)) for found in sounds]
    assert distance[0] == 0 and distance[0] < distance[1] < distance[2] and distance[3] > 0.5
