"""The parent's side: starts a process per part, keeps its time, adds rows that it cannot send."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from threading import Thread
from typing import Any

from benchmarks.gpu.child import PARTS
from benchmarks.gpu.rows import FAILED, STOPPED, Results, Row
from benchmarks.gpu.settings import PartSettings
from omniforcing.core.config import project_root

START = 240.0  # seconds that a process may import for, until it names its measurements
GRACE = 10.0  # seconds by which a measurement may overrun the part's time


def run(results: Results, names: list[str], minutes: float, device: str, small: bool) -> None:
    """Run parts within ``minutes``.

    Each part gets its share of the time that is left, so the later ones have what an earlier one
    saves. A part that is complete is left out.
    """
    end = time.time() + 60 * minutes
    names = [name for name in names if not results.complete(name)]
    for index, name in enumerate(names):
        shares = [PARTS[later].share for later in names[index:]]
        left = max(0.0, end - time.time())
        settings = PartSettings(device, small, time.time() + left * shares[0] / sum(shares))
        run_part(results, name, PARTS[name].module, settings)


def run_part(results: Results, part: str, module: str, settings: PartSettings) -> None:
    """Run one part; after a crash or a hang, go on with its other measurements in a new process."""
    tried = results.done(part)
    while True:
        earlier: dict[str, dict[str, Any]] = {}
        for row in results.rows:
            earlier.setdefault(row.part, {})[row.name] = row.figures
        with _child(part, module, replace(settings, earlier=earlier), tried) as child:
            if _attend(results, part, settings, child, tried):
                return


def _attend(
    results: Results, part: str, settings: PartSettings, child: _Child, tried: set[str]
) -> bool:
    """Take a child's rows until it ends or is silent for too long; return whether the part is over.

    Args:
        results: where rows are added.
        part: its name.
        settings: of the part.
        child: the process.
        tried: names of measurements that are not run again; grows.
    """
    names: list[str] | None = None  # None: not told yet
    current: str | None = None  # the measurement that is running
    last = settings.deadline + GRACE
    until = min(time.time() + START, last)
    while (message := child.next_message(until - time.time())) is not None:
        if "names" in message:
            names = results.measurements[part] = message["names"]
        elif "begin" in message:
            current, limit = message["begin"], message["limit"]
            until = min(time.time() + (limit or float("inf")), last)
        elif "row" in message:
            row = Row(**message["row"])
            results.add(row)
            tried.add(row.name)
            current = None
            until = min(time.time() + START, last)
    over = time.time() >= settings.deadline
    code = child.exit_code
    if code == 0 and current is None:
        return True
    state = STOPPED if over else FAILED
    if current is None and names is None:
        why = _explain_end(code, "before its first measurement", over)
        results.add(Row(part, part, state, why=why))
        return True
    if current is not None:
        why = _explain_end(code, "in this measurement", over)
        results.add(Row(part, current, state, why=why))
        tried.add(current)
    left = [name for name in names or () if name not in tried]
    if over:
        for name in left:
            results.add(Row(part, name, STOPPED, why="not reached: the part's time was up"))
    return over or not left


def _explain_end(code: int | None, where: str, over: bool) -> str:
    """Say in one sentence how a process ended that sent no row; ``code`` None: it still runs."""
    if code is None and over:
        return f"stopped {where}: the part's time was up"
    if code is None:
        return f"gave no answer {where} in its time and was killed"
    if code < 0:
        reason = f"its process died of {signal.Signals(-code).name} {where}"
    else:
        reason = f"its process ended with exit code {code} {where}"
    return f"{reason}; the lines above the table say more"


class _Child:
    """A part's process and the messages that it sends."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self._messages: queue.Queue[dict[str, Any] | None] = queue.Queue()
        Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._messages.put(json.loads(line))
        self._messages.put(None)

    def next_message(self, seconds: float) -> dict[str, Any] | None:
        """Wait for a message; None if the process ends, or is silent for ``seconds``."""
        try:
            message = self._messages.get(timeout=max(0.0, seconds))
        except queue.Empty:
            return None
        if message is None:
            self.process.wait()
        return message

    @property
    def exit_code(self) -> int | None:
        """Exit code; None while the process runs."""
        return self.process.poll()


@contextmanager
def _child(part: str, module: str, settings: PartSettings, done: set[str]) -> Iterator[_Child]:
    """Start a part's process; end it, with all that it started, when the block ends."""
    options = ["--child", part, module, str(os.getpid()), "--done", json.dumps(sorted(done))]
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.gpu", *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=sys.stderr,
        text=True,
        cwd=project_root(),
        process_group=0,
    )
    try:
        assert process.stdin is not None
        process.stdin.write(settings.to_json())
        process.stdin.close()
        yield _Child(process)
    finally:
        if process.poll() is None:
            _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    """End a process group with SIGTERM, then with SIGKILL if it is still there."""
    for sent, patience in ((signal.SIGTERM, 3), (signal.SIGKILL, 20)):
        try:
            os.killpg(process.pid, sent)
            process.wait(patience)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
        return
