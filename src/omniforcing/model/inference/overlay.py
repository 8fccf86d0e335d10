"""Adapters (LoRA) laid over a student while it streams, with scales that may change on the way.

The weights stay as they are; each layer adds ``scale * B (A x)``. So streams of one student may
have scales of their own, and 0 is the student without the adapter, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor, nn

from omniforcing.core.errors import OmniForcingError
from omniforcing.model.config import ADAPTABLE
from omniforcing.model.kernels import AdaptedKernels
from omniforcing.model.transformer import DualStream
from omniforcing.model.weights.lora import Factors, Lora, check_scale
from omniforcing.networks.layers import GELU

Scales = tuple[float, ...]
Function = Callable[[Tensor], Tensor]


class Joined(NamedTuple):
    """A linear layer and the order of its output rows, where it is a part of a joined one.

    Attributes:
        linear: the layer.
        rows: order of its rows; None for its own.
    """

    linear: nn.Linear
    rows: Tensor | None = None


class Overlay:
    """Adapters over one student.

    Args:
        loras: adapters that fit the student (``Lora.fitted``), each with its scale at the start of
            a stream.

    Attributes:
        scales: the scales at the start of a stream.

    Raises:
        OmniForcingError: for a layer outside of attentions and feed-forwards, or a scale that is
            not finite.
    """

    def __init__(self, loras: Sequence[tuple[Lora, float]]) -> None:
        self.loras = [lora for lora, _ in loras]
        for lora, scale in loras:
            check_scale(scale, str(lora.source))
            for name in lora.layers:
                if name.removeprefix("transformer_blocks.").partition(".")[2] not in ADAPTABLE:
                    raise OmniForcingError(
                        "adapter.cannot-overlay",
                        f"{lora.source} changes {name}, and only attentions and feed-forwards can "
                        "be changed while streaming; merge it into the weights with `omniforcing "
                        "weights merge-lora`",
                    )
        self.scales: Scales = tuple(scale for _, scale in loras)
        # Each stream generates on a thread of its own, which has its own value of it.
        self._current: ContextVar[Scales] = ContextVar("scales", default=self.scales)
        self._names: dict[int, str] = {}

    def bind(self, student: DualStream) -> Overlay:
        """Take the names of a student's layers."""
        for name, module in student.core.named_modules():
            self._names[id(module)] = name
        return self

    @contextmanager
    def scaled(self, scales: Scales) -> Iterator[None]:
        """Compute with these scales in this thread."""
        token = self._current.set(scales)
        try:
            yield
        finally:
            self._current.reset(token)

    @property
    def current(self) -> Scales:
        """Scales of this thread."""
        return self._current.get()

    def over(self, function: Function, *parts: Joined) -> Function:
        """Lay the adapters over a linear layer, or over several that were joined into one.

        Args:
            function: computes the layers, one after the other in its output.
            parts: the layers.

        Returns:
            ``function`` itself where no adapter changes any of them.
        """
        changes: list[tuple[int, Factors]] = []
        for index, lora in enumerate(self.loras):
            joined = _join(lora, [(self._names[id(part.linear)], part) for part in parts])
            if joined is not None:
                changes.append((index, joined))
        return OverlaidLinear(self, function, changes) if changes else function

    def feed_forward(self, first: GELU, second: nn.Linear) -> tuple[Function, Function] | None:
        """Both layers of a feed-forward, the first with its GELU; None where none is changed."""
        expand = self.over(first.proj, Joined(first.proj))
        contract = self.over(second, Joined(second))
        if expand is first.proj and contract is second:
            return None
        return (lambda x: first.gelu(expand(x))), contract

    def kernels(self, student: DualStream) -> AdaptedKernels:
        """The plain kernels with the adapters."""
        layers: dict[int, Function] = {}
        for module in student.core.modules():
            if isinstance(module, nn.Linear):
                layers[id(module)] = self.over(module, Joined(module))
        return AdaptedKernels(layers)


class OverlaidLinear:
    """A linear layer and the adapters over it.

    Args:
        overlay: knows the scales.
        function: the layer.
        changes: factors of each adapter, with its number.
    """

    def __init__(
        self, overlay: Overlay, function: Function, changes: list[tuple[int, Factors]]
    ) -> None:
        self._overlay, self._function, self._changes = overlay, function, changes

    def __call__(self, x: Tensor) -> Tensor:
        out, scales = self._function(x), self._overlay.current
        for index, (a, b) in self._changes:
            if scales[index]:
                out = out + (x @ a.T @ b.T).mul_(scales[index])
        return out


def _join(lora: Lora, parts: Sequence[tuple[str, Joined]]) -> Factors | None:
    """Factors of layers that were joined: A below each other, B on a diagonal; None for none."""
    changed = [lora.layers.get(name) for name, _ in parts]
    if not any(changed):
        return None
    first: list[Tensor] = []
    second: list[Tensor] = []
    for factors, (_, (linear, rows)) in zip(changed, parts, strict=True):
        weight = linear.weight
        if factors is None:
            first.append(weight.new_zeros(0, linear.in_features))
            second.append(weight.new_zeros(linear.out_features, 0))
            continue
        a, b = (factor.to(weight) for factor in factors)
        first.append(a)
        second.append(b if rows is None else b.index_select(0, rows))
    return Factors(torch.cat(first), torch.block_diag(*second))
