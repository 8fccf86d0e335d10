"""A file that appears when it is whole; one sentence for what the disk refuses."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from omniforcing.core.errors import OmniForcingError


def _explain(path: Path, error: OSError) -> OmniForcingError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return OmniForcingError(
            "disk.full", f"the disk is full while writing {path}; free some space and try again"
        )
    return OmniForcingError(
        "file.cannot-write",
        f"{path} cannot be written ({error.strerror or error}); choose another place",
    )


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file that appears as ``path`` when the body succeeds, and leaves nothing behind when it fails.

    Raises:
        OmniForcingError: if the place is not writable or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        file = temporary.open("wb")
    except OSError as error:
        raise _explain(path, error) from error
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise _explain(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)
