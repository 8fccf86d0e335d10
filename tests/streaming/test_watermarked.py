"""Streams with a watermark in their sound: steered, continued, saved, side by side, in files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from omniforcing.cli import main
from omniforcing.core.files import sha256_file
from omniforcing.core.pair import Pair
from omniforcing.media.files import write_mp4
from omniforcing.media.marking import read_marks
from omniforcing.serving.offline.teacher import OfflineTeacher
from omniforcing.streaming.artifact import Artifact
from omniforcing.streaming.engine import Engine
from omniforcing.streaming.live import Chunk, Stream
from omniforcing.streaming.state import StreamState
from tests.support.refusals import refused, refuses
from tests.support.streams import OTHER_PROMPT, PROMPT, file_of, media_of, same_media
from tests.support.tiny_watermarks import Causal, Loudness, Recurrent, saved, seeded


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(seeded(Causal), tmp_path_factory.mktemp("program") / "watermark.pt")


@pytest.fixture(scope="module")
def marking(artifact: Artifact, named: str) -> Engine:
    return Engine(artifact, watermark=named)


def expected(plain: list[Chunk], named: str) -> np.ndarray:
    """The sound of a stream with the watermark of all of it at once."""
    samples = torch.from_numpy(media_of(plain)[1])
    with torch.inference_mode():
        watermark = torch.jit.load(named.rpartition(":")[0])(samples.mean(0)[None, None])[0]
    marked: np.ndarray = (samples + watermark).clamp(-1, 1).numpy()
    return marked


def opened(engine: Engine, kind: str, folder: Path) -> Stream:
    if kind == "continued":
        generator = np.random.default_rng(0)
        frames = generator.integers(0, 256, (25, 64, 64, 3), np.uint8)
        samples = 0.3 * generator.standard_normal((2, 16000)).astype(np.float32)
        write_mp4(folder / "clip.mp4", Pair(frames, samples))
        return engine.stream(PROMPT, 3, 1, engine.clip(folder / "clip.mp4"))
    stream = engine.stream(PROMPT, 3, 1)
    if kind == "steered":
        stream.steer(OTHER_PROMPT, at=2)
    if kind == "paused":
        stream.pause()
        stream.resume()
    return stream


@pytest.mark.extended
@pytest.mark.parametrize("kind", ["plain", "steered", "continued", "paused"])
def test_a_stream_has_the_watermark_of_its_whole_sound(
    kind: str, engine: Engine, marking: Engine, named: str, tmp_path: Path
) -> None:
    plain, marked = (list(opened(e, kind, tmp_path)) for e in (engine, marking))
    assert np.array_equal(media_of(plain)[0], media_of(marked)[0])
    assert [len(chunk.frames) for chunk in plain] == [len(chunk.frames) for chunk in marked]
    wanted = expected(plain, named)
    assert np.abs(wanted - media_of(plain)[1]).max() > 1e-4
    assert np.abs(media_of(marked)[1] - wanted).max() < 1e-6
    for chunk, before in zip(marked[1:], marked, strict=False):
        assert chunk.first_sample == before.first_sample + before.samples.shape[1]


@pytest.mark.extended
def test_streams_of_one_engine_keep_their_watermarks_apart_and_repeat(marking: Engine) -> None:
    alone = [list(marking.stream(prompt, 3, 1)) for prompt in (PROMPT, OTHER_PROMPT)]
    with marking.stream(PROMPT, 3, 1) as one, marking.stream(OTHER_PROMPT, 3, 1) as other:
        together = list(zip(*zip(one, other, strict=True), strict=True))
    assert all(same_media(list(a), b) for a, b in zip(together, alone, strict=True))
    assert file_of(marking, 2, seed=1) == file_of(marking, 2, seed=1)


@pytest.mark.extended
def test_a_saved_stream_goes_on_with_its_own_watermark_alone(
    artifact: Artifact, engine: Engine, marking: Engine, tmp_path: Path
) -> None:
    for block in (2, 4):  # within the stream, and at its end
        with marking.stream(PROMPT, 3, 1) as stream:
            saved_state = stream.snapshot(at=block)
            list(stream)
        saved_state.result().save(tmp_path / "s.state")
        state = StreamState.load(tmp_path / "s.state", marking.digest)
        rest = list(marking.resume(state, 2))
        longer = list(marking.stream(PROMPT, 5, 1))
        assert len(rest) > 1 and same_media(rest[:-1], longer[block : block + len(rest) - 1])
        assert rest[0].first_sample == longer[block].first_sample
    other = Engine(artifact, watermark=saved(seeded(Recurrent), tmp_path / "other.pt"))
    for wrong in (engine, other):
        with refuses("streaming.other-watermark", "--watermark"):
            wrong.resume(state, 2)
    with engine.stream(PROMPT, 2, 1) as stream:
        plain = stream.snapshot(at=1)
        list(stream)
    with refuses("streaming.other-watermark", "no watermark"):
        marking.resume(plain.result(), 2)


def run(*options: str) -> Any:
    with pytest.raises(SystemExit) as end:
        main(list(options))
    return end.value.code


@pytest.mark.extended
def test_a_clip_names_its_watermark_and_inspect_shows_and_finds_it(
    artifact: Artifact, named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip, sha256 = tmp_path / "clip.mp4", sha256_file(Path(named.rpartition(":")[0]))
    command = ("stream", f"--artifact={artifact.folder}", f"--prompt={PROMPT}", "--seconds=2")
    assert not run(*command, f"--out={clip}", f"--watermark={named}", "--json")
    assert json.loads(capsys.readouterr().out)["out"] == str(clip)
    marks = read_marks(clip)
    assert marks["watermark"] == sha256 and sha256 in marks["comment"]
    assert len(marks["artifact"]) == 64 and marks["artifact"] in marks["comment"]
    detector = saved(Loudness(-1.0), tmp_path / "detector.pt")
    assert not run("inspect", str(clip), f"--detector={detector}")
    shown = capsys.readouterr().out
    assert sha256 in shown and "100.0% of the sound" in shown
    nothing = saved(Loudness(2.0, rows=2), tmp_path / "nothing.pt")
    assert not run("inspect", str(clip), f"--detector={nothing}")
    assert " 0.0% of the sound" in capsys.readouterr().out
    sound = tmp_path / "sound.m4a"
    with av.open(str(clip)) as whole, av.open(str(sound), "w", format="mp4") as alone:
        track = alone.add_stream_from_template(whole.streams.audio[0])
        for packet in whole.demux(whole.streams.audio[0]):
            if packet.dts is not None:
                packet.stream = track
                alone.mux(packet)
    assert not run("inspect", str(sound), f"--detector={detector}")
    assert "100.0% of the sound" in capsys.readouterr().out
    assert run("inspect", str(clip), f"--detector={named}") == 2
    refused(capsys.readouterr().err, "program.wrong-signature", "[1, 1, 32000]")
    assert run("inspect", str(tmp_path), f"--detector={detector}") == 2
    refused(capsys.readouterr().err, "option.malformed", "--detector")
    with av.open(str(tmp_path / "silent.mp4"), "w") as container:
        video = container.add_stream("mpeg4", rate=24)
        video.width, video.height, video.pix_fmt = 16, 16, "yuv420p"
        picture = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8))
        for packet in [*video.encode(picture), *video.encode()]:
            container.mux(packet)
    assert run("inspect", str(tmp_path / "silent.mp4"), f"--detector={detector}") == 2
    refused(capsys.readouterr().err, "file.unreadable", "silent.mp4")
    altered = f"{named[:-1]}{'0' if named[-1] != '0' else '1'}"
    assert run(*command, f"--out={tmp_path / 'not.mp4'}", f"--watermark={altered}") == 2
    refused(capsys.readouterr().err, "program.other-sha256", sha256)
    assert not (tmp_path / "not.mp4").exists()


@pytest.mark.extended
def test_the_teacher_beside_a_student_has_the_watermark_too(named: str) -> None:
    plain, marked = OfflineTeacher(), OfflineTeacher(watermark=named)
    for teacher in (plain, marked):
        teacher.sigmas = teacher.sigmas[-3:]
    one, other = (list(teacher.stream(PROMPT, 2, seed=1)) for teacher in (plain, marked))
    assert np.array_equal(media_of(one)[0], media_of(other)[0])
    wanted = expected(list(plain.stream(PROMPT, 4, seed=1)), named)[:, : 2 * 16000]
    assert np.abs(media_of(other)[1] - wanted).max() < 1e-6
    assert marked.mark.watermark == named[-64:]
