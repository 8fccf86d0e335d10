"""What a person does on the page, in a real Chromium: two streams, timeline, keyboard, phone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import firefox
from benchmarks.page import DRAWN_WITHOUT, FLAGS, PatchEngine, serving, start, wait_until

pytestmark = [pytest.mark.chromium, pytest.mark.timeout(300)]
VIDEO = "document.getElementById('video')"
BESIDE = "document.getElementById('video-beside')"
# As a browser that hands files to other programs, or refuses to.
SHARING = """
window.shared = [];
navigator.canShare = ({ files }) => files.length === 1;
navigator.share = async (what) => {
  shared.push(what);
  if (window.refusal) throw new DOMException("not now", window.refusal);
};
"""
NAMELESS = """[...document.querySelectorAll("button, input, textarea, video, canvas")]
  .filter((e) => e.type !== "file" && !e.getAttribute("aria-label") && !e.labels?.length
    && !e.textContent.trim()).map((e) => e.outerHTML)"""
# As if every message of the server were on its way for long.
LATE = """(() => {
  const { set } = Object.getOwnPropertyDescriptor(WebSocket.prototype, "onmessage");
  Object.defineProperty(WebSocket.prototype, "onmessage", {
    set(hear) { set.call(this, (event) => setTimeout(() => hear(event), 1000)); } });
})()"""
PLAYED = "document.querySelector('#timeline li[aria-current=step] .what')?.textContent"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with serving(PatchEngine(64, 64), beside=PatchEngine(64, 96)) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium")
    assert chromium is not None, "install Debian's package chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=[*FLAGS, *DRAWN_WITHOUT]
        )
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """The page in a window of its own, which must meet no fault of a script."""
    context = browser.new_context()
    page, problems = context.new_page(), []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda line: problems.append(line.text) if line.type == "error" else None)
    show(page, address)
    yield page
    context.close()
    assert problems == []


def show(page: Any, address: str) -> None:
    page.goto(address)
    wait_until(page, "panes.length === 2", 10)


def sent_by(page: Any, passed_over: str = "position") -> list[dict[str, Any]]:
    """What the page sends from now on, but for one kind of message."""
    messages: list[dict[str, Any]] = []

    def note(frame: Any) -> None:
        message = json.loads(frame)
        if message["type"] != passed_over:
            messages.append(message)

    page.on("websocket", lambda socket: socket.on("framesent", note))
    return messages


def test_two_streams_play_from_one_prompt_and_seed_and_one_is_heard(page: Any) -> None:
    messages = sent_by(page)
    page.fill("#seed", "7")
    start(page, 60)
    wait_until(page, f"{VIDEO}.currentTime > 1 && {BESIDE}.currentTime > 1", 30)
    assert page.evaluate(f"[{VIDEO}.muted, {BESIDE}.muted]") == [False, True]
    page.check("#hear-beside")
    assert page.evaluate(f"[{VIDEO}.muted, {BESIDE}.muted]") == [True, False]
    heard = "spectrogram.tapped.mediaStream.getAudioTracks()[0].id"
    beside = f"spectrogram.copies.get({BESIDE}).getAudioTracks()[0].id"
    assert page.evaluate(heard) == page.evaluate(beside)
    page.click("#mute")
    assert page.evaluate(f"[{VIDEO}.muted, {BESIDE}.muted]") == [True, True]
    page.fill("#prompt", "another")
    page.click("#go")
    steered = "['steer', 'steer-beside'].map((id) => document.getElementById(id).textContent)"
    wait_until(page, f"{steered}.every((text) => text.endsWith(' s'))", 20)
    page.click("#stop")
    wait_until(page, "document.getElementById('go').textContent === 'Start'", 20)
    begun = [message for message in messages if message["type"] == "start"]
    assert begun[0] == begun[1] and begun[0]["seed"] == 7 and len(begun) == 2
    assert [m["prompt"] for m in messages if m["type"] == "prompt"] == ["another", "another"]
    for end in ("", "-beside"):
        assert float(page.inner_text(f"#ttfc{end}").removesuffix(" s")) > 0
        assert page.inner_text(f"#block{end}") == "0.00 s"
    with page.expect_download() as download:  # of the stream that is heard
        page.click("#download")
    size = Path(download.value.path()).stat().st_size
    assert size == page.evaluate("panes[1].session.kept.size")
    assert page.evaluate(f"{BESIDE}.videoWidth") == 96


def test_steps_are_planned_edited_and_removed_by_keyboard_and_come_at_their_second(
    page: Any,
) -> None:
    messages, press = sent_by(page), page.keyboard.press
    page.focus("#prompt")
    for second, prompt in (("9", "gone"), ("6", "second"), ("40", "third")):
        page.fill("#prompt", prompt)
        page.fill("#at", second)
        page.focus("#plan")
        press("Enter")
        assert page.inner_text("#spoken") == f"planned at {second} s: {prompt}"
    seconds = "[...document.querySelectorAll('#timeline .at')].map(({ value }) => Number(value))"
    assert page.evaluate(seconds) == [6, 9, 40]
    page.focus("#timeline li:nth-child(2) .remove")
    press("Enter")
    assert page.evaluate(seconds) == [6, 40] and page.inner_text("#spoken") == "removed: gone"
    focused = "document.activeElement.getAttribute('aria-label')"
    assert page.evaluate(focused) == "Remove: at 40 s, third"
    press("Shift+Tab")
    page.keyboard.type("fourth")  # what has the focus is selected, as a field reached by Tab is
    press("Shift+Tab")
    page.keyboard.type("5")  # later than the server makes at once
    press("Enter")
    assert page.evaluate(seconds) == [5, 6]
    assert page.evaluate("document.activeElement.value") == "5", "the focus moves with its step"
    page.fill("#prompt", "first")
    start(page, 30)
    wait_until(page, f"{PLAYED} === 'first'", 20)
    wait_until(page, f"{PLAYED} === 'fourth'", 20)
    wait_until(page, f"{PLAYED} === 'second'", 20)
    assert page.evaluate(f"{VIDEO}.currentTime") >= 5.95  # a frame or so before the step itself
    assert page.inner_text("#spoken") == "plays now: second"
    assert page.get_attribute("#timeline li:nth-child(3)", "data-seconds") == "6"
    asked = [(m["prompt"], m["at"]) for m in messages if m["type"] == "prompt"]
    assert sorted(asked) == sorted(2 * [("fourth", 5), ("second", 6)])
    page.click("#stop")
    wait_until(page, "document.getElementById('go').textContent === 'Start'", 10)
    start(page, 1)  # another stream has the same plan
    assert page.evaluate("timeline.steps.map(({ prompt }) => prompt)") == [
        "first",
        "fourth",
        "second",
    ]


def test_a_start_that_is_refused_says_why_and_may_be_tried_again(page: Any) -> None:
    page.fill("#seed", "1" + 20 * "0")
    page.click("#go")
    wait_until(page, "document.querySelectorAll('.status.error').length === 2", 10)
    assert "too large a number" in page.inner_text("#status")
    wait_until(page, "document.getElementById('go').textContent === 'Start'", 10)
    page.fill("#seed", "1")
    page.click("#go")
    page.fill("#prompt", "asked for before the stream is open")
    page.click("#go")
    wait_until(page, "document.querySelectorAll('#timeline li.applied').length === 2", 20)
    wait_until(page, "timeline.steps[1].from.size === 2", 10)


def test_the_players_fill_the_screen(page: Any) -> None:
    page.fill("#prompt", "what is seen")
    start(page, 10)
    page.click("#full")
    wait_until(page, "document.fullscreenElement?.id === 'stage'", 10)
    wait_until(page, "document.getElementById('caption').textContent === 'what is seen'", 20)
    assert page.is_visible("#caption")
    box, seen = page.locator("#stage").bounding_box(), page.locator("#spectrogram").bounding_box()
    size = page.evaluate("[innerWidth, innerHeight]")
    assert [box["width"], box["height"]] == size and seen["y"] + seen["height"] <= size[1]
    page.evaluate("document.exitFullscreen()")
    wait_until(page, "document.activeElement.id === 'full'", 10)


def test_a_clip_is_shared_where_the_system_can_and_saved_where_it_does_not(
    page: Any, address: str
) -> None:
    start(page, 1)
    wait_until(page, f"{VIDEO}.ended", 30)
    assert page.is_visible("#download") and not page.is_visible("#share")
    page.add_init_script(SHARING)
    show(page, address)
    start(page, 1)
    wait_until(page, f"{VIDEO}.ended", 30)
    page.click("#share")
    wait_until(page, "shared.length === 1", 10)
    shared = page.evaluate("[shared[0].files[0].name, shared[0].files[0].type]")
    assert shared == ["stream.mp4", "video/mp4"]
    assert page.evaluate("shared[0].files[0].size === session.kept.size")
    page.evaluate("window.refusal = 'NotAllowedError'")
    with page.expect_download():
        page.click("#share")


@pytest.mark.parametrize("size", [(390, 844), (320, 640), (1280, 720), (1920, 1080)])
def test_the_page_fits_phones_and_projectors(page: Any, size: tuple[int, int]) -> None:
    width, height = size
    page.set_viewport_size({"width": width, "height": height})
    page.fill("#prompt", "a prompt of some length, as they are " * 3)
    page.click("#plan")
    assert page.evaluate("document.documentElement.scrollWidth") == width, "it scrolls sideways"
    assert page.locator("#go").bounding_box()["y"] + 44 <= height, "Start is not on the screen"
    small = page.evaluate(
        "[...document.querySelectorAll('button')].filter((e) => e.offsetHeight"
        " && e.offsetHeight < 44).map((e) => e.outerHTML)"
    )
    assert small == []


def test_everything_has_a_name_and_a_visible_focus_in_light_and_dark(page: Any) -> None:
    page.click("#plan")
    assert page.evaluate(NAMELESS) == []
    reached = []
    page.focus("body")
    for _ in range(30):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.type"))
        if reached[-1]:
            assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
    wanted = ("video", "hear", "mute", "full", "prompt", "go", "rewrite", "seed", "drop", "plan")
    assert set(wanted) <= set(reached)
    backgrounds = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        backgrounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert backgrounds == ["rgb(245, 246, 248)", "rgb(20, 23, 28)"]


def test_a_first_frame_is_shown_and_taken_back(page: Any) -> None:
    png = Path(__file__).parents[2] / "docs/pictures/stream.png"
    page.set_input_files("#file", str(png))
    wait_until(page, "document.getElementById('preview').naturalWidth > 0", 10)
    assert page.inner_text("#dropped-name") == "First frame: stream.png"
    page.click("#forget")
    assert not page.is_visible("#preview")
    assert page.evaluate("document.activeElement.id") == "drop"


@pytest.mark.skipif(bool(firefox.missing()), reason=f"needs {firefox.missing()} of Debian")
def test_firefox_plays_both_and_comes_to_a_planned_step(address: str, tmp_path: Path) -> None:
    with firefox.browsing(address, tmp_path) as page:
        wait_until(page, "panes.length === 2", 10)
        page.evaluate("timeline.plan({ prompt: 'second', at: 2, rewrite: true })")
        start(page, 4)
        wait_until(page, f"{PLAYED} === 'second'", 60)
        wait_until(page, f"{VIDEO}.ended && {BESIDE}.ended", 60)


def test_nothing_is_sent_before_the_stream_is_asked_for(page: Any) -> None:
    """The clock of a page runs while its connection is open and the server has said nothing yet."""
    messages = sent_by(page, passed_over="")
    page.evaluate(LATE)
    start(page, 20)
    wait_until(page, f"{VIDEO}.currentTime > 0.5", 30)
    assert [message["type"] for message in messages[:2]] == ["start", "start"]
    assert not page.evaluate("session.failed")
