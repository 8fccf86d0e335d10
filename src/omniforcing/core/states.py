"""States to save: named tensors, with the states of parts under prefixes."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

State = dict[str, Tensor]


def join_states(**parts: Mapping[str, Tensor]) -> State:
    """Join the states of parts; each name gets its part and a dot in front."""
    return {
        f"{part}.{name}": tensor for part, named in parts.items() for name, tensor in named.items()
    }


def part_of(state: Mapping[str, Tensor], part: str) -> State:
    """Take the state of one part out of a joined state."""
    return {
        name.removeprefix(f"{part}."): x for name, x in state.items() if name.startswith(f"{part}.")
    }
