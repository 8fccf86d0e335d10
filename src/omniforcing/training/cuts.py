"""Cuts through a graph of autograd, so that its parts run backward one after the other."""

from __future__ import annotations

from torch import Tensor


class Cut:
    """Tensors at which a graph is cut: what comes after them sees leaves of the same values.

    A backward pass over what comes after leaves gradients in the leaves; a backward pass over
    ``loss`` carries them into the part of the graph that comes before.
    """

    def __init__(self) -> None:
        self._tensors: list[tuple[Tensor, Tensor]] = []

    def __call__(self, x: Tensor) -> Tensor:
        """A leaf in place of ``x``; ``x`` itself if it has no gradient."""
        if not x.requires_grad:
            return x
        leaf = x.detach().requires_grad_()
        self._tensors.append((x, leaf))
        return leaf

    def __bool__(self) -> bool:
        return bool(self._tensors)

    def loss(self) -> Tensor:
        """A scalar whose gradient by each tensor is what its leaf has collected, for one use."""
        taken, self._tensors = self._tensors, []
        terms = [(x * leaf.grad).sum() for x, leaf in taken if leaf.grad is not None]
        return sum(terms[1:], terms[0])
