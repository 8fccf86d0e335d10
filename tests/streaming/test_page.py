"""The page in a real Chromium, with known pictures and sound: colours, memory, what cannot play."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import av
import numpy as np
import pytest

from benchmarks import firefox
from benchmarks.page import (
    COUNTERS,
    DRAWN_AS_BY_A_GPU,
    DRAWN_WITHOUT,
    PATCHES,
    PatchEngine,
    browsing,
    serving,
    shown_colours,
    start,
    wait_until,
)

pytestmark = [pytest.mark.chromium, pytest.mark.timeout(600)]
VIDEO = "document.getElementById('video')"
# As a browser that lets no page write to its disk.
NO_DISK = "delete StorageManager.prototype.getDirectory;"
# As a browser that ignores edit lists plays the stream.
NO_EDIT_LISTS = """
const append = SourceBuffer.prototype.appendBuffer;
SourceBuffer.prototype.appendBuffer = function (data) {
  const bytes = new Uint8Array(data.slice(0));
  for (let at = 0; at < Math.min(bytes.length, 2000); at++)
    if (String.fromCharCode(...bytes.slice(at, at + 4)) === "edts") bytes.set([102, 114, 101, 101], at);
  return append.call(this, bytes);
};
"""
# As a player whose first seek lasts until after the end of the stream.
SLOW_SEEK = """
let over = false;
const end = MediaSource.prototype.endOfStream;
MediaSource.prototype.endOfStream = function () {
  setTimeout(() => { over = true; }, 1000);
  return end.call(this);
};
const { get } = Object.getOwnPropertyDescriptor(HTMLMediaElement.prototype, "seeking");
Object.defineProperty(HTMLMediaElement.prototype, "seeking", {
  get() { return !over || get.call(this); },
});
"""
# As a browser treats a hidden page that makes no sound.
TIMERS_ONCE_A_MINUTE = """
const every = window.setInterval;
window.setInterval = (task, _) => every(task, 60_000);
"""


class Open(Protocol):
    """Opens the page, with a script that runs before its own."""

    def __call__(
        self, script: str = "", size: tuple[int, int] = (64, 64), gpu: bool = False
    ) -> AbstractContextManager[Any]: ...


@pytest.fixture
def opened(tmp_path: Path) -> Open:
    from contextlib import contextmanager

    @contextmanager
    def open_page(
        script: str = "", size: tuple[int, int] = (64, 64), gpu: bool = False
    ) -> Iterator[Any]:
        flags = DRAWN_AS_BY_A_GPU if gpu else DRAWN_WITHOUT
        with (
            serving(PatchEngine(*size)) as address,
            browsing(address, tmp_path / "profile", flags, script) as page,
        ):
            problems: list[str] = []
            page.on("pageerror", lambda error: problems.append(str(error)))
            page.on(
                "console",
                lambda message: problems.append(message.text) if message.type == "error" else None,
            )
            yield page
            assert [problem for problem in problems if "favicon" not in problem] == []

    return open_page


@pytest.mark.parametrize("size", [(64, 64), (512, 768)])
def test_colours_are_shown_as_they_were_made(opened: Open, size: tuple[int, int]) -> None:
    with opened(size=size, gpu=True) as page:
        start(page, 2)
        wait_until(page, f"{VIDEO}.ended", 60)
        assert np.abs(np.subtract(shown_colours(page, *size), PATCHES)).max() <= 4


@pytest.mark.skipif(bool(firefox.missing()), reason=f"needs {firefox.missing()} of Debian")
def test_firefox_shows_the_same_colours(tmp_path: Path) -> None:
    size = (64, 64)
    with serving(PatchEngine(*size)) as address, firefox.browsing(address, tmp_path) as page:
        start(page, 2)
        wait_until(page, f"{VIDEO}.ended", 60)
        assert np.abs(np.subtract(shown_colours(page, *size), PATCHES)).max() <= 4


def pictures(download: Any) -> int:
    """Count the pictures of a stream that was downloaded."""
    with av.open(io.BytesIO(Path(download.value.path()).read_bytes())) as container:
        return sum(1 for _ in container.decode(video=0))


@pytest.mark.parametrize(("script", "blobs"), [("", 0), (NO_DISK, 1)], ids=["disk", "memory"])
def test_a_stream_is_not_copied_on_the_way_and_is_whole_in_the_download(
    opened: Open, script: str, blobs: int
) -> None:
    with opened(COUNTERS + script) as page:
        start(page, 12)
        wait_until(page, f"{VIDEO}.ended", 60)
        assert page.evaluate("made.blobs") == 1, "the clock's script, and nothing of the stream"
        for time in (1, 2):
            with page.expect_download() as download:
                page.click("#download")
            assert page.evaluate("made.blobs") == 1 + time * blobs
            assert pictures(download) == 1 + 24 * 12


def test_a_stream_is_kept_on_the_disk_and_goes_on_after_a_download(opened: Open) -> None:
    files = """navigator.storage.getDirectory().then(async (folder) => {
      const names = []; for await (const name of folder.keys()) names.push(name);
      return names.filter((name) => name.endsWith(".mp4")).length; })"""
    with opened() as page:
        start(page, 6)
        wait_until(page, f"{VIDEO}.currentTime > 1", 60)
        with page.expect_download():
            page.click("#download")
        wait_until(page, f"{VIDEO}.ended && session.kept.blocks.length === 0", 60)
        with page.expect_download() as download:
            page.click("#download")
        assert pictures(download) == 1 + 24 * 6
        assert page.evaluate(files) == 1
        page.reload()
        start(page, 2)
        wait_until(page, f"{VIDEO}.ended", 60)
        assert page.evaluate(files) == 1, "the file of the page that is gone is gone too"


def test_what_is_kept_in_memory_is_bounded(opened: Open) -> None:
    with opened(NO_DISK) as page:
        start(page, 2)
        wait_until(page, f"{VIDEO}.ended", 60)
        page.evaluate(
            "for (let n = 0; n < 20; n++) { session.begins = n; session.keep(new ArrayBuffer(20e6)); }"
        )
        assert page.evaluate("session.kept.size") <= 256e6
        held = "session.kept.blocks.reduce((n, { data }) => n + data.byteLength, 0)"
        assert page.evaluate(f"{held} <= session.kept.size")
        header = bytes(page.evaluate("[...new Uint8Array(session.kept.header)]"))
        assert header[4:8] == b"ftyp" and b"moov" in header and b"moof" not in header
        assert page.inner_text("#download") == "Download from 8.00 s on"


def test_a_full_disk_costs_the_beginning_of_the_download_alone(opened: Open) -> None:
    full = """FileSystemWritableFileStream.prototype.write = (write => function (data) {
      return this.written++ > 3 ? Promise.reject(new Error("full")) : write.call(this, data);
    })(FileSystemWritableFileStream.prototype.write);
    FileSystemWritableFileStream.prototype.written = 0;"""
    with opened(full) as page:
        start(page, 8)
        wait_until(page, f"{VIDEO}.ended", 60)
        assert page.evaluate("session.kept.gone && !session.kept.disk")
        with page.expect_download() as download:
            page.click("#download")
        assert 24 <= pictures(download) < 24 * 8


def test_sound_goes_through_no_audio_graph_and_is_seen(opened: Open) -> None:
    with opened(COUNTERS) as page:
        start(page, 4)
        wait_until(page, f"{VIDEO}.ended", 60)
        assert page.evaluate("made.graphs") == 0
        seen = """(() => { const c = document.getElementById('spectrogram');
          const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
          return d.filter((v, i) => i % 4 < 3 && v > 60).length; })()"""
        assert page.evaluate(seen) > 100
        start(page, 2)  # another stream, whose tracks are new
        wait_until(page, f"{VIDEO}.currentTime > 1", 60)
        assert (
            page.evaluate("spectrogram.tapped.mediaStream.getAudioTracks()[0].readyState") == "live"
        )


def test_without_a_spectrogram_the_sound_still_plays(opened: Open) -> None:
    with opened("delete HTMLMediaElement.prototype.captureStream;") as page:
        start(page, 2)
        wait_until(page, f"{VIDEO}.ended", 60)
        assert not page.is_visible("#spectrogram")


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        ("delete window.MediaSource; delete window.ManagedMediaSource;", "has no MediaSource"),
        ("MediaSource.isTypeSupported = () => false;", "cannot play video/mp4"),
    ],
)
def test_a_browser_that_cannot_play_is_told_so(opened: Open, script: str, sentence: str) -> None:
    with opened(script) as page:
        start(page, 2)
        wait_until(
            page, f"document.getElementById('status').textContent.includes('{sentence}')", 60
        )
        assert "error" in (page.get_attribute("#status", "class") or "")


def test_a_managed_media_source_is_taken_where_it_is_the_only_one(opened: Open) -> None:
    script = "window.ManagedMediaSource = MediaSource; delete window.MediaSource;"
    with opened(script) as page:
        start(page, 2)
        wait_until(page, f"{VIDEO}.ended", 60)
        assert page.evaluate(f"{VIDEO}.disableRemotePlayback")


def test_the_stream_begins_at_zero_and_plays_without_edit_lists_too(opened: Open) -> None:
    for script, begin in (("", 0.0), (NO_EDIT_LISTS, 0.064)):
        with opened(script) as page:
            start(page, 2)
            wait_until(page, f"{VIDEO}.currentTime > 1", 60)
            assert page.evaluate(f"{VIDEO}.buffered.start(0)") == pytest.approx(begin, abs=1e-3)
            wait_until(page, f"{VIDEO}.ended", 60)


def test_a_stream_that_ends_before_its_player_has_found_the_beginning_plays(opened: Open) -> None:
    with opened(NO_EDIT_LISTS + SLOW_SEEK) as page:
        start(page, 2)
        wait_until(page, f"{VIDEO}.ended", 20)


def test_a_page_whose_timers_sleep_keeps_its_stream_going(opened: Open) -> None:
    """One that waited for a timer would wait a minute. (A busy machine may stall it shortly.)"""
    with opened(TIMERS_ONCE_A_MINUTE) as page:
        start(page, 12)
        wait_until(page, f"{VIDEO}.ended", 50)


def test_a_pause_is_no_stall(opened: Open) -> None:
    with opened() as page:
        start(page, 30)
        wait_until(page, f"{VIDEO}.currentTime > 1", 60)
        page.click("#pause")
        wait_until(page, "session.ahead() < 0.1", 30)
        page.wait_for_timeout(500)
        page.click("#pause")
        at = page.evaluate(f"{VIDEO}.currentTime")
        wait_until(page, f"{VIDEO}.currentTime > {at + 2}", 30)
        assert page.evaluate("session.stalls") == 0


def test_frames_that_a_hidden_page_drops_are_not_counted(opened: Open) -> None:
    """The player's own count goes up while nobody sees it, and later while somebody does."""
    script = """
      window.count = 0; window.away = false;
      HTMLVideoElement.prototype.getVideoPlaybackQuality = () => ({ droppedVideoFrames: count });
      Object.defineProperty(document, "hidden", { get: () => away });
    """
    turn = "document.dispatchEvent(new Event('visibilitychange'))"
    with opened(script) as page:
        start(page, 30)
        wait_until(page, f"{VIDEO}.currentTime > 1", 60)
        page.evaluate(f"away = true; {turn}; count = 500")
        page.wait_for_timeout(600)
        page.evaluate(f"count = 900; away = false; {turn}")
        page.wait_for_timeout(600)
        page.evaluate("count = 903")
        wait_until(page, "document.getElementById('dropped').textContent !== '0'", 10)
        assert page.inner_text("#dropped") == "3"
