"""Files are read back exactly, or refused with a reason."""

from pathlib import Path

import av
import numpy as np
import pytest

from omniforcing.core.pair import Pair
from omniforcing.media.files import encode_mp4, read_mp4, write_mp4
from omniforcing.media.format import ClipFormat
from omniforcing.media.reading.conform import ClipCutter
from omniforcing.media.reading.probe import probe
from omniforcing.media.reading.sound import read_sound
from omniforcing.media.reading.tracks import Rejected
from omniforcing.pocket.synthetic import make_clip
from tests.support.refusals import refuses
from tests.support.videos import MakeVideo


@pytest.fixture(scope="module")
def media() -> Pair[np.ndarray]:
    clip = make_clip(0, 0, 2, 64, 64)
    return Pair(clip.frames, clip.samples)


def reason(source: Path) -> str:
    with pytest.raises(Rejected) as error:
        cutter = ClipCutter(source, ClipFormat(64, 64, 1))
        for cut in range(cutter.cuts):
            cutter.clip(cut)
    assert error.value.detail
    return error.value.reason


def test_mp4_keeps_samples_to_16_bits_and_frames_to_what_crf_loses(
    media: Pair[np.ndarray], tmp_path: Path
) -> None:
    write_mp4(tmp_path / "a.mp4", media, crf=10)
    back = read_mp4(tmp_path / "a.mp4")
    assert back.audio.shape == media.audio.shape and back.video.shape == media.video.shape
    assert np.abs(back.audio - media.audio).max() <= 0.5001 / 32768
    assert (
        np.square(back.video.astype(float) - media.video).mean() < 255**2 / 10**3.4
    )  # 34 dB; 4:2:0 blurs the ball's edge
    np.testing.assert_allclose(probe(tmp_path / "a.mp4").times, np.arange(49) / 24, atol=1e-6)


def test_both_readers_see_the_same_in_a_file_of_our_own(media: Pair[np.ndarray]) -> None:
    content = encode_mp4(media, 14)
    own, cut = read_mp4(content), ClipCutter(content, ClipFormat(64, 64, 2)).clip(0)
    assert (own.video == cut.video).all() and (own.audio == cut.audio).all()
    assert probe(content).colour == "bt709 tv"


def test_loud_samples_are_clipped_and_do_not_wrap(media: Pair[np.ndarray]) -> None:
    loud = Pair(media.video, np.full_like(media.audio, 1.5))
    assert read_sound(encode_mp4(loud, 20)).samples.min() > 0.999


def test_same_media_give_the_same_bytes_and_bytes_read_like_a_file(
    media: Pair[np.ndarray], tmp_path: Path
) -> None:
    content = encode_mp4(media, 14)
    assert content == encode_mp4(media, 14)
    (tmp_path / "a.mp4").write_bytes(content)
    for mine, theirs in zip(read_mp4(content), read_mp4(tmp_path / "a.mp4"), strict=True):
        assert (mine == theirs).all()


def test_tiny_pictures_are_encoded_alike_every_time() -> None:
    clip = make_clip(0, 0, 1, 32, 32)
    assert len({encode_mp4(Pair(clip.frames, clip.samples), 14) for _ in range(80)}) == 1


@pytest.mark.parametrize(
    "name", ["with space.mp4", "a.b.c.mp4", "größe-Ünïcode-видео.mp4", "100%_{a}.mp4"]
)
def test_names_do_not_matter(media: Pair[np.ndarray], tmp_path: Path, name: str) -> None:
    write_mp4(tmp_path / name, media)
    assert read_mp4(tmp_path / name).video.shape == media.video.shape


def test_empty_file_and_junk_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"")
    assert reason(tmp_path / "a.mp4") == "empty file"
    (tmp_path / "a.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    assert reason(tmp_path / "a.mp4") == "not a readable video"
    (tmp_path / "a.mp4").write_bytes(b"\0" * 5000)
    assert reason(tmp_path / "a.mp4") == "not a readable video"
    assert reason(tmp_path / "gone.mp4") == "not a readable video"


def test_missing_tracks_are_rejected(make_video: MakeVideo) -> None:
    assert reason(make_video("mute.mp4", audio=None)) == "no audio track"
    assert reason(make_video("blind.mp4", video=False)) == "no video track"


@pytest.mark.parametrize("share", [0.5, 0.7, 0.9])
@pytest.mark.parametrize(
    ("name", "how", "expected"),
    [
        ("plain.mp4", {}, "not a readable video"),
        ("fast.mp4", {"movflags": "+faststart"}, "truncated"),
    ],
)
def test_truncated_file_is_rejected(
    make_video: MakeVideo, name: str, how: dict[str, str], expected: str, share: float
) -> None:
    path = make_video(name, seconds=4, events=(1.0, 2.0, 3.0), **how)
    content = path.read_bytes()
    assert len(probe(content).times) == 96
    path.write_bytes(content[: int(share * len(content))])
    assert reason(path) == expected


def test_damaged_frames_are_not_replaced_by_their_neighbours(make_video: MakeVideo) -> None:
    path = make_video("a.mp4", seconds=4, events=(1.0, 2.0, 3.0))
    with av.open(str(path)) as container:
        entries = [(entry.pos, entry.size) for entry in container.streams.video[0].index_entries]
    content = bytearray(path.read_bytes())
    for start, size in entries[40:60]:
        content[start + 4 : start + size] = bytes(size - 4)
    path.write_bytes(content)
    assert reason(path) == "undecodable frames"


def test_foreign_file_is_not_read_as_one_of_ours(make_video: MakeVideo) -> None:
    with refuses("media.not-conformed", "24 fps"):
        read_mp4(make_video("other.mp4", fps=25, rate=48000))


def test_gap_in_the_sound_stays_a_gap(make_video: MakeVideo) -> None:
    samples = np.full((2, 16000), 0.5, np.float32)
    path = make_video("late.mkv", seconds=2, samples=samples, audio="flac", audio_start=0.75)
    heard = read_sound(path).samples
    assert not heard[:, :11990].any() and heard[:, 12010:27990].min() > 0.49
    from_half = read_sound(path, origin=1.0).samples
    assert from_half.shape[1] == pytest.approx(12000, abs=20) and from_half.min() > 0.49
