"""End of every command: one line and an exit code for errors that the user can mend."""

from __future__ import annotations

import os
import re
import select
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from omniforcing.core.errors import OmniForcingError
from omniforcing.core.files import refusal

FAILED, INTERRUPTED, READER_GONE, TERMINATED = 2, 130, 141, 143


def explain(error: BaseException | None) -> OmniForcingError | None:
    """Return the error that the user can mend; None for a bug, which keeps its traceback."""
    if isinstance(error, OmniForcingError):
        return error
    if isinstance(error, OSError):
        return refusal(error)
    return None


def line(error: OmniForcingError) -> str:
    """Return the one line of stderr that tells a user of an error: ``error[code]: sentence``."""
    return visible(f"error[{error.code}]: {' '.join(str(error).split())}")


def visible(text: str) -> str:
    r"""Write what a terminal would obey but new lines as ``\x1b``: names of files may hold it."""
    return re.sub("[\x00-\x09\x0b-\x1f\x7f-\x9f]", lambda found: f"\\x{ord(found[0]):02x}", text)


def run_command(command: Callable[[], None]) -> int:
    """Run a command and return its exit code.

    Returns:
        0; 2 after an error that the user can mend, 130 after Ctrl-C, 141 if what read the output
        has closed it, 143 after SIGTERM.
    """
    # SIGTERM unwinds like an exception, so that temporary folders are removed and the MLflow run
    # is ended.
    signal.signal(signal.SIGTERM, _terminate)
    try:
        try:
            command()
        except SystemExit:
            sys.stdout.flush()
            raise
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("stopped; run the same command again to continue", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _reader_is_gone():
            # Python writes what is left when it ends, and would complain.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return READER_GONE
        explained = explain(error)
        if explained is None:
            raise
        print(line(explained), file=sys.stderr)
        return FAILED
    return 0


def _reader_is_gone() -> bool:
    """Whether standard output is a pipe that nobody reads any more, as behind ``| head``."""
    poll = select.poll()
    try:
        poll.register(sys.stdout.fileno(), 0)
    except (OSError, ValueError):  # a test's own output is no file
        return False
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))


def _terminate(*_: object) -> NoReturn:
    raise SystemExit(TERMINATED)
