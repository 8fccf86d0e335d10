"""Results of operations on the meta device, each worked out once.

torch works out shapes of most operations in Python, in about a millisecond each, and a step asks
the same few hundred questions tens of thousands of times.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from omniforcing.pipeline.planner import compat

META = torch.device("meta")
_Made = Callable[[], Tensor] | None


class Results:
    """Calls operations on meta tensors, and answers those that it has met before from memory.

    Remembered are operations that give new tensors: those that write into an argument, give a view
    of one or give no tensor are called each time.
    """

    def __init__(self) -> None:
        self.fresh: dict[Any, bool] = {}
        self.known: dict[Hashable, tuple[bool, list[_Made]]] = {}

    def __call__(self, function: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
        """Return what ``function(*args, **kwargs)`` does, on tensors that have sizes alone."""
        if function not in self.fresh:
            self.fresh[function] = compat.gives_new_tensors(function)
        if not self.fresh[function]:
            return function(*args, **kwargs)
        key = (function, _described(args), _described(kwargs))
        if key not in self.known:
            out = function(*args, **kwargs)
            several = isinstance(out, tuple)
            made = _recipes(out if several else (out,), (args, kwargs))
            if made is None:
                self.fresh[function] = False
            else:
                self.known[key] = (several, made)
            return out
        several, recipes = self.known[key]
        results = tuple(recipe and recipe() for recipe in recipes)
        return results if several else results[0]


def _recipes(outputs: tuple[Any, ...], inputs: Any) -> list[_Made] | None:
    """How to make each output again; None if one is no new meta tensor."""
    held = {compat.storage_key(t.untyped_storage()) for t in tensors(inputs)}
    found: list[_Made] = []
    for out in outputs:
        if out is None:
            found.append(None)
            continue
        if not isinstance(out, Tensor) or out.device != META:
            return None
        key, size = compat.storage_key(out.untyped_storage()), out.untyped_storage().nbytes()
        shape = (tuple(out.shape), out.stride())
        made = partial(torch.empty_strided, *shape, dtype=out.dtype, device=META)
        # An argument's storage under another shape, or more bytes than the shape takes.
        if key in held or out.storage_offset() or made().untyped_storage().nbytes() != size:
            return None
        held.add(key)
        found.append(made)
    return found


def _described(value: Any) -> Hashable:
    """An argument as far as shapes depend on it; 1, 1.0 and True are different."""
    if isinstance(value, Tensor):
        return (tuple(value.shape), value.stride(), value.dtype, value.device)
    if isinstance(value, list | tuple):
        return (type(value), *map(_described, value))
    if isinstance(value, dict):
        return tuple((name, _described(each)) for name, each in value.items())
    return (type(value), value)


def tensors(values: Any) -> list[Tensor]:
    """All tensors in nested lists, tuples and dicts."""
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, dict):
        values = list(values.values())
    if isinstance(values, list | tuple):
        return [tensor for value in values for tensor in tensors(value)]
    return []
