"""Named tensors of a state that can be saved: parts under prefixes, put together and taken apart."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

State = dict[str, Tensor]


def joined(**parts: Mapping[str, Tensor]) -> State:
    """One state of several, each under its own name and a dot."""
    return {
        f"{part}.{name}": tensor for part, named in parts.items() for name, tensor in named.items()
    }


def part_of(state: Mapping[str, Tensor], part: str) -> State:
    """What ``joined`` put under a name."""
    return {
        name.removeprefix(f"{part}."): x for name, x in state.items() if name.startswith(f"{part}.")
    }
