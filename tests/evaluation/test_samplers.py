"""Every model as a sampler of media: tiny random parts, real samplers, codec and engine."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from omniforcing.codec.codec import Codec
from omniforcing.codec.config import (
    AudioCodecConfig,
    CodecConfig,
    TextConfig,
    VideoCodecConfig,
    VocoderConfig,
)
from omniforcing.codec.text import TextEncoder, build_tiny
from omniforcing.core.files import read_json
from omniforcing.core.pair import Pair
from omniforcing.data.config import ClipsConfig
from omniforcing.data.shards import plan_shards, publish_shards, read_shards, write_shards
from omniforcing.data.sources import DUETS, HELDOUT, TRAIN, read_clips, write_clips
from omniforcing.data.tensors import write_text
from omniforcing.evaluation.samplers import CAUSAL, MODELS, SamplerFactory, split_clips
from omniforcing.media.format import ClipFormat
from omniforcing.model.student import build_core, core_config
from omniforcing.model.transformer import DualStream
from omniforcing.model.weights.student import save_model
from omniforcing.pipeline.config import Config
from omniforcing.pipeline.stages.shared.factory import open_factory
from omniforcing.pipeline.stages.shared.speed import against_the_teacher
from omniforcing.pocket.synthetic import make_clip

pytestmark = pytest.mark.extended

CAPTIONS = ["a red ball bounces", "a blue ball bounces", "a green ball bounces"]


@pytest.fixture(scope="module")
def config() -> Config:
    config = Config()
    config.clips.seconds, config.student.window, config.student.sinks, config.student.sigmas = (
        2,
        1,
        2,
        [1.0, 0.5],
    )
    config.teacher.sampler.steps, config.evaluate.batch, config.trainer.accelerator = 2, 2, "cpu"
    config.teacher.model = dataclasses.replace(
        config.teacher.model, layers=1, heads=2, video_head_dim=24, audio_head_dim=16
    )
    text = TextConfig(layers=1, hidden=32, heads=2, length=16, registers=8)
    video = VideoCodecConfig(
        latent_channels=8, encoder_channels=[8, 16, 32], decoder_channels=[8, 16, 32]
    )
    audio = AudioCodecConfig(channel_multipliers=[1, 1, 2])
    config.codec = CodecConfig(
        video=video, audio=audio, vocoder=VocoderConfig(hidden=16), text=text
    )
    return config


@pytest.fixture(scope="module")
def folders(config: Config, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder per model, that of the codec and that of the text features."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    folders = {name: tmp_path_factory.mktemp(name) for name in (*MODELS, "codec", "latents")}
    Codec.from_config(config.codec, 64, 64).save(folders["codec"])
    build_tiny(folders["codec"] / "text", config.codec.text, CAPTIONS, seed=0)
    write_text(folders["latents"], TextEncoder.load(folders["codec"] / "text"), CAPTIONS)
    width = open_factory(
        config, folders["codec"], folders["latents"]
    ).text.unconditional.video.shape[-1]
    core = core_config(config.teacher.model, read_json(folders["codec"] / "codec.json"), width)
    for name in MODELS:
        save_model(
            DualStream(build_core(core, seed=0), config.student.sinks if name in CAUSAL else 0),
            folders[name],
        )
    return folders


@pytest.fixture(scope="module")
def factory(config: Config, folders: dict[str, Path]) -> SamplerFactory:
    return open_factory(config, folders["codec"], folders["latents"])


@pytest.mark.parametrize("name", MODELS)
def test_every_model_makes_one_clip_per_caption_the_same_for_the_same_seeds(
    factory: SamplerFactory, folders: dict[str, Path], name: str
) -> None:
    sampler = factory.sampler(name, folders[name], 2)
    clips, again = (list(sampler(CAPTIONS, [1, 2, 3])) for _ in range(2))
    assert len(clips) == 3
    for clip, twin in zip(clips, again, strict=True):
        assert clip.video.shape == (49, 64, 64, 3) and clip.video.dtype == np.uint8
        assert clip.audio.shape == (2, 32000) and clip.audio.dtype == np.float32
        assert np.array_equal(clip.video, twin.video) and np.array_equal(clip.audio, twin.audio)
    other = next(iter(sampler(CAPTIONS, [4, 5, 6])))
    assert not np.array_equal(clips[0].audio, other.audio)


@pytest.mark.parametrize("name", CAUSAL)
def test_causal_models_roll_on_beyond_the_trained_length(
    factory: SamplerFactory, folders: dict[str, Path], name: str
) -> None:
    (clip,) = factory.sampler(name, folders[name], 6)(CAPTIONS[:1], [1])
    assert clip.video.shape[0] == 1 + 24 * 6 and clip.audio.shape[1] == 16000 * 6


def test_the_clips_of_a_split_are_read_whole_in_part_and_not_at_all(tmp_path: Path) -> None:
    for name in ("clips", "shards"):
        (tmp_path / name).mkdir()
    settings = ClipsConfig(count=7, heldout=2, heldout_duets=0, seconds=1, height=32, width=32)
    write_clips(settings, 0, tmp_path / "clips")
    plans = plan_shards(read_clips(tmp_path / "clips"), ClipFormat(32, 32, 1), per_shard=2)
    write_shards(plans, tmp_path / "work")
    publish_shards(plans, tmp_path / "work", tmp_path / "shards", 0.0)
    stored = list(read_shards(tmp_path / "shards", TRAIN))
    train = split_clips(tmp_path / "shards", TRAIN, 4)
    assert train.captions == [clip["caption"] for clip in stored[:4]]
    for chosen, found in (([0, 1, 2, 3], train.read()), ([1, 3], train.read([3, 1]))):
        for index, clip in zip(chosen, found, strict=True):
            assert np.array_equal(clip.video, stored[index]["media"].video)
    assert len(split_clips(tmp_path / "shards", HELDOUT, 4).captions) == 2
    duets = split_clips(tmp_path / "shards", DUETS, 4)
    assert not duets.captions and not list(duets.read())


def test_a_reconstruction_has_the_clips_shape(factory: SamplerFactory) -> None:
    made = make_clip(0, 0, 2, 64, 64)
    found = factory.reconstruct(Pair(made.frames, made.samples))
    assert found.video.shape == made.frames.shape and found.audio.shape == made.samples.shape


def test_speed_is_that_of_the_streamed_artifact_against_the_teacher(
    config: Config, factory: SamplerFactory, folders: dict[str, Path], tmp_path: Path
) -> None:
    speed = against_the_teacher(
        config, factory, folders, folders["codec"], tmp_path / "artifact", CAPTIONS[0]
    )
    assert speed["media_s"] == 2 and 0 < speed["ttfc_s"] <= speed["stream_s"]
    assert speed["speedup"] == pytest.approx(speed["teacher_s"] / speed["stream_s"])
    assert "student 2 steps" in speed["measured_on"]
