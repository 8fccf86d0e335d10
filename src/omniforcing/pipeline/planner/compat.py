"""Private APIs of torch that a trace uses, each with its reason.

A test fails when torch's version moves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry

# The version whose private APIs these were written for; tests/test_compat.py holds it against
# the pin in constraints.txt.
REVIEWED = {"torch": "2.13.0"}

_aten = torch.ops.aten
# Operations of the fused attention that ``model.compat.meta_attention`` calls; torch's registry
# counts those of its GPU twin alone.
FLOPS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    _aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[
        _aten._scaled_dot_product_flash_attention
    ],
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        _aten._scaled_dot_product_flash_attention_backward
    ],
}
# Asks a tensor of one element for its value.
LOCAL_SCALAR = _aten._local_scalar_dense.default
# Indexing, which with a mask gives as many elements as the mask has true ones.
INDEX = _aten.index
INDEXING = (_aten.index, _aten.index_put_, _aten.index_put, _aten._index_put_impl_)


def storage_key(storage: torch.UntypedStorage) -> int:
    """Identity of a storage for as long as it lives; on the meta device all have address 0."""
    return storage._cdata


def overloads(function: Any) -> Any:
    """The operation that an overload, as a dispatch mode meets it, belongs to."""
    return function._overloadpacket


def takes_device(function: Any) -> bool:
    """Whether an operation takes the device of its result as an argument."""
    return any(argument.name == "device" for argument in function._schema.arguments)


def gives_new_tensors(function: Any) -> bool:
    """Whether an operation's schema names no argument that it writes into or gives a view of."""
    schema = function._schema
    results = [*schema.arguments, *schema.returns]
    return not schema.is_mutable and all(each.alias_info is None for each in results)
