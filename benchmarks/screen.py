"""Tabs of browsers on a virtual screen, under the names of Playwright, which drives Chromium alone.

Pictures are taken of the screen, as a person sees it.
"""

from __future__ import annotations

import io
import os
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


class Tab(ABC):
    """The few calls that the benchmarks and tests of the page need.

    Args:
        display: the virtual screen that the tab is on.
    """

    def __init__(self, display: str) -> None:
        self._display = display

    @abstractmethod
    def goto(self, address: str) -> None:
        """Open an address and wait until it is loaded."""

    @abstractmethod
    def evaluate(self, expression: str) -> Any:
        """Value of a JavaScript expression, which must be plain JSON."""

    @abstractmethod
    def origin(self) -> tuple[float, float]:
        """Where the page begins on the screen, in pixels."""

    def fill(self, selector: str, value: str) -> None:
        """Write a value into a field of the form."""
        self.evaluate(f"document.querySelector({selector!r}).value = {value!r}")

    def click(self, selector: str) -> None:
        """Click an element."""
        self.evaluate(f"document.querySelector({selector!r}).click()")

    def inner_text(self, selector: str) -> str:
        """Text of an element."""
        return str(self.evaluate(f"document.querySelector({selector!r}).innerText"))

    def wait_for_timeout(self, milliseconds: float) -> None:
        """Do nothing for a while."""
        time.sleep(milliseconds / 1e3)

    def locator(self, selector: str) -> Element:
        """Element that a selector names."""
        return Element(self, selector)

    def screenshot(self, left: float, top: float, right: float, bottom: float) -> bytes:
        """Picture of a part of the screen as PNG."""
        return grab(self._display, left, top, right, bottom)


def grab(display: str, left: float, top: float, right: float, bottom: float) -> bytes:
    """Picture of a part of a screen as PNG."""
    from PIL import ImageGrab

    picture, file = ImageGrab.grab(xdisplay=display), io.BytesIO()
    picture.crop((round(left), round(top), round(right), round(bottom))).save(file, "png")
    return file.getvalue()


@dataclass(frozen=True)
class Element:
    """An element of a page, named by a CSS selector."""

    page: Tab
    selector: str

    def screenshot(self) -> bytes:
        """Picture of the element as PNG."""
        sides = self.page.evaluate(
            "(e => { e.scrollIntoView(); const { left, top, right, bottom } ="
            " e.getBoundingClientRect(); return [left, top, right, bottom] })"
            f"(document.querySelector({self.selector!r}))"
        )
        left, top = self.page.origin()
        time.sleep(1)  # the screen shows what was scrolled to
        sides = [side + (top if index % 2 else left) for index, side in enumerate(sides)]
        return self.page.screenshot(*sides)


@contextmanager
def virtual_screen() -> Iterator[str]:
    """Start an X server that shows its screen nowhere; gives its display."""
    read, write = os.pipe()
    server = subprocess.Popen(
        ["Xvfb", "-displayfd", str(write), "-screen", "0", "1600x1200x24"],
        stderr=subprocess.DEVNULL,
        pass_fds=[write],
    )
    os.close(write)
    try:
        with os.fdopen(read) as answer:
            yield f":{answer.readline().strip()}"
    finally:
        server.terminate()
        server.wait()
