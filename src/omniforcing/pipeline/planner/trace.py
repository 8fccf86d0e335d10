"""Memory and operations of a training step, traced on tensors that have sizes and no memory.

The stage's own code runs on torch's meta device, so a network of any size is traced on any machine.
Lifetimes of tensors and numbers of operations follow from the code and from autograd, not from a
formula; a test holds them against the bytes that torch's allocator hands out in the same step.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from omniforcing.core.latents import Batch
from omniforcing.model.transformer import DualStream
from omniforcing.pipeline.planner import compat
from omniforcing.pipeline.planner.results import META, Results, tensors
from omniforcing.training.stages import StageModule

Phase = dict[int, int]


@dataclass
class Trace:
    """Trace of one training step in one process.

    Attributes:
        phases: phases of the step in order; one ends with each forward of a network, and at the
            beginning and end of each backward. A phase maps bytes of gradients to the most bytes of
            everything else that lived together with them. Weights, EMA, optimiser states and the
            batch are left out.
        flops: floating-point operations; a multiplication with its addition counts as two.
        forwards: forwards of each network, without those that recompute activations.
        backwards: backwards of each network.
        learning: operations of each network's forwards that carry gradient.
    """

    phases: list[Phase] = field(default_factory=lambda: [{}])
    flops: float = 0
    forwards: dict[str, int] = field(default_factory=dict)
    backwards: dict[str, int] = field(default_factory=dict)
    learning: dict[str, float] = field(default_factory=dict)

    def peaks(self, share: float) -> list[tuple[float, float]]:
        """Bytes of gradients and of everything else at the peak of each phase.

        Args:
            share: share of the gradients that a process holds.
        """
        return [
            max(((gradients * share, rest) for gradients, rest in phase.items()), key=sum)
            for phase in self.phases
            if phase
        ]


def deepened(
    few: Trace, more: Trace, layers: tuple[int, int, int], share: float
) -> tuple[list[tuple[float, float]], Trace]:
    """Extrapolate two traces to a deeper network; all layers cost the same.

    Args:
        few: trace at ``layers[0]`` layers.
        more: trace at ``layers[1]`` layers.
        layers: numbers of layers of both traces, and of the deep network.
        share: share of the gradients that a process holds.

    Returns:
        Peaks of each phase, and a trace with the counts of the deep network.
    """
    by = (layers[2] - layers[0]) / (layers[1] - layers[0])

    def reach(a: float, b: float) -> float:
        return a + by * (b - a)

    peaks = []
    for a, b in zip(few.peaks(share), more.peaks(share), strict=True):
        # The sum is extrapolated. The peak of the deeper network may be at another moment, so its
        # parts are only kept within bounds.
        whole = reach(sum(a), sum(b))
        gradients = min(max(reach(a[0], b[0]), 0.0), whole)
        peaks.append((gradients, whole - gradients))
    learning = {name: reach(few.learning[name], more.learning[name]) for name in few.learning}
    counts = Trace([], reach(few.flops, more.flops), few.forwards, few.backwards, learning)
    return peaks, counts


class _Tracer(TorchDispatchMode):
    """Puts every new tensor on the meta device, and counts bytes of living tensors and operations.

    Args:
        answer: number that is returned where the code reads a number from a tensor.
        results: what operations gave before.
    """

    def __init__(self, answer: int, results: Results) -> None:
        super().__init__()
        self.trace, self.answer, self.results = Trace(), answer, results
        self.kinds: dict[int, str] = {}
        self.live = {"gradient": 0, "other": 0}
        self.placed: dict[Any, bool] = {}

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is compat.LOCAL_SCALAR and args[0].device == META:
            return self.answer
        if func not in self.placed:
            self.placed[func] = compat.takes_device(func)
        if self.placed[func]:
            kwargs["device"] = META
        if kwargs.get("generator") is not None:
            kwargs["generator"] = None
        for tensor in tensors((args, kwargs)):
            self._ignore(tensor)
        out = self._call(func, args, kwargs)
        count = compat.FLOPS.get(compat.overloads(func))
        if count is not None:
            self.trace.flops += count(*args, **kwargs, out_val=out)
        for tensor in tensors(out):
            self._count(tensor)
        gradients, rest, phase = self.live["gradient"], self.live["other"], self.trace.phases[-1]
        phase[gradients] = max(rest, phase.get(gradients, 0))
        return out

    def _call(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if _picks_by_mask(func, args):
            return _masked(func, args)
        return self.results(func, args, kwargs)

    def _ignore(self, tensor: Tensor) -> None:
        """Leave out a tensor that was made outside the trace.

        Only for as long as it lives: another tensor may get its address afterwards.
        """
        storage = tensor.untyped_storage()
        key = compat.storage_key(storage)
        if key not in self.kinds:
            self.kinds[key] = "outside"
            weakref.finalize(storage, self.kinds.pop, key, None)

    def _count(self, tensor: Tensor, kind: str = "other") -> None:
        storage = tensor.untyped_storage()
        key = compat.storage_key(storage)
        if key not in self.kinds:
            self.kinds[key] = kind
            self.live[kind] += storage.nbytes()
            weakref.finalize(storage, self._uncount, key, storage.nbytes())

    def _uncount(self, key: int, size: int) -> None:
        self.live[self.kinds.pop(key)] -= size

    def accumulated(self, parameter: Tensor) -> None:
        """Count the gradient of a parameter, just accumulated, as a gradient."""
        assert parameter.grad is not None
        storage = parameter.grad.untyped_storage()
        self._count(parameter.grad, "gradient")
        key = compat.storage_key(storage)
        if self.kinds[key] == "other":
            self.kinds[key] = "gradient"
            self.live["other"] -= storage.nbytes()
            self.live["gradient"] += storage.nbytes()


def _picks_by_mask(func: Any, args: Any) -> bool:
    """Whether the shape of the result depends on a mask's values, which do not exist here."""
    by_mask = compat.overloads(func) in compat.INDEXING
    return by_mask and any(t.dtype == torch.bool for t in tensors(args[1]))


def _masked(func: Any, args: Any) -> Tensor:
    """Return the largest possible result, as if the mask were true everywhere."""
    picks = compat.overloads(func) is compat.INDEX
    return args[0].new_empty(args[0].numel()) if picks else args[0]


class _WithoutMoments(torch.optim.Optimizer):
    """Parameter groups of an optimiser with a step that does nothing: a trace has no moments."""

    def __init__(self, optimiser: torch.optim.Optimizer) -> None:
        super().__init__(optimiser.param_groups, {})

    def step(self, closure: Any = None) -> Any:  # noqa: ARG002
        """Do nothing."""
        return None


def trace_step(
    module: StageModule, batch: Batch, *, exit_step: int = 0, results: Results | None = None
) -> Trace:
    """Trace ``module.training_step`` on a batch.

    Module and batch move to the meta device and are of no use afterwards.

    Args:
        module: a stage.
        batch: its data.
        exit_step: denoising step of the student at which gradient flows; later ones only take
            longer to trace.
        results: what operations gave in earlier traces, which saves asking again.
    """
    module.place(META)
    networks = {
        name: child for name, child in module.named_children() if isinstance(child, DualStream)
    }
    for teacher in getattr(module, "frozen", ()):
        networks["teacher"] = teacher
    optimisers = [_WithoutMoments(optimiser) for optimiser in module.configure_optimizers()]
    live = _Tracer(exit_step, results or Results())

    def backward(loss: Tensor) -> None:
        live.trace.phases.append({})
        loss.backward()
        live.trace.phases.append({})

    with _watched(live, networks), live:
        module.training_step(0, batch.to(META), optimisers, backward)
    return live.trace


@contextmanager
def _watched(live: _Tracer, networks: dict[str, DualStream]) -> Iterator[None]:
    handles = []
    for name, network in networks.items():
        handles += _counting(live.trace, name, network)
        for parameter in network.parameters():
            if parameter.requires_grad:
                handles.append(parameter.register_post_accumulate_grad_hook(live.accumulated))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _counting(trace: Trace, name: str, network: nn.Module) -> list[Any]:
    """Register hooks that count a network's passes and begin a phase after each forward."""
    begun = [0.0]

    def before(_module: nn.Module, _in: Any) -> None:
        begun[0] = trace.flops

    def after(_module: nn.Module, _in: Any, _out: Any) -> None:
        learns = torch.is_grad_enabled() and name != "teacher"
        trace.forwards[name] = trace.forwards.get(name, 0) + 1
        trace.backwards[name] = trace.backwards.get(name, 0) + learns
        if learns:
            trace.learning[name] = trace.learning.get(name, 0.0) + trace.flops - begun[0]
        trace.phases.append({})

    return [network.register_forward_pre_hook(before), network.register_forward_hook(after)]
