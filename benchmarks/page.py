"""Play a stream of known pictures and sound in browsers: colours, memory over an hour.

`python -m benchmarks.page [--hour SECONDS] [--no-colours]`. The server, its session, muxer and page
are those of `omniforcing serve`; only the student is replaced, by one that shows patches of colour.
Prints one line per patch, size and browser (wanted, shown on the screen, largest error), then the
memory of Chromium's processes on the way through SECONDS of the stream, whose player jumps forward
to the newest block as fast as blocks come, and how many Blobs the page has made. Says so where
Chromium or Firefox is missing, and goes on without.
"""

import argparse
import io
import math
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks import firefox, webkit
from omniforcing.core.console import run_command
from omniforcing.core.layout import FPS
from omniforcing.media.marking import Mark

PATCHES = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (40, 184, 72), (128, 128, 128))
SIZES = ((64, 64), (512, 768), (720, 1280))  # height, width
# A screen that is this many levels of 255 near has drawn the picture; seconds it is given for it.
CLOSE, SETTLES = 4, 10.0
EVENT = 0.5  # second of every second at which a flash and a beep begin
FLAGS = (
    "--no-sandbox",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
    "--force-color-profile=srgb",
)
# How pictures are drawn. Without a GPU Chromium converts them by libyuv, whose coefficients have 6
# bits: BT.709's blue, 2.11, is cut to 2, and (0, 0, 255) is shown as (1, 0, 243). With a GPU, or
# with software that stands for one, the same stream is exact to a level.
DRAWN_AS_BY_A_GPU = ("--use-angle=swiftshader", "--enable-unsafe-swiftshader")
DRAWN_WITHOUT = ("--disable-gpu",)
# Counts what the page makes of the kinds that may hold the stream in memory or delay its sound.
COUNTERS = """
window.made = { blobs: 0, bytes: 0, graphs: 0 };
window.Blob = class extends Blob {
  constructor(parts = [], ...rest) {
    super(parts, ...rest);
    made.blobs += 1; made.bytes += this.size;
  }
};
const graph = AudioContext.prototype.createMediaElementSource;
AudioContext.prototype.createMediaElementSource = function (...words) {
  made.graphs += 1;
  return graph.apply(this, words);
};
"""


def second_of_patches(height: int, width: int) -> np.ndarray:
    """One second of frames uint8 ``[24, H, W, 3]``: stripes of colour, noise above, flash below."""
    frames = np.zeros((FPS, height, width, 3), np.uint8)
    for index, colour in enumerate(PATCHES):
        frames[:, :, index * width // len(PATCHES) : (index + 1) * width // len(PATCHES)] = colour
    # Noise, so that a block has about as many bytes as one of a student.
    noise = np.random.default_rng(0).integers(0, 256, (FPS, height // 4, width, 1), np.uint8)
    frames[:, : height // 4] = noise
    frames[:, -height // 8 :] = 0
    begin = round(EVENT * FPS) - 1  # frame 0 of the stream stands before the first second
    frames[begin : begin + 3, -height // 8 :] = 255
    return frames


def second_of_sound(sample_rate: int) -> np.ndarray:
    """One second of samples float32 ``[2, N]``: a soft tone, and a beep of 60 ms at ``EVENT``."""
    times = np.arange(sample_rate) / sample_rate
    sound = 0.05 * np.sin(2 * np.pi * 440 * times)
    beep = (times >= EVENT) & (times < EVENT + 0.06)
    sound[beep] += 0.6 * np.sin(2 * np.pi * 3000 * (times[beep] - EVENT))
    return np.stack([sound, sound]).astype(np.float32)


HURRY = """setInterval(() => {
  const video = document.getElementById("video"), { buffered } = video;
  const newest = buffered.length ? buffered.end(buffered.length - 1) - 1 : 0;
  if (newest > video.currentTime + 2) video.currentTime = newest;
}, 100)"""


class PatchStream:
    """A stream of patches, as ``streaming.live.Stream`` brings one of a student."""

    def __init__(self, frames: np.ndarray, samples: np.ndarray, prompt: str, seconds: int) -> None:
        self._frames, self._samples, self._prompt = frames, samples, prompt
        self._blocks, self._index = seconds + 1, 0
        self._changed = threading.Condition()
        self._until, self._paused, self._closed = 0.0, False, False
        self.parts = SimpleNamespace(asked=time.perf_counter())  # what a session reads of them

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        from omniforcing.evaluation.speed import BlockTiming
        from omniforcing.streaming.live import Chunk

        index, rate = self._index, self._samples.shape[1]
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or (not self._paused and index - 1 < self._until)
            )
        if self._closed or index == self._blocks:
            raise StopIteration
        self._index += 1
        frames = self._frames if index else self._frames[:1]
        samples = self._samples if index else self._samples[:, :0]
        return Chunk(
            block=index,
            frames=frames,
            samples=samples,
            first_frame=1 + FPS * (index - 1) if index else 0,
            first_sample=max(0, rate * (index - 1)),
            timing=BlockTiming(len(frames), 0.001, 0.001, 0.01),
            prompt=self._prompt,
        )

    def steer(self, prompt: str, at: int | None = None, *_: Any) -> Future[Any]:
        """Follow another prompt, which changes nothing that is seen."""
        from omniforcing.streaming.steering import Applied

        self._prompt = prompt
        block = max(self._index, at or 0)
        done: Future[Any] = Future()
        done.set_result(Applied(block, float(max(0, block - 1))))
        return done

    def allow(self, until: float) -> None:
        """Bring no block that begins at or after ``until`` seconds."""
        with self._changed:
            self._until = until
            self._changed.notify_all()

    def pause(self) -> None:
        """Bring no further block until ``resume``."""
        self._paused = True

    def resume(self) -> None:
        """Undo ``pause``."""
        with self._changed:
            self._paused = False
            self._changed.notify_all()

    @property
    def paused(self) -> bool:
        """Whether ``pause`` holds."""
        return self._paused

    def close(self) -> None:
        """End the stream."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class PatchEngine:
    """Stands for ``streaming.engine.Engine`` in a server."""

    def __init__(self, height: int, width: int, sample_rate: int = 16_000) -> None:
        self.settings = SimpleNamespace(
            height=height,
            width=width,
            sample_rate=sample_rate,
            preset="patches",
            method="patches",
        )
        self.mark = Mark("patches", "0" * 64)
        self._frames = second_of_patches(height, width)
        self._samples = second_of_sound(sample_rate)

    def stream(self, prompt: str, seconds: float, *_: Any) -> PatchStream:
        """Open a stream of whole seconds."""
        return PatchStream(self._frames, self._samples, prompt, round(seconds))

    def block_at(self, seconds: float) -> int:
        """Index of the first block that begins at or after ``seconds``."""
        return 1 + math.ceil(seconds)

    def count_tokens(self, _: str) -> Any:
        """Take every prompt whole."""
        return SimpleNamespace(unknown=(), refuse_cut=lambda: None)


@contextmanager
def serving(engine: Any, beside: Any = None, **limits: Any) -> Iterator[str]:
    """Serve an engine, or two, in a thread of this process; gives the page's address."""
    import uvicorn

    from omniforcing.serving.app import build_app
    from omniforcing.serving.protocol.messages import Limits
    from omniforcing.serving.serve import listen
    from omniforcing.serving.service import Service

    with listen("127.0.0.1", 0) as listening:
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        limited = Limits(**{"seconds": 5000, **limits})
        service = Service(engine, limited, [address], beside=beside)
        server = uvicorn.Server(uvicorn.Config(build_app(service), log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield address
        finally:
            server.should_exit = True
            thread.join()


@contextmanager
def browsing(
    address: str, profile: Path, flags: Sequence[str] = DRAWN_WITHOUT, script: str = ""
) -> Iterator[Any]:
    """Open a page in Chromium; ``script`` runs in it before the page's own."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch_persistent_context(
            profile, executable_path=shutil.which("chromium"), args=[*FLAGS, *flags]
        )
        page = browser.new_page()
        page.add_init_script(script)
        page.goto(address)
        try:
            yield page
        finally:
            browser.close()


def wait_until(page: Any, expression: str, seconds: float) -> None:
    """Until a JavaScript expression is true.

    Polled from here, for the page's policy lets nothing be evaluated in it later.
    """
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if page.evaluate(expression):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"not within {seconds} s: {expression}; {page.inner_text('#status')}")


def shown_colours(page: Any, height: int, width: int) -> list[tuple[int, ...]]:
    """Colours of the patches on a screenshot of the video, which stands still."""
    from PIL import Image

    screen = np.asarray(Image.open(io.BytesIO(page.locator("#video").screenshot())).convert("RGB"))
    scale = min(screen.shape[0] / height, screen.shape[1] / width)
    left = (screen.shape[1] - scale * width) / 2
    row, count = screen.shape[0] // 2, len(PATCHES)
    columns = [int(left + scale * width * (index + 0.5) / count) for index in range(count)]
    return [tuple(int(v) for v in screen[row, column]) for column in columns]


@dataclass(frozen=True)
class Memory:
    """Resident megabytes of Chromium: of its renderers, and of all its processes."""

    renderers: float
    total: float


def memory_of(page: Any, profile: Path) -> Memory:
    """Measure the memory of the browser that uses a profile, after a collection of garbage."""
    page.context.new_cdp_session(page).send("HeapProfiler.collectGarbage")
    renderers = total = 0.0
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            words = (status.parent / "cmdline").read_bytes().decode(errors="replace")
            lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        except OSError:  # it has just ended
            continue
        if str(profile) in words and "VmRSS" in lines:
            resident = int(lines["VmRSS"].split()[0]) / 1e3
            total += resident
            renderers += resident if "--type=renderer" in words else 0
    return Memory(renderers, total)


def start(page: Any, seconds: int) -> None:
    """Fill in the form and start, once the page has the stream's shape: it moves until then."""
    wait_until(page, "document.getElementById('about').textContent !== ''", 60)
    page.fill("#seconds", str(seconds))
    page.click("#go")


def in_chromium(address: str, profile: Path) -> AbstractContextManager[Any]:
    """Open a page in a Chromium that draws as one with a GPU does."""
    return browsing(address, profile, DRAWN_AS_BY_A_GPU)


def chromium_missing() -> list[str]:
    """Debian's package of Chromium, if it is needed."""
    return [] if shutil.which("chromium") else ["chromium"]


BROWSERS = {
    "Chromium": (chromium_missing, in_chromium),
    "Firefox": (firefox.missing, firefox.browsing),
    "WebKitGTK": (webkit.missing, webkit.browsing),
}


def measure_colours(name: str) -> None:
    """Print the colour that a browser shows for each patch at each size."""
    missing, opened = BROWSERS[name]
    if missing():
        print(f"{name} skipped: install Debian's packages {', '.join(missing())}")
        return
    for height, width in SIZES:
        folder = Path(tempfile.mkdtemp(prefix="omniforcing-page-"))
        with serving(PatchEngine(height, width)) as address, opened(address, folder) as page:
            start(page, 4)
            wait_until(page, "document.getElementById('video').ended", 120)
            until = time.monotonic() + SETTLES
            while True:  # a busy machine draws late
                shown = shown_colours(page, height, width)
                errors = [int(error) for error in np.abs(np.subtract(PATCHES, shown)).max(1)]
                if max(errors) <= CLOSE or time.monotonic() > until:
                    break
                page.wait_for_timeout(200)
        shutil.rmtree(folder, ignore_errors=True)
        for wanted, found, error in zip(PATCHES, shown, errors, strict=True):
            words = f"wanted {wanted}, shown {found}, error {error}"
            print(f"{name} {width}x{height}: {words}", flush=True)


def measure_hour(seconds: int) -> None:
    """Print the memory on the way through ``seconds`` of a stream."""
    folder = Path(tempfile.mkdtemp(prefix="omniforcing-page-"))
    with (
        serving(PatchEngine(64, 64), lead_seconds=30) as address,
        browsing(address, folder, script=COUNTERS) as page,
    ):
        begun = time.monotonic()
        start(page, seconds)
        video = "document.getElementById('video')"
        wait_until(page, f"{video}.currentTime > 2", 60)
        page.evaluate(HURRY)
        parts = 6
        for part in range(parts + 1):
            at = 60 + part * (seconds - 70) / parts
            wait_until(page, f"{video}.currentTime > {at}", seconds)
            memory, made = memory_of(page, folder), page.evaluate("made")
            kept = page.evaluate("session.kept.size")
            waiting = "session.kept.blocks.reduce((n, { data }) => n + data.byteLength, 0)"
            inside = page.evaluate(waiting)
            buffered = page.evaluate(f"{video}.buffered.end(0) - {video}.buffered.start(0)")
            print(
                f"second {at:.0f}, after {time.monotonic() - begun:.0f} s: "
                f"renderers {memory.renderers:.0f} MB, all of Chromium "
                f"{memory.total:.0f} MB, kept for the download {kept / 1e6:.1f} MB, of that in "
                f"memory {inside / 1e6:.1f} MB, "
                f"buffered {buffered:.0f} s, Blobs made: {made['blobs']} of "
                f"{made['bytes'] / 1e6:.1f} MB",
                flush=True,
            )
    shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hour", type=int, default=3600, help="seconds of stream; 0: no such part")
    parser.add_argument(
        "--colours", action=argparse.BooleanOptionalAction, default=True, help="measure colours"
    )
    words = parser.parse_args()
    for name in BROWSERS if words.colours else ():
        measure_colours(name)
    if words.hour and not chromium_missing():
        measure_hour(words.hour)


if __name__ == "__main__":
    run_command(main)
