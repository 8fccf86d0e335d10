"""Running streams: overlap, back-pressure, cancelling, pausing, steering, openings, and states that
go on bit for bit.
"""

from __future__ import annotations

import contextlib
import gc
import io
import itertools
import threading
import time
import tracemalloc
import weakref
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from omniforcing.codec.codec import to_frames
from omniforcing.core.latents import noise_like
from omniforcing.core.layout import LAYOUTS
from omniforcing.core.pair import Pair
from omniforcing.core.random import step_generator
from omniforcing.core.schedule import add_noise
from omniforcing.model.inference.cuda_streams import own_cuda_stream
from omniforcing.model.rollout import Rollout, RolloutConfig, new_cache, predict_x0
from omniforcing.streaming import live
from omniforcing.streaming.command import write_stream
from omniforcing.streaming.engine import Engine
from omniforcing.streaming.generation import Generation, Opening
from omniforcing.streaming.live import Chunk, Stream, StreamThreads
from omniforcing.streaming.request import IMAGE_BYTES
from omniforcing.streaming.state import StreamState
from tests.support.limits import files_of_at_most
from tests.support.refusals import refuses
from tests.support.streams import OTHER_PROMPT, PROMPT, image_file, same_media, settled

pytestmark = pytest.mark.extended


def streaming_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("omniforcing-")]


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    yield
    gc.collect()
    assert not streaming_threads()


# --- threads --------------------------------------------------------------------------------------


def test_a_block_is_generated_while_the_one_before_is_decoded(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    met = threading.Barrier(2, timeout=20)
    generate, decode = Generation.next, live.Decoding.push

    def generating(self: Generation) -> Any:
        if self.index == 1:
            met.wait()
        return generate(self)

    def decoding(self: Any, latents: Any, last: bool) -> Any:
        if latents.video.shape[1] == 1:  # block 0
            met.wait()
        return decode(self, latents, last)

    monkeypatch.setattr(Generation, "next", generating)
    monkeypatch.setattr(live.Decoding, "push", decoding)
    assert (
        len(list(engine.stream(PROMPT, 1))) == 2
    )  # each would wait for the other in vain if they took turns


def test_a_chunk_leaves_as_soon_as_it_is_decoded(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken, generate = threading.Event(), Generation.next

    def generating(self: Generation) -> Any:
        if self.index == 2:
            assert taken.wait(20), "block 1 was held back until block 2 was there"
        return generate(self)

    monkeypatch.setattr(Generation, "next", generating)
    for chunk in engine.stream(PROMPT, 2):
        if chunk.block == 1:
            taken.set()


def test_queues_are_finished_before_another_thread_reads_what_they_made(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU each thread has a queue of its own: text is waited for before the threads begin, and
    latents after their use.
    """
    events: list[str] = []
    push, begin = live.Decoding.push, live.StreamThreads.begin

    def pushing(self: Any, latents: Any, last: bool) -> Any:
        part = push(self, latents, last)
        events.append("pushed")
        return part

    def beginning(self: StreamThreads) -> None:
        events.append("begun")
        begin(self)

    def finishing(_device: str) -> None:
        events.append(f"finished in {threading.current_thread().name}")

    monkeypatch.setattr(live.Decoding, "push", pushing)
    monkeypatch.setattr(live, "synchronise", finishing)
    monkeypatch.setattr(live.StreamThreads, "begin", beginning)
    list(engine.stream(PROMPT, 1))
    here = f"finished in {threading.current_thread().name}"
    assert here in events[: events.index("begun")]
    decoding = [event for event in events if event in ("pushed", "finished in omniforcing-decode")]
    assert decoding == 2 * ["pushed", "finished in omniforcing-decode"]


def test_a_streams_cuda_queue_goes_to_the_next_stream_of_its_kind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Memory stays with the queue it was taken for; two streams at a time never share one."""
    monkeypatch.setattr(torch.cuda, "Stream", lambda _device: object())
    entered: list[object] = []

    def entering(queue: object) -> contextlib.nullcontext[None]:
        entered.append(queue)
        return contextlib.nullcontext()

    monkeypatch.setattr(torch.cuda, "stream", entering)
    with (
        own_cuda_stream("cuda", "test generating"),
        own_cuda_stream("cuda", "test decoding"),
        own_cuda_stream("cuda", "test generating"),
    ):
        pass
    first, decoding, second = entered
    assert len({first, decoding, second}) == 3
    with own_cuda_stream("cuda", "test generating"), own_cuda_stream("cuda", "test decoding"):
        pass
    assert entered[3] is first and entered[4] is decoding


def test_a_slow_consumer_holds_generation_back_and_changes_nothing(engine: Engine) -> None:
    fast = list(engine.stream(PROMPT, 6, seed=3))
    with engine.stream(PROMPT, 6, seed=3) as stream:
        slow = [next(stream)]
        time.sleep(1.0)
        held = stream.parts.generation.index
        # Two chunks wait for the consumer, one at the decoder, one before it, and one is generated
        # already.
        assert stream.waiting == live.AHEAD and held <= live.AHEAD + 4
        for chunk in stream:
            time.sleep(0.05)
            slow.append(chunk)
    assert same_media(fast, slow)


def test_waiting_for_the_consumer_does_not_count_as_work(engine: Engine) -> None:
    from omniforcing.evaluation.speed import block_seconds

    timings = []
    for chunk in engine.stream(PROMPT, 5):
        timings.append(chunk.timing)
        time.sleep(0.5)
    assert max(block_seconds(timings)[1:]) < 0.4


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_closing_at_any_moment_frees_everything(engine: Engine, taken: int) -> None:
    stream = engine.stream(PROMPT, None)
    for _ in itertools.islice(stream, taken):
        pass
    assert len(streaming_threads()) == (2 if taken else 0)
    stream.close()
    assert not streaming_threads() and stream.waiting == 0
    assert list(stream) == []
    stream.close()


def test_a_closed_stream_leaves_no_tensor_behind(engine: Engine) -> None:
    def alive() -> int:
        gc.collect()
        return sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())

    def one(seed: int) -> None:
        stream = engine.stream(PROMPT, None, seed)
        stream.steer(OTHER_PROMPT, at=1)
        next(stream)
        stream.close()

    one(0)
    before = alive()
    for seed in range(5):
        one(seed)
    assert alive() <= before


def test_closing_wakes_a_consumer_that_waits(engine: Engine) -> None:
    stream = engine.stream(PROMPT, None)
    stream.pause()
    rest: list[Chunk] = []
    consumer = threading.Thread(target=lambda: rest.extend(stream))
    consumer.start()
    time.sleep(0.2)
    stream.close()
    consumer.join(10)
    assert not consumer.is_alive()


def test_a_stream_may_be_closed_while_it_begins(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    beginning = threading.Event()

    class Slow(threading.Thread):
        def start(self) -> None:
            super().start()
            beginning.set()
            time.sleep(0.1)

    monkeypatch.setattr(live, "Thread", Slow)
    stream = engine.stream(PROMPT, None, 0)
    consumer = threading.Thread(target=lambda: list(stream))
    consumer.start()
    assert beginning.wait(10)
    stream.close()
    consumer.join(10)
    assert not consumer.is_alive() and not streaming_threads()


@pytest.mark.parametrize("chunks", [0, 1])
def test_a_closed_stream_is_freed_without_the_garbage_collector(
    engine: Engine, chunks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[weakref.ref[StreamThreads]] = []

    class Recorded(StreamThreads):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            made.append(weakref.ref(self))

    monkeypatch.setattr(live, "StreamThreads", Recorded)
    stream = engine.stream(PROMPT, None)
    gc.disable()
    try:
        list(itertools.islice(stream, chunks))
        stream.close()
        del stream
        assert len(made) == 1 and settled(lambda: made[0]() is None)
    finally:
        gc.enable()


def test_a_forgotten_stream_closes_itself(engine: Engine) -> None:
    stream = engine.stream(PROMPT, None)
    next(stream)
    del stream
    gc.collect()
    assert settled(lambda: not streaming_threads())


@pytest.mark.parametrize("part", ["next", "push"])
def test_a_fault_in_either_thread_reaches_the_consumer(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Generation if part == "next" else live.Decoding, part, fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        next(engine.stream(PROMPT, 1))


def test_an_endless_stream_stays_flat(engine: Engine) -> None:
    with engine.stream(PROMPT, None) as stream:
        assert stream.blocks is None
        for _ in itertools.islice(stream, 8):
            pass
        gc.collect()
        tracemalloc.start()
        for _ in itertools.islice(stream, 4):
            pass
        before = tracemalloc.take_snapshot()
        state = stream.parts.generation
        kept = len(state.kept)
        for chunk in itertools.islice(stream, 30):
            assert chunk.first_frame == 1 + 24 * (chunk.block - 1)
        growth = sum(
            line.size_diff for line in tracemalloc.take_snapshot().compare_to(before, "filename")
        )
        tracemalloc.stop()
        assert len(state.kept) == kept
        assert growth < 2_000_000, f"thirty blocks left {growth} bytes behind; one chunk is 0.5 MB"


# --- steering -------------------------------------------------------------------------------------


def test_a_prompt_changes_what_comes_from_its_block_on_and_nothing_before(engine: Engine) -> None:
    plain = list(engine.stream(PROMPT, 4, seed=1))
    stream = engine.stream(PROMPT, 4, seed=1)
    applied = stream.steer(OTHER_PROMPT, at=3)
    steered = list(stream)
    assert applied.result(0) == live.Applied(block=3, seconds=49 / 24)
    assert [chunk.prompt for chunk in steered] == [PROMPT] * 3 + [OTHER_PROMPT] * 2
    assert same_media(plain[:3], steered[:3])
    assert not np.array_equal(plain[3].frames, steered[3].frames)


def test_a_prompt_takes_effect_at_the_next_ungenerated_block(engine: Engine) -> None:
    with engine.stream(PROMPT, None) as stream:
        first = next(stream)
        time.sleep(0.8)  # everything that has room is generated
        due = stream.parts.generation.index
        future = stream.steer(OTHER_PROMPT)
        chunks = [first, *itertools.islice(stream, due + 1)]
        assert future.result(10).block == due
    assert [chunk.prompt for chunk in chunks] == [PROMPT] * due + [OTHER_PROMPT] * 2


def test_steered_streams_repeat_whatever_the_consumers_speed(engine: Engine) -> None:
    runs = []
    for pause in (0.0, 0.1):
        stream = engine.stream(PROMPT, 4, seed=2)
        stream.steer(OTHER_PROMPT, at=2, rewrite=True)
        stream.steer(PROMPT, at=4)
        run = []
        for chunk in stream:
            time.sleep(pause)
            run.append(chunk)
        runs.append(run)
    assert same_media(*runs)


def test_the_latest_prompt_wins_and_the_others_are_told(engine: Engine) -> None:
    stream = engine.stream(PROMPT, 3)
    stream.pause()
    futures = [stream.steer(text, at=3) for text in ("one", "two", "three")]
    stream.resume()
    assert list(stream)[3].prompt == "three"
    assert futures[2].result(0).block == 3
    for overtaken in futures[:2]:
        with refuses("streaming.overtaken"):
            overtaken.result(0)


def test_wishes_that_come_too_late_fail_in_a_sentence(engine: Engine) -> None:
    stream = engine.stream(PROMPT, 1)
    never = stream.steer(OTHER_PROMPT, at=50)
    list(stream)
    for future in (never, stream.steer(OTHER_PROMPT), stream.snapshot()):
        with refuses("streaming.over"):
            future.result(10)
    with refuses("streaming.no-prompt", "'  '"):
        stream.steer("  ")


def rollout_config(layout: str) -> RolloutConfig:
    return RolloutConfig(LAYOUTS[layout], (4, 4), (1.0, 0.5), window=3, horizon=7)


def generation_of(
    engine: Engine,
    config: RolloutConfig,
    opening: Opening | None = None,
    generator: torch.Generator | None = None,
) -> Generation:
    generator = generator or step_generator(0, 0, "test")
    return Generation(
        lambda text: Rollout(engine.student, text, config, generator),
        engine.text_encoder.encode([PROMPT]),
        opening,
    )


@pytest.mark.parametrize("layout", list(LAYOUTS))
@pytest.mark.parametrize("before", [1, 2, 13])
def test_rewriting_is_beginning_anew_with_rewritten_blocks(
    engine: Engine, layout: str, before: int
) -> None:
    config, other = rollout_config(layout), engine.text_encoder.encode([OTHER_PROMPT])
    ours = step_generator(0, 0, "test")
    generation = generation_of(engine, config, generator=ours)
    for _ in range(before):
        generation.next()
    random, kept = ours.get_state(), list(generation.kept)
    generation.change_prompt(other, rewrite=True)
    got = generation.next()

    generator = torch.Generator()
    generator.set_state(random)
    student = engine.student
    oracle, cache = Rollout(student, other, config, generator), new_cache(student, config, True)
    sigma, *later = config.sigmas[1:]
    assert not later and config.context_noise == 0
    with torch.no_grad():
        text = student.cache_text(other)
        for index, latents in enumerate(kept):
            x = latents.map(lambda a, n: add_noise(a, n, sigma), noise_like(latents, generator))
            x0 = oracle.follow(predict_x0(student, x, sigma, text, cache.view(index)))
            predict_x0(student, x0, 0.0, text, cache.view(index, write=True))
    expected = next(oracle)
    assert torch.equal(got.video, expected.video) and torch.equal(got.audio, expected.audio)
    assert got.video.shape[1] == LAYOUTS[layout].counts(before).video
    assert len(kept) - 1 >= min(before - 1, config.window), "the window is not whole"


@pytest.mark.parametrize(
    ("sigmas", "repeated", "rewritten"),
    [((1.0, 0.5), 0, True), ((1.0,), 0, False), ((1.0, 0.5), 4, False)],
)
def test_only_what_can_be_rewritten_is(
    engine: Engine, sigmas: tuple[float, ...], repeated: int, rewritten: bool
) -> None:
    """Not by a student of one sigma, and not a clip that is still being repeated."""
    config = replace(rollout_config("prefix"), sigmas=sigmas)
    blocks = list(
        itertools.islice(
            Rollout(
                engine.student, engine.text_encoder.encode([PROMPT]), config, torch.Generator()
            ),
            repeated,
        )
    )
    generation = generation_of(engine, config, opening=Opening(blocks=blocks))
    for _ in range(2):
        generation.next()
    kept = list(generation.kept)
    generation.change_prompt(engine.text_encoder.encode([OTHER_PROMPT]), rewrite=True)
    assert [a is not b for a, b in zip(kept, generation.kept, strict=True)] == [rewritten] * 2


def test_a_switch_that_fails_is_told_to_whoever_asked_and_to_the_consumer(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Generation, "change_prompt", fail)
    stream = engine.stream(PROMPT, 3)
    asked = stream.steer(OTHER_PROMPT, at=1)
    with pytest.raises(RuntimeError, match="out of memory"):
        list(stream)
    with pytest.raises(RuntimeError, match="out of memory"):
        asked.result(1)


# --- pausing --------------------------------------------------------------------------------------


def test_pause_stops_generation_and_resume_goes_on_with_the_same_chunks(engine: Engine) -> None:
    plain = list(engine.stream(PROMPT, 5, seed=4))
    with engine.stream(PROMPT, 5, seed=4) as stream:
        chunks = [next(stream)]
        stream.pause()
        time.sleep(0.6)
        index = stream.parts.generation.index
        assert stream.paused and index < 5
        time.sleep(0.3)
        assert stream.parts.generation.index == index
        stream.resume()
        chunks += stream
    assert same_media(plain, chunks)


def test_a_player_that_moves_the_end_on_steers_what_comes_soon(engine: Engine) -> None:
    plain = list(engine.stream(PROMPT, 5, seed=4))
    with engine.stream(PROMPT, 5, seed=4) as stream:
        stream.allow(2.0)
        chunks = list(itertools.islice(stream, 3))  # block 2 begins at 1.04 s, block 3 at 2.04 s
        time.sleep(0.3)
        assert stream.waiting == 0
        applied = stream.steer(PROMPT)
        stream.allow(100.0)
        chunks += stream
    assert applied.result(0).block <= 4 and same_media(plain, chunks)


# --- openings -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_the_first_frame_is_the_image_as_the_codec_makes_it(engine: Engine, kind: str) -> None:
    opening = engine.image(image_file(kind))
    assert opening.image is not None
    chunks = list(engine.stream(PROMPT, 1, opening=opening))
    codec = engine.codec
    alone = to_frames(
        codec.video_vae.decode(
            codec.denormalise(Pair(opening.image, torch.zeros(1, 1, 16))).video
        ).sample
    )
    assert np.abs(chunks[0].frames.astype(int) - alone[0].numpy().astype(int)).max() <= 1
    assert not np.array_equal(chunks[1].frames, list(engine.stream(PROMPT, 1))[1].frames), (
        "the next block ignores the image"
    )


@pytest.mark.parametrize(
    ("data", "code", "named"),
    [
        (b"", "streaming.unreadable-image", "image"),
        (b"GIF89a" + bytes(100), "streaming.unreadable-image", "image"),
        (b"x" * 1000, "streaming.unreadable-image", "image"),
        (image_file()[:2000], "streaming.unreadable-image", "image"),
        (bytes(IMAGE_BYTES + 1), "streaming.image-too-large", "10,000,000"),
        (image_file("GIF"), "streaming.unreadable-image", "PNG, JPEG, WEBP"),
    ],
    ids=["empty", "damaged", "junk", "cut", "too large", "another type"],
)
def test_what_is_no_image_is_one_sentence(
    engine: Engine, data: bytes, code: str, named: str
) -> None:
    with refuses(code, named):
        engine.image(data)


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(engine: Engine) -> None:
    for side, code, named in (
        (10_000, "streaming.image-too-large", "10000x10000"),
        (20_000, "streaming.unreadable-image", "decompression bomb"),
    ):
        content = io.BytesIO()
        Image.new("1", (side, side)).save(content, "PNG")
        with refuses(code, named):
            engine.image(content.getvalue())


def test_a_stream_goes_on_from_a_clip(engine: Engine, tmp_path: Path) -> None:
    pytest.importorskip("torchaudio")
    write_stream(engine.stream(PROMPT, 2.2, seed=8), tmp_path / "clip.mp4", engine.settings)
    opening = engine.clip(tmp_path / "clip.mp4")
    assert len(opening.blocks) == 3
    chunks = list(engine.stream(PROMPT, 3, opening=opening))
    decoder = engine.new_decoder()
    for block, chunk in zip(opening.blocks, chunks, strict=False):
        assert np.array_equal(decoder.push(block).video[0].numpy(), chunk.frames)
    rollout = Rollout(
        engine.student,
        engine.text_encoder.encode([PROMPT]),
        engine.settings.rollout,
        step_generator(0, 0, "stream"),
    )
    for block in opening.blocks:
        rollout.follow(block)
    assert np.array_equal(decoder.push(next(rollout)).video[0].numpy(), chunks[3].frames)


def test_what_is_no_clip_is_one_sentence(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "junk.mp4").write_bytes(b"junk")
    with refuses("streaming.unreadable-clip", "junk.mp4"):
        engine.clip(tmp_path / "junk.mp4")
    with refuses("streaming.unreadable-clip", "nowhere.mp4"):
        engine.clip(tmp_path / "nowhere.mp4")
    write_stream(engine.stream(PROMPT, 0.5), tmp_path / "short.mp4", engine.settings)
    with refuses("streaming.clip-too-short", "short.mp4", "13 frames"):
        engine.clip(tmp_path / "short.mp4")


# --- states ---------------------------------------------------------------------------------------


def saved_at(stream: Stream, block: int, path: Path) -> list[Chunk]:
    """All chunks of a stream, its state before ``block`` in a file."""
    future: Future[StreamState] = stream.snapshot(at=block)
    chunks = list(stream)
    future.result(10).save(path)
    return chunks


@pytest.mark.parametrize("block", [1, 3, 6, 8])
def test_a_restored_stream_goes_on_bit_for_bit(engine: Engine, tmp_path: Path, block: int) -> None:
    path = tmp_path / "state.safetensors"
    stream = engine.stream(PROMPT, 8, seed=5)
    stream.steer(OTHER_PROMPT, at=2)
    whole = saved_at(stream, block, path)
    state = StreamState.load(path, engine.digest)
    assert (state.block, state.prompt) == (block, OTHER_PROMPT if block >= 2 else PROMPT)
    with engine.resume(state, 10 - block) as resumed:
        if block < 2:
            resumed.steer(OTHER_PROMPT, at=2)
        rest = list(resumed)
    assert [chunk.block for chunk in rest] == [*range(block, 10)]
    assert np.array_equal(whole[8].frames, rest[8 - block].frames)
    if block < 8:  # the sound of the last block ends where nothing follows it
        assert same_media(whole[block:8], rest[: 8 - block])
    heard = max(0, 16000 * (block - 1) - 160 * (engine.new_decoder().look_ahead - 1))
    assert (rest[0].first_frame, rest[0].first_sample) == (1 + 24 * (block - 1), heard)


def test_a_state_after_rewriting_goes_on_bit_for_bit(engine: Engine, tmp_path: Path) -> None:
    path, stream = tmp_path / "state.safetensors", engine.stream(PROMPT, 8, seed=5)
    stream.steer(OTHER_PROMPT, at=6, rewrite=True)
    whole = saved_at(stream, 7, path)
    with engine.resume(StreamState.load(path, engine.digest), 2) as resumed:
        resumed.steer(PROMPT, at=8, rewrite=True)
        rest = list(resumed)
    assert same_media(whole[7:8], rest[:1])


def test_a_paused_stream_can_be_saved(engine: Engine) -> None:
    with engine.stream(PROMPT, 9) as stream:
        next(stream)
        stream.pause()
        future = stream.snapshot()
        chunks: list[Chunk] = []

        def saved() -> bool:
            if stream.waiting and not future.done():
                chunks.append(next(stream))
            return future.done()

        assert settled(saved)
        assert future.result(0).block == len(chunks) + 1 + stream.waiting


def test_states_of_any_layout_repeat(engine: Engine) -> None:
    for layout in LAYOUTS:
        config = rollout_config(layout)
        generation = generation_of(engine, config)
        for _ in range(12):
            generation.next()
        state = generation.state()
        expected = [generation.next() for _ in range(5)]
        start = partial(Rollout, engine.student, config=config, generator=torch.Generator())
        again = Generation.restore(start, state)
        for latents in expected:
            got = again.next()
            assert torch.equal(got.video, latents.video) and torch.equal(got.audio, latents.audio)


def test_a_state_that_is_not_ours_is_one_sentence(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    saved_at(engine.stream(PROMPT, 2), 2, path)
    with refuses("streaming.other-artifact", path, "0" * 12):
        StreamState.load(path, "0" * 64)
    whole = path.read_bytes()
    for data in (b"", b"junk", whole[: len(whole) // 2], (2**40).to_bytes(8, "little")):
        path.write_bytes(data)
        with refuses("file.unreadable", path):
            StreamState.load(path, engine.digest)
    path.write_bytes(whole.replace(b'\\"schema\\": 1', b'\\"schema\\": 7'))
    with refuses("file.unknown-schema", path, "schema 7"):
        StreamState.load(path, engine.digest)
    with refuses("file.missing", tmp_path / "nothing"):
        StreamState.load(tmp_path / "nothing", engine.digest)


def test_a_full_disk_while_saving_is_one_sentence_and_the_stream_goes_on(
    engine: Engine, tmp_path: Path
) -> None:
    path = tmp_path / "state.safetensors"
    path.write_bytes(b"the old one")
    with engine.stream(PROMPT, 4, seed=6) as stream:
        future = stream.snapshot(at=1)
        chunks = [next(stream), next(stream)]
        with (
            refuses("disk.full", path),
            files_of_at_most(4096),
        ):
            future.result(10).save(path)
        chunks += stream
    assert same_media(chunks, list(engine.stream(PROMPT, 4, seed=6)))
    assert path.read_bytes() == b"the old one" and list(tmp_path.iterdir()) == [path]


def test_opening_of_a_stream_is_saved_only_when_it_is_over() -> None:
    nothing: Any = None
    blocks = [Pair(nothing, nothing)] * 3
    generation = Generation(
        lambda _: nothing, Pair(torch.zeros(0), torch.zeros(0)), Opening(blocks=blocks)
    )
    assert not generation.can_be_saved
    generation.index = 3
    assert generation.can_be_saved
