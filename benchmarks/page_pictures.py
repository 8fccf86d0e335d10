"""Make the pictures of the page in docs/pictures: streams of the kept student, being steered.

``python -m benchmarks.page_pictures docs/pictures [--look FOLDER]`` writes ``page.webp``, a desktop
on which the student streams beside the teacher, and ``page-phone.webp``. ``--look`` writes the page
in more sizes, light and dark, to look at. Says so where Chromium is missing, and ends with 0.
"""

from __future__ import annotations

import argparse
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.page import DRAWN_WITHOUT, FLAGS, chromium_missing, serving, wait_until
from omniforcing.core.console import run_command

VIDEO = "document.getElementById('video')"
BESIDE = "document.getElementById('video-beside')"
PLAN = (("20", "a yellow ball bounces low on the floor"), ("30", "a green ball bounces high"))
FIRST, STEERED = "a red ball bounces high on the floor", "a blue ball bounces high on the floor"
QUALITY = 85  # of WebP, at which letters stay sharp


@dataclass(frozen=True)
class Shot:
    """A picture of the page.

    Attributes:
        name: of the file.
        size: of the window, width and height.
        scheme: ``light`` or ``dark``.
        scale: pixels of the picture per pixel of the page.
        whole: whether what must be scrolled to is on it.
        full: whether the players fill the screen.
    """

    name: str
    size: tuple[int, int]
    scheme: str
    scale: float = 1.0
    whole: bool = False
    full: bool = False


DESKTOP = Shot("page", (1280, 960), "light")
PHONE = Shot("page-phone", (390, 844), "dark", scale=2)
LOOKS = (
    Shot("desktop-dark", (1280, 880), "dark", whole=True),
    Shot("phone-light", (390, 844), "light", whole=True),
    Shot("projector", (1920, 1080), "dark"),
    Shot("full-screen", (1920, 1080), "dark", full=True),
)


def take(browser: Any, address: str, shot: Shot, target: Path) -> None:
    """Stream, plan two steps, steer, and write the picture of a page that shows the new prompt."""
    width, height = shot.size
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme=shot.scheme,
        device_scale_factor=shot.scale,
    )
    page = context.new_page()
    page.goto(address)
    for second, prompt in PLAN:
        page.fill("#prompt", prompt)
        page.fill("#at", second)
        page.click("#plan")
    page.fill("#prompt", FIRST)
    page.fill("#seed", "1")
    page.click("#go")
    wait_until(page, f"{VIDEO}.currentTime > 5", 120)
    page.fill("#prompt", STEERED)
    page.click("#go")
    page.focus("#prompt")
    steered = "timeline.playing?.id > 0"
    wait_until(page, f"{steered} && {VIDEO}.currentTime > timeline.playing.order + 2", 120)
    wait_until(page, f"!{BESIDE} || {BESIDE}.currentTime > 1", 240)
    if shot.full:
        page.click("#full")
        page.wait_for_timeout(500)
    page.evaluate("scrollTo(0, 0)")
    picture = page.screenshot(full_page=shot.whole, caret="initial")
    file = target / f"{shot.name}.webp"
    Image.open(io.BytesIO(picture)).convert("RGB").save(file, quality=QUALITY, method=6)
    print(f"{file}: {file.stat().st_size:,} bytes")
    context.close()


def make(folder: Path, look: Path | None) -> None:
    """Make the pictures of the documents, or those to look at."""
    import shutil

    from playwright.sync_api import sync_playwright

    from omniforcing.serving.offline.teacher import OfflineTeacher
    from omniforcing.streaming.artifact import Artifact
    from omniforcing.streaming.engine import Engine

    if chromium_missing():
        print("skipped: install Debian's package chromium")
        return
    target = folder if look is None else look
    target.mkdir(parents=True, exist_ok=True)
    student, teacher = Engine(Artifact.kept()), OfflineTeacher()
    flags = [*FLAGS, *DRAWN_WITHOUT]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
        for beside in (teacher, None):
            with serving(student, beside=beside) as address:
                for shot in LOOKS if look else (DESKTOP if beside else PHONE,):
                    named = Shot(**{**vars(shot), "name": f"{shot.name}{'-two' if beside else ''}"})
                    take(browser, address, named if look else shot, target)
        browser.close()


def main() -> None:
    """Parse the command line and make the pictures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where the documents' pictures lie")
    parser.add_argument("--look", type=Path, help="write more pictures here instead")
    words = parser.parse_args()
    make(words.folder, words.look)


if __name__ == "__main__":
    run_command(main)
