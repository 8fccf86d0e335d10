"""End of every command: one line and an exit code for errors that the user can mend."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from omniforcing.core.errors import OmniForcingError
from omniforcing.core.files import refusal

FAILED, INTERRUPTED, TERMINATED = 2, 130, 143


def explain(error: BaseException | None) -> OmniForcingError | None:
    """Return the error that the user can mend; None for a bug, which keeps its traceback."""
    if isinstance(error, OmniForcingError):
        return error
    if isinstance(error, OSError):
        return refusal(error)
    return None


def line(error: OmniForcingError) -> str:
    """Return the one line of stderr that tells a user of an error: ``error[code]: sentence``."""
    return f"error[{error.code}]: {' '.join(str(error).split())}"


def run_command(command: Callable[[], None]) -> int:
    """Run a command and return its exit code.

    Returns:
        0; 2 after an error that the user can mend, 130 after Ctrl-C, 143 after SIGTERM.
    """
    # SIGTERM unwinds like an exception, so that temporary folders are removed and the MLflow run
    # is ended.
    signal.signal(signal.SIGTERM, _terminate)
    try:
        command()
    except KeyboardInterrupt:
        print("stopped; run the same command again to continue", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        explained = explain(error)
        if explained is None:
            raise
        print(line(explained), file=sys.stderr)
        return FAILED
    return 0


def _terminate(*_: object) -> NoReturn:
    raise SystemExit(TERMINATED)
