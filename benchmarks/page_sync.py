"""Record the sound of the page against the picture that Chromium shows, on PulseAudio's null sink.

`python -m benchmarks.page_sync [--sink NAME] [--seconds N]`, with a PulseAudio server that has the
sink (`pulseaudio -n --load="module-null-sink sink_name=virt" --load=module-native-protocol-unix`)
as its default; PULSE_LATENCY_MSEC=190 makes it a slow device. Prints the median and quartiles of
beep less flash in milliseconds for the page, and for the page without its spectrogram, which should
agree to a few milliseconds. Says why and ends with 0 where parec or chromium is missing.
"""

import argparse
import os
import shutil
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.page import EVENT, FLAGS, PatchEngine, serving, start, wait_until
from omniforcing.core.console import run_command

RATE = 48_000
NO_COPY = "delete HTMLMediaElement.prototype.captureStream;"
RECORD = """() => {
  const video = document.getElementById("video");
  window.seen = [];
  (function next() {
    video.requestVideoFrameCallback((_, { mediaTime, expectedDisplayTime }) => {
      seen.push([mediaTime, (performance.timeOrigin + expectedDisplayTime) / 1000]);
      next();
    });
  })();
}"""


class Recorder:
    """Records a sink's monitor; as a context manager it ends with the body."""

    def __init__(self, sink: str) -> None:
        self._command = [
            *("parec", "-d", f"{sink}.monitor", "--format=s16le", "--channels=1"),
            *(f"--rate={RATE}", "--latency-msec=10"),
        ]
        self._data, self._origin = bytearray(), np.inf

    def __enter__(self) -> "Recorder":
        # PULSE_LATENCY_MSEC gives the browser a slower device, and would slow the recorder too.
        own = {name: value for name, value in os.environ.items() if name != "PULSE_LATENCY_MSEC"}
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, env=own)
        self._thread = threading.Thread(target=self._read)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._thread.join()
        self._process.wait()

    def _read(self) -> None:
        assert self._process.stdout is not None
        while piece := self._process.stdout.read(RATE // 50):
            self._data += piece
            # What came with the least delay tells when the first sample was.
            begun = time.time() - len(self._data) / 2 / RATE
            self._origin = min(self._origin, begun)

    def beeps(self) -> np.ndarray:
        """Times at which a beep of 3 kHz began, in seconds of the system's clock."""
        sound = np.frombuffer(bytes(self._data), np.int16) / 32768
        if not len(sound):  # there is no such sink, or no PulseAudio
            return sound
        turned = sound * np.exp(-2j * np.pi * 3000 * np.arange(len(sound)) / RATE)
        loud = np.flatnonzero(np.abs(np.convolve(turned, np.ones(96) / 96, "same")) > 0.1)
        onsets = loud[np.insert(np.diff(loud) > RATE // 2, 0, True)] if len(loud) else loud
        return onsets / RATE + self._origin


def measure(sink: str, seconds: int, script: str) -> list[float]:
    """Milliseconds from each flash that was shown to its beep."""
    from playwright.sync_api import sync_playwright

    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,
        serving(PatchEngine(64, 64)) as address,
        sync_playwright() as playwright,
        Recorder(sink) as recorder,
    ):
        browser: Any = playwright.chromium.launch_persistent_context(
            Path(profile),
            executable_path=shutil.which("chromium"),
            args=[*FLAGS, "--disable-gpu"],
            ignore_default_args=["--mute-audio"],
        )
        page = browser.new_page()
        page.add_init_script(script)
        page.goto(address)
        page.evaluate(RECORD)
        start(page, seconds)
        wait_until(page, "document.getElementById('video').ended", 10 * seconds)
        seen = page.evaluate("seen")
        browser.close()
    beeps = recorder.beeps()
    flashes = [at for place, at in seen if abs(place % 1 - EVENT) < 0.02]
    offsets = [1000 * (beeps - at) for at in flashes] if len(beeps) else []
    nearest = [float(each[np.argmin(np.abs(each))]) for each in offsets]
    return [offset for offset in nearest if abs(offset) < 450]


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sink", default="virt", help="PulseAudio's name of the sink")
    parser.add_argument("--seconds", type=int, default=24, help="length of each stream")
    words = parser.parse_args()
    for program in ("parec", "chromium"):
        if shutil.which(program) is None:
            print(f"skipped: there is no {program} here")
            return
    for name, script in (("the page", ""), ("without a spectrogram", NO_COPY)):
        offsets = measure(words.sink, words.seconds, script)
        if not offsets:
            asked = "is PulseAudio there, and that its default sink?"
            print(f"{name}: nothing was heard on {words.sink}; {asked}")
            continue
        low, middle, high = np.percentile(offsets, [25, 50, 75])
        print(f"{name}: {middle:.0f} ms ({low:.0f} to {high:.0f}), {len(offsets)} events")


if __name__ == "__main__":
    run_command(main)
