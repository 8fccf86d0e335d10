"""The parent's side: a process per part, its time, and a row for whatever a process leaves unsaid."""

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

from benchmarks.gpu.part import PARTS
from benchmarks.gpu.rows import FAILED, STOPPED, Results, Row
from benchmarks.gpu.setup import Setup, python_command
from omniforcing.core.config import project_root

START = 90.0  # seconds that a process may take until it names its measurements
GRACE = 10.0  # seconds by which a measurement may overrun the part's time


def run(results: Results, parts: list[str], minutes: float, device: str, small: bool) -> None:
    """Run parts within ``minutes``; a part gets its share of what is left, so that what one saves the others have."""
    end = time.time() + 60 * minutes
    for index, part in enumerate(parts):
        shares = [PARTS[name][1] for name in parts[index:]]
        left = max(0.0, end - time.time())
        setup = Setup(device, small, time.time() + left * shares[0] / sum(shares))
        run_part(results, part, PARTS[part][0], setup)


def run_part(results: Results, part: str, module: str, setup: Setup) -> None:
    """Run one part, of a module; after a crash or a hang its other measurements go on in a new process."""
    tried = results.done(part)
    while True:
        known: dict[str, dict[str, Any]] = {}
        for row in results.rows:
            known.setdefault(row.part, {})[row.name] = row.figures
        with _child(part, module, replace(setup, known=known), tried) as child:
            if _attend(results, part, setup, child, tried):
                return


def _attend(results: Results, part: str, setup: Setup, child: _Child, tried: set[str]) -> bool:
    """Take rows until the process ends; whether the part is over."""
    names: list[str] | None = None
    current: str | None = None
    until = min(time.time() + START, setup.deadline + GRACE)
    while True:
        message = child.next(until - time.time())
        if message is None:
            break
        if "names" in message:
            names = message["names"]
        elif "begin" in message:
            current, limit = message["begin"], message["limit"]
            until = min(time.time() + (limit or float("inf")), setup.deadline + GRACE)
        elif "row" in message:
            row = Row(**message["row"])
            results.add(row)
            tried.add(row.name)
            current = None
            until = min(time.time() + START, setup.deadline + GRACE)
    over = time.time() >= setup.deadline
    ended = child.ended
    if ended == 0 and current is None:
        return True
    if current is None and names is None:
        results.add(
            Row(
                part,
                part,
                STOPPED if over else FAILED,
                why=_fate(ended, "before its first measurement", over),
            )
        )
        return True
    if current is not None:
        results.add(
            Row(
                part,
                current,
                STOPPED if over else FAILED,
                why=_fate(ended, "in this measurement", over),
            )
        )
        tried.add(current)
    left = [name for name in names or () if name not in tried]
    if over:
        for name in left:
            results.add(Row(part, name, STOPPED, why="not reached: the part's time was up"))
    return over or not left


def _fate(ended: int | None, where: str, over: bool) -> str:
    """How a process ended that gave no row, in one sentence."""
    if ended is None:
        return (
            f"stopped {where}: the part's time was up"
            if over
            else f"gave no answer {where} in its time and was killed"
        )
    if ended < 0:
        return f"its process died of {signal.Signals(-ended).name} {where}; the lines above the table say more"
    return f"its process ended with exit code {ended} {where}; the lines above the table say more"


class _Child:
    """A part's process and the messages it sends."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self._messages: queue.Queue[dict[str, Any] | None] = queue.Queue()
        Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._messages.put(json.loads(line))
        self._messages.put(None)

    def next(self, seconds: float) -> dict[str, Any] | None:
        """The next message; None if the process ended or was silent for so long."""
        try:
            message = self._messages.get(timeout=max(0.0, seconds))
        except queue.Empty:
            return None
        if message is None:
            self.process.wait()
        return message

    @property
    def ended(self) -> int | None:
        """Exit code; None while it runs."""
        return self.process.poll()


@contextmanager
def _child(part: str, module: str, setup: Setup, done: set[str]) -> Iterator[_Child]:
    words = ("--child", part, module, str(os.getpid()), "--done", json.dumps(sorted(done)))
    command = python_command("-m", "benchmarks.gpu", *words)
    root = project_root()
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=sys.stderr,
        text=True,
        cwd=root,
        start_new_session=True,
    )
    try:
        assert process.stdin is not None
        process.stdin.write(setup.write())
        process.stdin.close()
        yield _Child(process)
    finally:
        if process.poll() is None:
            _kill(process)


def _kill(process: subprocess.Popen[str]) -> None:
    """End a process and what it started, gently and then not."""
    for sent, patience in ((signal.SIGTERM, 3), (signal.SIGKILL, 20)):
        try:
            os.killpg(process.pid, sent)
            process.wait(patience)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
        return
