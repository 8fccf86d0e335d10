"""The engine: exact counts, determinism, equality with the rollout decoded whole, refusals."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from omniforcing.errors import OmniForcingError
from omniforcing.files import read_json, write_json, write_manifest
from omniforcing.latents import concatenate
from omniforcing.layout import LAYOUTS
from omniforcing.model.rollout import Rollout
from omniforcing.seeding import step_generator
from omniforcing.stream.artifact import Artifact
from omniforcing.stream.engine import Chunk, Engine
from omniforcing.stream.request import Request

PROMPT = "a red ball bounces"


def media_of(chunks: list[Chunk]) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate([c.frames for c in chunks]), np.concatenate([c.samples for c in chunks], 1)


@pytest.mark.parametrize("seconds", [1, 2, 0.04, 0.5, 1.3])
def test_stream_holds_exactly_the_frames_and_samples_asked_for(engine: Engine, seconds: float) -> None:
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


def test_stream_equals_its_latents_decoded_whole(engine: Engine) -> None:
    frames, samples = media_of(list(engine.stream(PROMPT, 2, seed=5)))
    text = engine._text.encode([PROMPT])
    rollout = Rollout(engine._student, text, engine.settings.rollout, step_generator(5, 0, "stream"))
    whole = engine._codec.decode(concatenate([next(rollout) for _ in range(3)]))
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
    with pytest.raises(OmniForcingError, match="prompt"):
        engine.stream(prompt, 1)


@pytest.mark.parametrize("seconds", [0, -1, math.nan, math.inf, -math.inf, 1e-3])
def test_impossible_length_is_refused_at_once(engine: Engine, seconds: float) -> None:
    with pytest.raises(OmniForcingError, match="seconds"):
        engine.stream(PROMPT, seconds)


@pytest.mark.parametrize("seed", [-1, 2**63, 1.5, True, "7"])
def test_bad_seed_is_refused_at_once(engine: Engine, seed: object) -> None:
    with pytest.raises(OmniForcingError, match="seed"):
        engine.stream(PROMPT, 1, seed)  # type: ignore[arg-type]


def test_blocks_of_a_request_cover_picture_and_sound() -> None:
    for table in LAYOUTS.values():
        for seconds in (0.05, 1 / 3, 1, 1.01, 2.5):
            request = Request(PROMPT, seconds)
            count = request.block_count(table)
            assert count is not None and request.frames is not None and request.samples is not None
            blocks = table.blocks(count)
            assert blocks[-1].frames.stop >= request.frames and blocks[-1].samples.stop >= request.samples
            assert blocks[-1].frames.start < request.frames or blocks[-1].samples.start < request.samples


def test_settings_of_another_grid_are_refused(own_artifact: Path) -> None:
    path = own_artifact / "streaming.json"
    write_json(path, {**read_json(path), "grid": [2, 2]})
    with pytest.raises(OmniForcingError, match=r"grid of streaming\.json: 4, but its codec has 16"):
        Engine(Artifact.open(own_artifact, verify=False))


def test_student_of_another_codec_is_refused(own_artifact: Path) -> None:
    path = own_artifact / "transformer" / "config.json"
    write_json(path, {**read_json(path), "in_channels": 4})
    with pytest.raises(OmniForcingError, match="transformer"):
        Engine(Artifact.open(own_artifact, verify=False))


def test_an_artifact_whose_decoder_looks_both_ways_streams_late_and_whole(own_artifact: Path) -> None:
    config = own_artifact / "codec" / "video_vae" / "config.json"
    config.write_text(config.read_text().replace('"decoder_causal": true', '"decoder_causal": false'))
    described = own_artifact / "codec" / "codec.json"
    reach = {"ahead": 2, "again": 1, "blend": 4}
    write_json(described, {**read_json(described), "video_reach": reach})
    write_manifest(own_artifact)
    with Engine(own_artifact).stream("a red ball bounces", 4) as stream:
        chunks = list(stream)
    assert [len(chunk.frames) for chunk in chunks] == [0, 9, 24, 24, 24 + 16]
    assert [chunk.first_frame for chunk in chunks] == [0, 0, 9, 33, 57]
    assert sum(chunk.samples.shape[1] for chunk in chunks) == 4 * 16000
