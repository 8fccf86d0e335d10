"""Whether torch's compiler works on this machine: it needs a C++ compiler and a folder to write."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from omniforcing.core.environment import tell_once
from omniforcing.model.options import InferenceOptions


def as_far_as_compilable(options: InferenceOptions, device: torch.device) -> InferenceOptions:
    """Return the options, without compilation and with a sentence on stderr where it fails.

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
        f"speed-up compiled is left out, torch's compiler does not work here: {fault}; install "
        "g++, and let TORCHINDUCTOR_CACHE_DIR name a folder that may be written"
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
        return str(error).splitlines()[0]
    return None
