"""How long a newcomer waits: from an empty environment to a moving picture in the browser.

``python -m benchmarks.first_picture`` does what README's first block says, in a clone: an
environment, the installation, ``omniforcing demo``, and Start in a Chromium that is open already.
It prints the seconds of each and what was installed. ``--index ''`` leaves out PyTorch's own index
of CPU builds, ``--look FILE`` keeps a picture of the page. Says so where Chromium is missing, and
ends with 0.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.checkout import clone_checkout
from benchmarks.page import browsing, chromium_missing, start, wait_until
from omniforcing.core.config import project_root
from omniforcing.core.console import run_command
from omniforcing.core.errors import OmniForcingError

CPU_BUILDS = "https://download.pytorch.org/whl/cpu"
CLIP = 20  # seconds that are asked for
READY = "document.getElementById('go') && !document.getElementById('go').disabled"
MOVES = "document.getElementById('video').currentTime > 0"


class Watch:
    """Seconds of each step, printed as it ends."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def lap(self, step: str) -> float:
        """Print and return the seconds since the step before ended."""
        now = time.monotonic()
        seconds, self._began = now - self._began, now
        print(f"{step:52} {seconds:7.1f} s", flush=True)
        return seconds


def install(checkout: Path, environment: Path, index: str, watch: Watch) -> float:
    """Copy what git tracks to ``checkout``, make an environment and install the package in it.

    Returns:
        Seconds of environment and installation.
    """
    clone_checkout(project_root(), checkout)
    watch.lap("(a clone of the checkout)")
    run(sys.executable, "-m", "venv", str(environment))
    made = watch.lap("an empty environment")
    extra = ["--extra-index-url", index] if index else []
    pip = [str(environment / "bin" / "pip"), "install", "--quiet", "-c", "constraints.txt"]
    run(*pip, *extra, ".[serve]", folder=checkout)
    return made + watch.lap("pip install")


def run(*words: str, folder: Path | None = None) -> None:
    """Run a command, and say what it said if it fails."""
    done = subprocess.run(words, cwd=folder, env=_newcomers(), capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-2000:]
        raise OmniForcingError("benchmarks.command-failed", f"{' '.join(words)}: {said}")


def _newcomers() -> dict[str, str]:
    """The environment without what would lead to this checkout's modules."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


@contextmanager
def demo(environment: Path, folder: Path) -> Iterator[str]:
    """Start ``omniforcing demo`` on a free port; gives the page's address."""
    command = [str(environment / "bin" / "omniforcing"), "demo", "--port", "0", "--no-browser"]
    log = folder / "demo.log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            command, cwd=folder, env=_newcomers(), stdout=subprocess.PIPE, stderr=errors, text=True
        )
    assert process.stdout is not None
    try:
        found = re.search(r"http://\S+", process.stdout.readline())
        if not found:
            said = log.read_text().strip()[-2000:]
            raise OmniForcingError("benchmarks.command-failed", f"omniforcing demo: {said}")
        yield found[0]
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()


def installed(environment: Path) -> str:
    """Number of packages and megabytes of an environment."""
    libraries = next((environment / "lib").glob("python*/site-packages"))
    size = sum(path.stat().st_size for path in libraries.rglob("*") if path.is_file())
    return f"{len(list(libraries.glob('*.dist-info')))} packages, {size / 1e6:.0f} MB"


def measure(index: str, look: Path | None) -> None:
    """Install, show and print."""
    with tempfile.TemporaryDirectory() as name:
        folder, watch = Path(name), Watch()
        environment = folder / "environment"
        installing = install(folder / "omniforcing", environment, index, watch)
        print(f"({installed(environment)})")
        with browsing("about:blank", folder / "profile") as page:
            watch.lap("(an open browser)")
            with demo(environment, folder) as address:
                shown = watch.lap("omniforcing demo, until it listens")
                page.goto(address)
                wait_until(page, READY, 60)
                shown += watch.lap("the page")
                start(page, CLIP)
                wait_until(page, MOVES, 60)
                shown += watch.lap("Start, until the picture moves")
                if look:
                    page.screenshot(path=look)
    print(f"{'in all':52} {installing + shown:7.1f} s, {shown:.1f} of them not installation")


def main() -> None:
    """Parse the command line and measure."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--index", default=CPU_BUILDS, help="more packages are looked for here")
    options.add_argument("--look", type=Path, help="a picture of the page is written to this file")
    arguments = options.parse_args()
    if missing := chromium_missing():
        print(f"not measured: {', '.join(missing)} is not installed")
        return
    measure(arguments.index, arguments.look)


if __name__ == "__main__":
    sys.exit(run_command(main))
