"""Operations of a forward as they ran, and the memory that running them again needs."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from omniforcing.model.compat import OperationWatch


class _Value(NamedTuple):
    """A tensor among the arguments of a recorded operation, by its number."""

    number: int


class Operation(NamedTuple):
    """One recorded operation.

    Attributes:
        function: torch's overload.
        arguments: its arguments, tensors as ``_Value``.
        options: its named arguments, likewise.
        read: numbers of the tensors among them.
        results: numbers of the tensors that it returned.
        mutates: whether it writes into an argument.
        views: whether its results are views of an argument.
    """

    function: Any
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    read: list[int]
    results: list[int]
    mutates: bool
    views: bool

    def filled(self, tensors: Mapping[int, Tensor]) -> tuple[list[Any], dict[str, Any]]:
        """Its arguments and named arguments with tensors in their places."""
        arguments = [_filled(argument, tensors) for argument in self.arguments]
        options = {name: _filled(option, tensors) for name, option in self.options.items()}
        return arguments, options


def _filled(x: Any, tensors: Mapping[int, Tensor]) -> Any:
    if type(x) is _Value:
        return tensors[x.number]
    return [_filled(item, tensors) for item in x] if type(x) is list else x


class Layout(NamedTuple):
    """Sizes, strides and type of a tensor that a replay writes anew."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    bytes: int

    @classmethod
    def of(cls, tensor: Tensor) -> Layout:
        """Layout of a tensor."""
        size, stride = tuple(tensor.shape), tensor.stride()
        extent = 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        return cls(size, stride, tensor.dtype, max(extent, 0) * tensor.element_size())


class Recording(OperationWatch):
    """Records the operations that run while it is active, on tensors by number.

    Args:
        given: tensors that another replay will have others for, in groups that change one
            without the other.

    Attributes:
        operations: in their order.
        constants: tensors that were there before, by number.
        layouts: of tensors that were made, by number.
    """

    def __init__(self, given: Iterable[Iterable[Tensor]]) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self.constants: dict[int, Tensor] = {}
        self.layouts: dict[int, Layout] = {}
        # Numbers by identity. Nothing is held: a tensor that dies while recording gives its memory
        # back as it would otherwise, and its identity may come again.
        self._numbers: dict[int, tuple[int, weakref.ref[Tensor]]] = {}
        self._count = 0
        self.given = [[self._enter(tensor) for tensor in group] for group in given]

    def number(self, tensor: Tensor) -> int:
        """Number of a tensor that an operation used or made."""
        return self._numbers[id(tensor)][0]

    def _find(self, tensor: Tensor) -> int | None:
        found = self._numbers.get(id(tensor))
        return None if found is None else found[0]

    def _enter(self, tensor: Tensor) -> int:
        key, number = id(tensor), self._find(tensor)
        if number is None:
            number, self._count = self._count, self._count + 1
            self._numbers[key] = (number, weakref.ref(tensor, lambda _: self._numbers.pop(key)))
        return number

    def _symbolic(self, x: Any, read: list[int]) -> Any:
        """An argument with tensors as ``_Value``, whose numbers go to ``read``."""
        if isinstance(x, Tensor):
            number = self._find(x)
            if number is None:
                number = self._enter(x)
                self.constants[number] = x
            read.append(number)
            return _Value(number)
        if isinstance(x, list | tuple) and any(isinstance(item, Tensor) for item in x):
            return [self._symbolic(item, read) for item in x]
        return x

    def ran(
        self, function: Any, arguments: tuple[Any, ...], options: dict[str, Any], result: Any
    ) -> None:
        """Take down an operation."""
        read: list[int] = []
        results: list[int] = []
        symbols = tuple([self._symbolic(x, read) for x in arguments])
        named = {name: self._symbolic(x, read) for name, x in options.items()}
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if not isinstance(tensor, Tensor):
                raise NotReplayable(f"{function} returns no tensor")
            number = self._find(tensor)
            if number is None:
                number = self._enter(tensor)
                self.layouts[number] = Layout.of(tensor)
            results.append(number)
        kind = effects_of(function)
        self.operations.append(Operation(function, symbols, named, read, results, *kind))


@cache
def effects_of(function: Any) -> tuple[bool, bool]:
    """Whether an overload writes into an argument, and whether it returns views of one."""
    schema = function._schema
    aliases = any(r.alias_info is not None for r in schema.returns)
    return schema.is_mutable, aliases and not schema.is_mutable


class NotReplayable(Exception):
    """A forward that reads numbers from tensors, which may be others next time."""


class Plan(NamedTuple):
    """Where a replay writes what it makes.

    Attributes:
        slots: by number of a tensor, the piece of memory it lies in.
        bytes: size of each piece.
    """

    slots: dict[int, int]
    bytes: list[int]

    @classmethod
    def of(cls, recording: Recording, kept: Iterable[int]) -> Plan:
        """Give every tensor that a recording makes a piece, used again once nothing reads it.

        Args:
            recording: the recording.
            kept: numbers of tensors that are read after a replay.
        """
        # The tensor whose memory a tensor lies in, and the last operation that touches that.
        owner: dict[int, int] = {}
        last: dict[int, int] = {}
        for index, operation in enumerate(recording.operations):
            for number in operation.read:
                last[owner.get(number, number)] = index
            for number in operation.results:
                base = operation.read[0] if operation.views else number
                owner.setdefault(number, owner.get(base, base))
                last[owner[number]] = index
        for number in kept:
            last[owner[number]] = len(recording.operations)

        plan, free = cls({}, []), dict[int, list[int]]()
        for index, operation in enumerate(recording.operations):
            for number in operation.results:
                if owner[number] == number in recording.layouts and number not in plan.slots:
                    size = recording.layouts[number].bytes
                    if not free.get(size):
                        free[size] = [len(plan.bytes)]
                        plan.bytes.append(size)
                    plan.slots[number] = free[size].pop()
            for number in {owner.get(n, n) for n in (*operation.read, *operation.results)}:
                if last[number] == index and number in plan.slots:
                    slot = plan.slots[number]
                    free[plan.bytes[slot]].append(slot)
        return plan
