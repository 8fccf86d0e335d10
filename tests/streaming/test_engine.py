"""The engine: exact counts, determinism, equality with the rollout decoded whole, refusals."""

from __future__ import annotations

import math
import shutil
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from omniforcing.codec.codec import Codec
from omniforcing.codec.config import VideoDecoder
from omniforcing.codec.reach import Reach
from omniforcing.core.files import read_json, write_json, write_manifest
from omniforcing.core.latents import concatenate
from omniforcing.core.layout import LAYOUTS, samples_of
from omniforcing.core.random import step_generator
from omniforcing.model.rollout import Rollout
from omniforcing.streaming.artifact import Artifact, write_artifact
from omniforcing.streaming.command import write_stream
from omniforcing.streaming.engine import Engine
from omniforcing.streaming.request import Request
from tests.support.refusals import refuses
from tests.support.streams import PROMPT, media_of, same_media
from tests.support.tiny_artifact import METRICS, make_settings
from tests.support.tiny_decoder import QUICK, tiny_decoder


@pytest.mark.parametrize("seconds", [1, 2, 0.04, 0.5, 1.3])
def test_stream_holds_exactly_the_frames_and_samples_asked_for(
    engine: Engine, seconds: float
) -> None:
    frames, samples = media_of(list(engine.stream(PROMPT, seconds)))
    assert frames.shape == (1 + round(24 * seconds), 64, 64, 3) and frames.dtype == np.uint8
    assert samples.shape == (2, round(16000 * seconds)) and samples.dtype == np.float32


def test_chunks_follow_each_other_and_carry_their_cost(engine: Engine) -> None:
    chunks = list(engine.stream(PROMPT, 2))
    assert [c.block for c in chunks] == [0, 1, 2]
    frame = sample = 0
    for chunk in chunks:
        assert (chunk.first_frame, chunk.first_sample) == (frame, sample)
        assert chunk.timing.generate > 0 and chunk.timing.decode > 0
        frame, sample = frame + len(chunk.frames), sample + chunk.samples.shape[1]
    elapsed = [c.timing.elapsed for c in chunks]
    assert elapsed == sorted(elapsed)


@pytest.mark.extended
def test_stream_equals_its_latents_decoded_whole(engine: Engine) -> None:
    frames, samples = media_of(list(engine.stream(PROMPT, 2, seed=5)))
    text = engine.text_encoder.encode([PROMPT])
    rollout = Rollout(engine.student, text, engine.settings.rollout, step_generator(5, 0, "stream"))
    whole = engine.codec.decode(concatenate([next(rollout) for _ in range(3)]))
    assert np.abs(frames.astype(int) - whole.video[0].numpy().astype(int)).max() <= 1
    assert np.abs(samples - whole.audio[0].numpy()).max() < 1e-4


def test_same_seed_same_stream_other_seed_or_prompt_another(engine: Engine) -> None:
    first, again = (media_of(list(engine.stream(PROMPT, 1, seed=3))) for _ in range(2))
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])
    for other in (engine.stream(PROMPT, 1, seed=4), engine.stream("a blue ball rolls", 1, seed=3)):
        assert not np.array_equal(first[1], media_of(list(other))[1])


def test_interleaved_streams_of_one_engine_do_not_disturb_each_other(engine: Engine) -> None:
    alone = [media_of(list(engine.stream(PROMPT, 1, seed))) for seed in (0, 1)]
    mixed = list(zip(engine.stream(PROMPT, 1, 0), engine.stream(PROMPT, 1, 1), strict=True))
    for index, (frames, samples) in enumerate(alone):
        got = media_of([pair[index] for pair in mixed])
        assert np.array_equal(got[0], frames) and np.array_equal(got[1], samples)


def test_stream_longer_than_the_training_rolls_on(engine: Engine) -> None:
    seconds = math.ceil(engine.settings.trained_seconds) + 2
    frames, samples = media_of(list(engine.stream(PROMPT, seconds)))
    assert len(frames) == 1 + 24 * seconds
    assert np.isfinite(samples).all()


def test_engine_leaves_gradient_and_inference_mode_as_they_were(engine: Engine) -> None:
    stream = engine.stream(PROMPT, 1)
    next(stream)
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


@pytest.mark.parametrize("prompt", ["", "   ", "\n"])
def test_empty_prompt_is_refused_at_once(engine: Engine, prompt: str) -> None:
    with refuses("streaming.no-prompt", repr(prompt)):
        engine.stream(prompt, 1)


def test_a_prompt_that_would_be_cut_is_refused_at_once(engine: Engine) -> None:
    with refuses("codec.prompt-too-long", "33 tokens", "takes 32", "'ball'"):
        engine.stream("red " * 31 + "ball", 1)


@pytest.mark.parametrize("seconds", [0, -1, math.nan, math.inf, -math.inf, 1e-3])
def test_impossible_length_is_refused_at_once(engine: Engine, seconds: float) -> None:
    with refuses("streaming.no-time", seconds):
        engine.stream(PROMPT, seconds)


@pytest.mark.parametrize("seed", [-1, 2**63, 1.5, True, "7"])
def test_bad_seed_is_refused_at_once(engine: Engine, seed: object) -> None:
    with refuses("streaming.bad-seed", repr(seed)):
        engine.stream(PROMPT, 1, seed)  # type: ignore[arg-type]


def test_blocks_of_a_request_cover_picture_and_sound() -> None:
    for table in LAYOUTS.values():
        for seconds in (0.05, 1 / 3, 1, 1.01, 2.5):
            request = Request(PROMPT, seconds)
            for rate in (16000, 24000):
                count, limits = request.block_count(table, rate), request.limits(rate)
                assert count is not None and limits == (
                    1 + round(24 * seconds),
                    round(rate * seconds),
                )
                (frames, samples), last = limits, table.block(count - 1)
                heard = samples_of(last.mel, rate)
                assert last.frames.stop >= frames and heard.stop >= samples
                assert last.frames.start < frames or heard.start < samples


def test_settings_of_another_grid_are_refused(own_artifact: Path) -> None:
    path = own_artifact / "streaming.json"
    write_json(path, {**read_json(path), "grid": [2, 2]})
    with refuses("streaming.mixed-artifact", "grid of streaming.json: 4", "16"):
        Engine(Artifact.open(own_artifact, verify=False))


def test_student_of_another_codec_is_refused(own_artifact: Path) -> None:
    path = own_artifact / "transformer" / "config.json"
    write_json(path, {**read_json(path), "in_channels": 4})
    with refuses("weights.wrong-shape", "transformer"):
        Engine(Artifact.open(own_artifact, verify=False))


def test_an_artifact_whose_decoder_looks_both_ways_streams_late_and_whole(
    own_artifact: Path,
) -> None:
    config = own_artifact / "codec" / "video_vae" / "config.json"
    config.write_text(
        config.read_text().replace('"decoder_causal": true', '"decoder_causal": false')
    )
    described = own_artifact / "codec" / "codec.json"
    reach = {"ahead": 2, "again": 1, "blend": 4}
    write_json(described, {**read_json(described), "video_reach": reach})
    settings = own_artifact / "streaming.json"
    write_json(settings, {**read_json(settings), "video_look_ahead": 2})
    write_manifest(own_artifact)
    engine = Engine(own_artifact)
    with engine.stream(PROMPT, 4) as stream:
        saved = stream.snapshot(at=4)
        chunks = list(stream)
    assert [len(chunk.frames) for chunk in chunks] == [0, 9, 24, 24, 24 + 16]
    assert [chunk.first_frame for chunk in chunks] == [0, 0, 9, 33, 57]
    assert sum(chunk.samples.shape[1] for chunk in chunks) == 4 * 16000
    # Saved with 57 frames decoded and 16 more generated: half a second ends among those.
    frames, _ = media_of(chunks)
    for seconds, count in ((0.5, 12), (1, 24)):
        with engine.resume(saved.result(), seconds) as resumed:
            rest, _ = media_of(list(resumed))
        assert np.array_equal(rest, frames[57 : 57 + count])


@pytest.mark.extended
def test_an_artifact_with_a_diffusion_decoder_streams_what_it_decodes_whole(
    parts: tuple[Path, Path], tmp_path: Path
) -> None:
    student, folder = parts[0], Path(shutil.copytree(parts[1], tmp_path / "codec"))
    codec, reach = Codec.load(folder), Reach(ahead=6, again=7)  # all that it reaches
    networks = codec.video_vae, codec.audio_vae, codec.vocoder
    Codec(*networks, 64, 64, reach, diffusion=tiny_decoder(QUICK)).save(folder)
    settings, place = make_settings(video_look_ahead=6), tmp_path / "artifact"
    place.mkdir()
    write_artifact(place, student, folder, settings, METRICS)
    engine = Engine(place)
    assert engine.codec.video_decoder is VideoDecoder.diffusion
    with engine.stream(PROMPT, 4, seed=5) as stream:
        saved = stream.snapshot(at=4)
        chunks = list(stream)
    frames, _ = media_of(chunks)
    text = engine.text_encoder.encode([PROMPT])
    rollout = Rollout(engine.student, text, engine.settings.rollout, step_generator(5, 0, "stream"))
    latents = concatenate([next(rollout) for _ in range(5)])
    whole = engine.codec.decode(latents, seed=5).video[0].numpy()
    assert np.abs(frames.astype(int) - whole.astype(int)).max() <= 1
    other = engine.codec.decode(latents, seed=6).video[0].numpy()
    assert np.abs(other.astype(int) - whole.astype(int)).max() > 1  # its noise is the seed's
    with engine.resume(saved.result(), 1) as resumed:
        rest, _ = media_of(list(resumed))
    assert np.array_equal(rest[:24], frames[chunks[4].first_frame :][:24])


@pytest.fixture
def fast_sound(own_artifact: Path) -> Engine:
    """The artifact with a vocoder of 24 kHz in LTX-2.0's proportions: 240 samples a mel frame."""
    from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder

    torch.manual_seed(1)
    vocoder = LTX2Vocoder(hidden_channels=32)
    assert vocoder.config.output_sampling_rate == 24_000
    codec = Codec.load(own_artifact / "codec")
    Codec(codec.video_vae, codec.audio_vae, vocoder, codec.height, codec.width).save(
        own_artifact / "codec"
    )
    described, path = (
        read_json(own_artifact / "codec" / "codec.json"),
        own_artifact / "streaming.json",
    )
    told = {
        "sample_rate": described["sample_rate"],
        "look_ahead": described["vocoder_look_ahead_mel"],
    }
    write_json(path, {**read_json(path), **told})
    write_manifest(own_artifact)
    return Engine(own_artifact)


@pytest.mark.extended
def test_sound_of_24_khz_is_streamed_and_stored_at_its_own_rate(
    fast_sound: Engine, tmp_path: Path
) -> None:
    path, seconds = tmp_path / "clip.mp4", 3
    chunks = list(fast_sound.stream(PROMPT, seconds, seed=5))
    samples = media_of(chunks)[1]
    rollout = Rollout(
        fast_sound.student,
        fast_sound.text_encoder.encode([PROMPT]),
        fast_sound.settings.rollout,
        step_generator(5, 0, "stream"),
    )
    whole = (
        fast_sound.codec.decode(concatenate([next(rollout) for _ in range(1 + seconds)]))
        .audio[0]
        .numpy()
    )
    assert samples.shape == whole.shape == (2, 24_000 * seconds)
    assert np.abs(samples - whole).max() < 1e-4 < np.abs(whole).max()
    write_stream(chunks, path, fast_sound.settings)
    with av.open(str(path)) as container:
        picture, sound = container.streams.video[0], container.streams.audio[0]
        assert (
            sound.rate == sound.codec_context.sample_rate == 24_000
            and sound.time_base == Fraction(1, 24_000)
        )
        seen = [frame.pts * frame.time_base for frame in container.decode(picture)]
        container.seek(0)
        heard = list(container.decode(sound))
    ends = seen[-1], heard[-1].pts * heard[-1].time_base + Fraction(heard[-1].samples, 24_000)
    assert (
        seen[0] == heard[0].pts == 0
        and ends[0] == seconds
        and 0 <= ends[1] - seconds < Fraction(1024, 24_000)
    )
    decoded = np.concatenate([frame.to_ndarray() for frame in heard], 1)[:, : 24_000 * seconds]
    assert np.corrcoef(decoded[0], whole[0])[0, 1] > 0.9, "it is not the sound that was streamed"


@pytest.mark.extended
def test_a_stream_of_24_khz_goes_on_from_its_own_file_and_state(
    fast_sound: Engine, tmp_path: Path
) -> None:
    pytest.importorskip("torchaudio")
    with fast_sound.stream(PROMPT, 4, seed=2) as stream:
        saved = stream.snapshot(at=3)
        whole = list(stream)
    with fast_sound.resume(saved.result(), 2) as resumed:
        rest = list(resumed)
    assert rest[0].first_sample == whole[3].first_sample
    assert all(
        np.array_equal(one.samples, other.samples)
        for one, other in zip(whole[3:], rest, strict=True)
    )
    write_stream(rest, tmp_path / "rest.mp4", fast_sound.settings)
    with av.open(str(tmp_path / "rest.mp4")) as container:
        heard = sum(frame.samples for frame in container.decode(audio=0))
    assert (
        0 <= heard - (2 * 24_000 - 1000) < 1024
    )  # its first picture is a frame after the last one before it
    assert len(fast_sound.clip(tmp_path / "rest.mp4").blocks) == 2


def test_settings_of_another_sample_rate_are_refused(own_artifact: Path) -> None:
    path = own_artifact / "streaming.json"
    write_json(path, {**read_json(path), "sample_rate": 24000})
    with refuses("streaming.mixed-artifact", "sample rate of streaming.json: 24000", "16000"):
        Engine(Artifact.open(own_artifact, verify=False))


def test_a_student_stored_in_bf16_streams_in_it(
    parts: tuple[Path, Path], engine: Engine, tmp_path: Path
) -> None:
    artifact = write_artifact(tmp_path, *parts, make_settings(), METRICS, precision="bf16")
    halved = Engine(artifact)
    for part in (halved.student.core, halved.text_encoder):
        assert isinstance(part, torch.nn.Module)
        assert {p.dtype for p in part.parameters()} == {torch.bfloat16}
    assert next(halved.codec.vocoder.parameters()).dtype == torch.float32
    frames, samples = media_of(list(halved.stream(PROMPT, 2, seed=5)))
    assert len(frames) == 1 + 2 * 24 and np.isfinite(samples).all()
    # Features come in fp32, as close to the others as rounding leaves them.
    text, whole = (e.text_encoder.encode([PROMPT]).video for e in (halved, engine))
    assert text.dtype == torch.float32
    assert 0 < (text - whole).abs().max() < 0.1 * whole.abs().max()
    again = Engine(artifact, precision="fp32")
    assert next(again.student.core.parameters()).dtype == torch.float32


def test_a_freed_text_encoder_gives_the_same_stream(artifact: Artifact, engine: Engine) -> None:
    freed = Engine(artifact, keep_text_encoder=False)
    assert same_media(*(list(e.stream(PROMPT, 1, seed=5)) for e in (engine, freed)))
    assert not isinstance(freed.text_encoder, torch.nn.Module)
    assert freed.count_tokens(PROMPT) == engine.count_tokens(PROMPT)
