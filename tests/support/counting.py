"""A job that never ends, for tests of what ends it.

A module of its own, which a script can import.
"""

import time
from pathlib import Path


def count(path: Path) -> None:
    """Write ever larger numbers into a file."""
    for number in range(10**6):
        path.write_text(str(number))
        time.sleep(0.01)
