"""What a stream does where torch's compiler fails: it runs the plain path, and says why."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from omniforcing.core.environment import tell_once
from omniforcing.model.options import InferenceOptions

_REMEDY = (
    "it needs g++ and a cache of its own: let TORCHINDUCTOR_CACHE_DIR name a new folder that may "
    "be written"
)


def as_far_as_compilable(options: InferenceOptions, device: torch.device) -> InferenceOptions:
    """Return the options, without compilation and with a sentence on stderr where it fails.

    Where it works, a part of the student that then cannot be compiled, as with a cache that was
    altered, runs uncompiled with a sentence too (``TOLD``).

    Args:
        options: what makes a stream fast.
        device: of the student.
    """
    if not options.compiled:
        return options
    fault = _compiler_fault(device)
    if fault is None:
        return options
    tell_once(
        f"speed-up compiled is left out, torch's compiler does not work here: {fault}; {_REMEDY}"
    )
    return replace(options, compiled=False)


@cache
def _compiler_fault(device: torch.device) -> str | None:
    """What torch's compiler complains of on a trifle; None if it works."""

    def trifle(x: Tensor) -> Tensor:
        return x.sin() + 1

    try:
        torch.compile(trifle)(torch.ones(8, device=device))
    except Exception as error:  # of the compiler, its programs, or the folder of its cache
        return _first_line(error)
    return None


class _Told(logging.Filter):
    """Makes a sentence of the traceback that torch logs for what it could not compile."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep all other records."""
        error = record.exc_info[1] if record.exc_info else None
        if error is None or record.levelno < logging.WARNING:
            return True
        tell_once(
            "a part of the student runs uncompiled, for torch's compiler failed: "
            f"{_first_line(error)}; {_REMEDY}"
        )
        return False


TOLD = _Told()


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
