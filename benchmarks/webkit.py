"""WebKitGTK's MiniBrowser on a virtual screen, driven by W3C WebDriver, under Playwright's names.

Pictures are taken of the screen, as a person sees it.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.screen import Tab, virtual_screen

MINI_BROWSERS = tuple(Path("/usr/lib").glob("*/webkit2gtk-4.*/MiniBrowser"))


def missing() -> list[str]:
    """Debian's packages that are needed and not here."""
    programs = {"webkit2gtk-driver": "WebKitWebDriver", "xvfb": "Xvfb"}
    return [package for package, program in programs.items() if shutil.which(program) is None]


class Page(Tab):
    """One tab of MiniBrowser.

    Args:
        driver: address of WebKitWebDriver.
        display: the virtual screen that the window is on.
    """

    def __init__(self, driver: str, display: str) -> None:
        super().__init__(display)
        self._driver = driver
        options = {"binary": str(MINI_BROWSERS[0]), "args": ["--automation"]}
        wanted = {"capabilities": {"alwaysMatch": {"webkitgtk:browserOptions": options}}}
        self._session = self._send("POST", "/session", wanted)["sessionId"]
        self._call("POST", "/window/maximize", {})

    def _send(self, method: str, path: str, body: Any = None) -> Any:
        """Send a command of WebDriver and wait for its answer."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._driver + path, data, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            told = json.load(error)["value"]
            raise RuntimeError(f"WebKit refused {method} {path}: {told['message']}") from error

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        return self._send(method, f"/session/{self._session}{path}", body)

    def goto(self, address: str) -> None:
        """Open an address and wait until it is loaded."""
        self._call("POST", "/url", {"url": address})

    def evaluate(self, expression: str) -> Any:
        """Value of a JavaScript expression, which must be plain JSON."""
        script = {"script": f"return JSON.stringify({expression})", "args": []}
        return json.loads(self._call("POST", "/execute/sync", script) or "null")

    def click(self, selector: str) -> None:
        """Click an element as a person does."""
        found = self._call("POST", "/element", {"using": "css selector", "value": selector})
        self._call("POST", f"/element/{next(iter(found.values()))}/click", {})

    def origin(self) -> tuple[float, float]:
        """Where the page begins on the screen, in pixels: below the window's own bars."""
        left, top, bar = self.evaluate("[screenX, screenY, outerHeight - innerHeight]")
        return left, top + bar

    def close(self) -> None:
        """End the browser."""
        self._send("DELETE", f"/session/{self._session}")


@contextmanager
def browsing(address: str, profile: Path) -> Iterator[Page]:
    """Open a page in MiniBrowser on a virtual screen, with a home in the folder given."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = profile / "log.txt"
    with virtual_screen() as display, log.open("w") as output:
        driver = subprocess.Popen(
            ["WebKitWebDriver", f"--port={port}"],
            env={**os.environ, "DISPLAY": display, "HOME": str(profile)},
            stdout=output,
            stderr=output,
        )
        try:
            _wait_for(port, 60)
            page = Page(f"http://127.0.0.1:{port}", display)
            try:
                page.goto(address)
                yield page
            finally:
                page.close()
        finally:
            driver.terminate()
            driver.wait()


def _wait_for(port: int, seconds: float) -> None:
    """Wait until something listens on a port of this machine."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise AssertionError(f"WebKitWebDriver did not listen within {seconds} s")
