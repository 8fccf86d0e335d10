"""Firefox on a virtual screen, driven by WebDriver BiDi, the W3C protocol that it speaks itself.

The few calls that the benchmarks of the page need, under Playwright's names: Playwright drives
Chromium as Debian builds it, but of Firefox only a build of its own. Pictures are taken of the
screen: those that BiDi takes are painted anew, and videos in them by coefficients of 6 bits.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.screen import Tab, virtual_screen

# A fresh profile asks nothing, calls nobody, plays sound unasked, and shows colours as a screen of
# sRGB does.
PREFERENCES = {
    "media.autoplay.default": 0,
    "gfx.color_management.mode": 0,
    "browser.shell.checkDefaultBrowser": False,
    "browser.aboutwelcome.enabled": False,
    "datareporting.policy.dataSubmissionEnabled": False,
    "app.update.enabled": False,
    "app.normandy.enabled": False,
    "app.shield.optoutstudies.enabled": False,
    "extensions.getAddons.cache.enabled": False,
    "messaging-system.rsexperimentloader.enabled": False,
    "nimbus.rollouts.enabled": False,
    "services.settings.server": "data:,#no-server",
    "toolkit.telemetry.enabled": False,
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
}


def missing() -> list[str]:
    """Debian's packages that are needed and not here."""
    programs = {"firefox-esr": "firefox-esr", "xvfb": "Xvfb"}
    return [package for package, program in programs.items() if shutil.which(program) is None]


class Page(Tab):
    """One tab of Firefox.

    Args:
        socket: connection to Firefox's BiDi session.
        display: the virtual screen that the tab fills.
    """

    def __init__(self, socket: Any, display: str) -> None:
        super().__init__(display)
        self._socket, self._count = socket, 0
        self._send("session.new", capabilities={})
        tree = self._send("browsingContext.getTree")
        self._tab = tree["contexts"][0]["context"]

    def _send(self, method: str, **parameters: Any) -> Any:
        """Call a method of the protocol and wait for its answer."""
        self._count += 1
        self._socket.send(json.dumps({"id": self._count, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self._socket.recv(timeout=120))
            if answer.get("id") == self._count:
                if answer["type"] == "error":
                    raise RuntimeError(f"Firefox refused {method}: {answer['message']}")
                return answer["result"]

    def goto(self, address: str) -> None:
        """Open an address and wait until it is loaded."""
        self._send("browsingContext.navigate", context=self._tab, url=address, wait="complete")

    def evaluate(self, expression: str) -> Any:
        """Value of a JavaScript expression, which must be plain JSON."""
        answer = self._send(
            "script.evaluate",
            expression=f"JSON.stringify({expression})",
            target={"context": self._tab},
            awaitPromise=True,
            userActivation=True,
        )
        if answer["type"] == "exception":
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']['text']}")
        return json.loads(answer["result"].get("value", "null"))

    def origin(self) -> tuple[float, float]:
        """Where the tab begins on the screen, whose pixels are the page's."""
        left, top = self.evaluate("[window.mozInnerScreenX, window.mozInnerScreenY]")
        return left, top


@contextmanager
def browsing(address: str, profile: Path) -> Iterator[Page]:
    """Open a page in Firefox, on a virtual screen, under a fresh profile in the folder given."""
    from websockets.sync.client import connect

    lines = [f'user_pref("{name}", {json.dumps(value)});' for name, value in PREFERENCES.items()]
    (profile / "user.js").write_text("\n".join(lines))
    log = profile / "log.txt"
    command = ["firefox-esr", "--kiosk", "--no-remote", "--remote-debugging-port=0"]
    with virtual_screen() as display, log.open("w") as output:
        firefox = subprocess.Popen(
            [*command, "--profile", profile],
            env={**os.environ, "DISPLAY": display},
            stdout=output,
            stderr=output,
        )
        try:
            socket = connect(f"{_listening(log, 120)}/session", max_size=None, open_timeout=60)
            with socket:
                page = Page(socket, display)
                page.goto(address)
                yield page
        finally:
            firefox.terminate()
            firefox.wait()


def _listening(log: Path, seconds: float) -> str:
    """Address of the websocket, which Firefox writes to its log."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found = re.search(r"WebDriver BiDi listening on (ws://\S+)", log.read_text())
        if found:
            return found[1]
        time.sleep(0.1)
    raise AssertionError(f"Firefox did not listen within {seconds} s: {log.read_text()}")
