"""A real Chromium plays a minute from the server and shows a change of the prompt.

OMNIFORCING_ARTIFACT names the artifact to play; without it a tiny untrained one
plays, whose pictures a prompt changes too.
OMNIFORCING_SCREENSHOT names a file for a picture of the page.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from omniforcing.core.files import write_manifest
from omniforcing.model.weights.student import load_model, save_model
from omniforcing.pocket.events import detect_video_events
from omniforcing.streaming.artifact import Artifact
from omniforcing.streaming.engine import Engine
from tests.support.realtime_client import RealtimeClient
from tests.support.serving import Server, server

pytestmark = [pytest.mark.chromium, pytest.mark.timeout(600)]
SECONDS, SWITCH_AT, SEED = 60, 20, 7
BEFORE, AFTER = "a red ball bounces high on the floor", "a blue ball bounces high on the floor"
FLAGS = [
    *(
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
    ),
    *("--disable-sync", "--autoplay-policy=no-user-gesture-required"),
]
# Every frame that the player shows: its time in the stream, and its picture.
RECORD = """() => {
  const video = document.getElementById("video"), canvas = new OffscreenCanvas(64, 64), shown = window.shown = [];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  (function next() {
    video.requestVideoFrameCallback((_, { mediaTime }) => {
      if (mediaTime > window.from) {
        context.drawImage(video, 0, 0, 64, 64);
        shown.push([mediaTime, btoa(String.fromCharCode(...context.getImageData(0, 0, 64, 64).data))]);
      }
      next();
    });
  })();
}"""


@pytest.fixture(scope="module")
def played(artifact: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if named := os.environ.get("OMNIFORCING_ARTIFACT"):
        return Path(named)
    # An untrained student hardly listens to its prompt; this copy does.
    folder = Path(shutil.copytree(artifact.folder, tmp_path_factory.mktemp("heedful") / "artifact"))
    model = load_model(folder, artifact.settings.sinks)
    with torch.no_grad():
        model.core.proj_out.weight.mul_(10)
        for name, weight in model.core.named_parameters():
            if name.endswith("attn2.to_out.0.weight"):
                weight.mul_(100)
    save_model(model, folder)
    write_manifest(folder)
    return folder


@pytest.fixture(scope="module")
def serving(played: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server(played, tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture
def page(serving: Server, tmp_path: Path) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium")
    assert chromium is not None, "install Debian's package chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch_persistent_context(
            tmp_path / "profile", executable_path=chromium, args=FLAGS
        )
        page = browser.new_page()
        problems: list[str] = []
        page.on(
            "console",
            lambda message: problems.append(message.text) if message.type == "error" else None,
        )
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(serving.address)
        yield page
        browser.close()
    assert [problem for problem in problems if "favicon" not in problem] == []


def wait_until(page: Any, expression: str, seconds: float) -> None:
    """Until a JavaScript expression is true.

    Polled from here, for the page's policy lets nothing be evaluated in it later.
    """
    for _ in range(int(seconds * 20)):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"not within {seconds} s: {expression}; {page.inner_text('#status')}")


def test_a_minute_plays_and_a_prompt_changed_on_the_way_is_seen(
    page: Any, serving: Server, played: Path
) -> None:
    page.fill("#prompt", BEFORE)
    page.fill("#seed", str(SEED))
    page.fill("#seconds", str(SECONDS))
    page.evaluate(f"window.from = {SWITCH_AT - 3}")
    page.evaluate(RECORD)
    page.click("#go")
    wait_until(page, f"document.getElementById('video').currentTime > {SWITCH_AT}", 120)
    page.fill("#prompt", AFTER)
    page.click("#go")
    wait_until(page, "document.querySelectorAll('#timeline li.applied').length === 2", 30)
    item = page.query_selector("#timeline li.applied[data-id='1']")
    block, seconds = (
        int(item.get_attribute("data-block")),
        float(item.get_attribute("data-seconds")),
    )
    wait_until(page, f"document.getElementById('video').currentTime > {seconds + 3}", 60)
    shown = page.evaluate("(() => { window.from = Infinity; return window.shown; })()")
    if target := os.environ.get("OMNIFORCING_SCREENSHOT"):
        page.screenshot(path=target, full_page=True)
    wait_until(page, "document.getElementById('video').ended", 120)

    state = page.evaluate(
        "(() => { const v = document.getElementById('video'), q = v.getVideoPlaybackQuality(); "
        "return [v.currentTime, v.error, q.droppedVideoFrames, q.totalVideoFrames, "
        "session.stalls]; })()"
    )
    print(
        "currentTime, error, dropped, total, stalls:",
        state,
        "switch at block",
        block,
        "from",
        seconds,
    )
    assert state[0] >= SECONDS and state[1] is None
    assert state[2] <= 0.01 * state[3], "frames were dropped"
    assert state[4] == serving.figure("omniforcing_stalls_total") <= 1
    assert seconds - SWITCH_AT < 3 + 1 + 1, (
        "the prompt came later than the lead, a block and the clicks explain"
    )
    check_pictures(shown, played, block)
    assert re.fullmatch(r"\d+\.\d\d s", page.inner_text("#ttfc")) and page.is_visible("#download")


def check_pictures(shown: list[tuple[float, str]], folder: Path, block: int) -> None:
    """What was shown is the stream of this seed without the switch before its block, and the one
    with it from there on.
    """
    engine = Engine(folder)
    plain, steered = (frames_of(engine, block, switched) for switched in (False, True))
    first = 1 + 24 * (block - 1)
    before, after, wrong = [], [], []
    for time, picture in shown:
        index, frame = round(time * 24), decoded(picture)
        if 0 < index < first:
            before.append(nearest(frame, [plain[index - 1], plain[index], plain[index + 1]]) == 1)
            wrong += [] if before[-1] else [index - first]
        elif (
            first + 8 <= index < len(plain) - 1
        ):  # in the frames of the block's first latent the change only begins
            after.append(
                nearest(
                    frame, [steered[index - 1], steered[index], steered[index + 1], plain[index]]
                )
                == 1
            )
            wrong += [] if after[-1] else [index - first]
    print(
        "frames compared:",
        len(before),
        "before,",
        len(after),
        "after; wrong, counted from the switch:",
        wrong,
    )
    assert len(before) > 48 and len(after) > 36
    # Where little moves, a picture that x264 and the browser have changed may be nearest to its
    # neighbour.
    assert np.mean(before) > 0.98, "before the switch, something else than the stream was shown"
    assert np.mean(after) > 0.98, (
        "the prompt is not seen in the block that it was said to begin with"
    )
    if engine.settings.preset == "pocket":
        late = np.stack([decoded(picture) for time, picture in shown if time * 24 > first + 24])
        early = np.stack([decoded(picture) for time, picture in shown if time * 24 < first])
        assert detect_video_events(early).colours == ["red"]
        assert detect_video_events(late).colours == ["blue"]


def frames_of(engine: Engine, block: int, switched: bool) -> np.ndarray:
    """Frames of the stream up to two blocks past the switch."""
    with engine.stream(BEFORE, block + 2, SEED) as stream:
        if switched:
            stream.steer(AFTER, at=block, rewrite=True)
        return np.concatenate([chunk.frames for chunk in stream])


def decoded(picture: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(picture), np.uint8).reshape(64, 64, 4)[..., :3]


def nearest(frame: np.ndarray, candidates: list[np.ndarray]) -> int:
    """Which picture it is, whatever x264 and the browser's colours did to it."""
    return int(
        np.argmin([np.square(frame.astype(float) - candidate).sum() for candidate in candidates])
    )


APPEND = """async ([data, mime]) => {
  const video = document.createElement("video"), source = new MediaSource();
  video.src = URL.createObjectURL(source);
  await new Promise(done => source.addEventListener("sourceopen", done, { once: true }));
  const buffer = source.addSourceBuffer(mime);
  // What cannot be played ends the update too, and the element's own error comes in its own time.
  const played = new Promise(done => buffer.onupdateend = () => {
    // A buffer of refused media is taken away, and then has no ranges to look at.
    if ([...source.sourceBuffers].includes(buffer) && buffer.buffered.length) done();
  });
  const refused = new Promise(done => video.onerror = done);
  buffer.appendBuffer(Uint8Array.from(atob(data), each => each.charCodeAt(0)));
  await Promise.race([played, refused]);
  return video.error ? video.error.message : buffer.buffered.end(0);
}"""


def test_the_second_wire_plays_where_its_mime_is_named(page: Any, serving: Server) -> None:
    """A player that names the picture alone must have asked for it alone."""
    heard = []
    for generate_sound in (True, False):
        with RealtimeClient(serving.address) as viewer:
            data = viewer.play(prompt=BEFORE, num_frames=49, generate_sound=generate_sound)
        heard.append((base64.b64encode(data).decode(), viewer.heard[0]["mime"]))
    for each in heard:
        assert page.evaluate(APPEND, each) == pytest.approx(49 / 24, abs=0.1)
    assert "does not match" in page.evaluate(APPEND, (heard[0][0], heard[1][1]))
