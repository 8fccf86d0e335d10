"""The fast strategy of a block: projections joined, norms, adaLN and RoPE in fewer passes.

For inference alone, and equal to the plain kernels up to rounding. Queries and keys of the
attentions with RoPE have the two channels of every rotation side by side, whatever order the
weights have: a dot product does not depend on the order of the channels.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from functools import cache
from math import pi, sqrt
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omniforcing.core.errors import OmniForcingError
from omniforcing.core.latents import Latents
from omniforcing.core.layout import Counts
from omniforcing.core.pair import Pair
from omniforcing.model import compat
from omniforcing.model.attention import Positions, View
from omniforcing.model.conditioning import AdaLNParams, KeyValue
from omniforcing.model.inference.compiling import TOLD
from omniforcing.model.inference.gpu import (
    ConcurrentStreams,
    CudaGraphRunner,
    Fp8Linear,
    attention_backend,
)
from omniforcing.model.inference.overlay import Joined, Overlay
from omniforcing.model.inference.positions import CompiledPositions, PairedPositions
from omniforcing.model.inference.replay import ForwardReplay, Recorded
from omniforcing.model.kernels import (
    Attention,
    Kernels,
    LayerView,
    ProjectedStates,
    StabiliserParams,
)
from omniforcing.model.options import DEFAULT, InferenceOptions
from omniforcing.model.transformer import DualStream
from omniforcing.model.weights.rope_layout import rope_rows
from omniforcing.networks.layers import GELU, FeedForward, RMSNorm
from omniforcing.networks.layers import Attention as AttentionModule
from omniforcing.networks.transformer import LTX2VideoTransformer3DModel

T = TypeVar("T")
Function = TypeVar("Function", bound=Callable[..., Any])
JoinedLinear = Callable[..., Callable[[Tensor], Tensor]]
# Each stream, site and size of a block is a compilation of its own; torch gives up after 8.
COMPILED_SHAPES = 128


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """Root mean square norm over the last dimension, in the fewest passes on either device."""
    if x.is_cuda or x.dtype is not torch.float32 or torch.compiler.is_compiling():
        return F.rms_norm(x, x.shape[-1:], weight, eps)
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    normed = x * torch.addcmul(_constant(eps), norm, norm, value=1 / x.shape[-1]).rsqrt_()
    return normed if weight is None else normed.mul_(weight)


@cache
def _constant(value: float) -> Tensor:
    return torch.tensor(value)


class FastAttention(Attention):
    """An attention with RoPE whose projections of the same states are one matrix product.

    Args:
        module: the attention's weights.
        of_itself: whether queries come from the same states as keys and values.
        linear: makes a projection of joined ones, in fp8 for example.
    """

    def __init__(self, module: AttentionModule, of_itself: bool, linear: JoinedLinear) -> None:
        super().__init__(module)
        width = module.to_q.out_features
        order = torch.arange(width)
        if module.rope_type == "split":
            order = rope_rows(self.heads, width // self.heads, "interleaved")
        order = order.to(module.to_q.weight.device)
        q, k = Joined(module.to_q, order), Joined(module.to_k, order)
        v = Joined(module.to_v)
        if of_itself:
            self.to_qkv = linear(q, k, v)
        else:
            self.to_q, self.to_kv = linear(q), linear(k, v)
        self.width, self.eps = width, module.norm_q.eps
        self.q_gain = module.norm_q.weight.index_select(0, order)
        self.k_gain = module.norm_k.weight.index_select(0, order)
        self.qk_gains = torch.stack([self.q_gain, self.k_gain])

    def query(self, x: Tensor) -> Tensor:
        return rms_norm(self.to_q(x), self.q_gain, self.eps)

    def key_value(self, x: Tensor) -> KeyValue:
        k, v = self.to_kv(x).split(self.width, -1)
        return KeyValue(rms_norm(k, self.k_gain, self.eps), v)

    def project(self, x: Tensor, stabiliser: StabiliserParams) -> ProjectedStates:
        qk, v = self.to_qkv(x).split([2 * self.width, self.width], -1)
        # One norm over both: their gains, which differ, come after it.
        normed = rms_norm(qk.unflatten(-1, (2, -1)), None, self.eps).mul_(self.qk_gains)
        q, k = normed.unbind(-2)
        return self._stabilised(q, k, v, stabiliser)


class FastTextAttention(Attention):
    """The attention to the prompt, whose keys and values a stream has cached."""

    def query(self, x: Tensor) -> Tensor:
        return rms_norm(self.to_q(x), self.module.norm_q.weight, self.module.norm_q.eps)


def _join(parts: Sequence[Joined]) -> nn.Linear:
    """Join projections into one, the output rows of each in its order."""
    taken = [
        (part, torch.arange(len(part.weight), device=part.weight.device) if rows is None else rows)
        for part, rows in parts
    ]
    weight = torch.cat([part.weight.index_select(0, rows) for part, rows in taken])
    has_bias = taken[0][0].bias is not None
    joined = nn.Linear(weight.shape[1], len(weight), has_bias, device="meta")
    joined.weight = nn.Parameter(weight, requires_grad=False)
    if has_bias:
        biases = torch.cat([part.bias.index_select(0, rows) for part, rows in taken])
        joined.bias = nn.Parameter(biases, requires_grad=False)
    return joined


class SigmoidGelu:
    """A linear layer and its tanh-GELU, on a CPU in fp32.

    ``tanh`` of a GELU is a sigmoid, for which torch has a kernel that takes half the time:
    ``gelu(x) = x * sigmoid(sqrt(8 / pi) * (x + 0.044715 * x^3))``.

    Args:
        linear: the layer.
    """

    def __init__(self, linear: nn.Linear) -> None:
        self.linear = linear

    def __call__(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        scale = sqrt(8 / pi)
        factor = torch.addcmul(_constant(scale), x, x, value=0.044715 * scale)
        return factor.mul_(x).sigmoid_().mul_(x)

    @staticmethod
    def fits(gelu: GELU) -> bool:
        """Whether the module is on a CPU in fp32."""
        weight = gelu.proj.weight
        return weight.device.type == "cpu" and weight.dtype == torch.float32


class FastFeedForward:
    """A feed-forward of two layers and a GELU between them, by functions that keep the weights.

    Args:
        expand: the first layer, with its GELU.
        contract: the second layer.
    """

    def __init__(
        self, expand: Callable[[Tensor], Tensor], contract: Callable[[Tensor], Tensor]
    ) -> None:
        self.expand, self.contract = expand, contract

    def __call__(self, x: Tensor) -> Tensor:
        return self.contract(self.expand(x))


class Fp8Gelu:
    """A linear layer in fp8 and its GELU."""

    def __init__(self, linear: nn.Linear) -> None:
        self.linear = Fp8Linear(linear)

    def __call__(self, x: Tensor) -> Tensor:
        return F.gelu(self.linear(x), approximate="tanh")


class FastKernels(Kernels):
    """Kernels that keep weights in the form that is fastest to use.

    Args:
        options: whether linear layers compute in fp8, whether the parts between attentions are
            compiled, and whether the streams run beside each other.
        device: device of the weights.
        release: free each weight as soon as it is copied into another form. The model that the
            weights belong to is then of no use by itself and cannot be saved; 19B parameters
            take a fifth less memory, with fp8 half.
        overlay: adapters over the weights.

    Raises:
        OmniForcingError: for an option that the device does not have.
    """

    def __init__(
        self,
        options: InferenceOptions,
        device: torch.device,
        release: bool = False,
        overlay: Overlay | None = None,
    ) -> None:
        options.check(device)
        self.options, self._release = options, release
        self._overlay = overlay or Overlay(())
        self._replays = options.compiled and device.type == "cuda"
        self._recordings: dict[Hashable, Recorded | None] = {}
        self._recorded = options.recorded and not options.compiled and device.type == "cpu"
        self._concurrent = ConcurrentStreams(device) if options.concurrent else None
        if options.compiled:
            # Not a decorator, which would load the compiler with this module.
            self._attend = torch.compiler.disable(_attend)

    def self_attention(self, module: AttentionModule) -> Attention:
        return self._with_rope(module, of_itself=True)

    def cross_attention(self, module: AttentionModule) -> Attention:
        return self._with_rope(module, of_itself=False)

    def text_attention(self, module: AttentionModule) -> Attention:
        attention = FastTextAttention(module)
        attention.to_q = self._single(module.to_q)
        # Keys and values of a prompt are computed once, and stay precise.
        attention.to_k = self._overlay.over(module.to_k, Joined(module.to_k))
        attention.to_v = self._overlay.over(module.to_v, Joined(module.to_v))
        attention.to_out = self._single(module.to_out[0])
        return attention

    def _with_rope(self, module: AttentionModule, of_itself: bool) -> Attention:
        attention = FastAttention(module, of_itself, self._joined)
        self._copied(module.to_q, module.to_k, module.to_v)
        attention.to_out = self._single(module.to_out[0])
        return attention

    def _joined(self, *parts: Joined) -> Callable[[Tensor], Tensor]:
        joined = _join(parts)
        fast = Fp8Linear(joined) if self.options.fp8 else joined
        return self._overlay.over(fast, *parts)

    def _single(self, linear: nn.Linear) -> Callable[[Tensor], Tensor]:
        if not self.options.fp8:
            return self._overlay.over(linear, Joined(linear))
        fast = self._overlay.over(Fp8Linear(linear), Joined(linear))
        self._copied(linear)
        return fast

    def feed_forward(self, module: FeedForward) -> Callable[[Tensor], Tensor]:
        first, second = module.net[0], module.net[2]
        if first.approximate != "tanh":
            return module
        overlaid = self._overlay.feed_forward(first, second)
        if overlaid is not None:
            return FastFeedForward(*overlaid)
        if self.options.fp8:
            fast = FastFeedForward(Fp8Gelu(first.proj), Fp8Linear(second))
            self._copied(first.proj, second)
            return fast
        # A compiled block fuses the GELU itself.
        if self.options.compiled or not SigmoidGelu.fits(first):
            return module
        return FastFeedForward(SigmoidGelu(first.proj), second)

    def _copied(self, *linears: nn.Linear) -> None:
        """Free the weights of layers that were copied into another form, if asked for."""
        if self._release:
            for linear in linears:
                linear.weight = nn.Parameter(linear.weight.new_empty(0), requires_grad=False)

    def compile(self, function: Function) -> Function:
        if not self.options.compiled:
            return function
        return cast(Function, torch.compile(function, dynamic=False))

    def normalise(self, norm: RMSNorm, x: Tensor) -> Tensor:
        return rms_norm(x, norm.weight, norm.eps)

    def modulate(self, params: AdaLNParams, x: Tensor) -> Tensor:
        return torch.addcmul(params.shift, x, params.scale)

    def residual_add(self, h: Tensor, out: Tensor, gate: Tensor | None) -> Tensor:
        return h.add_(out) if gate is None else h.addcmul_(out, gate)

    def per_stream(self, function: Callable[..., T], first: Pair[Any], *rest: Pair[Any]) -> Pair[T]:
        if self._concurrent is None:
            return first.map(function, *rest)
        return self._concurrent.map(function, first, *rest)

    def bind(self, view: View, layer: int) -> LayerView:
        if self.options.compiled:
            return UncompiledView(view, layer, self._attend)
        return super().bind(view, layer)

    def positions(
        self,
        core: LTX2VideoTransformer3DModel,
        counts: Counts,
        grid: tuple[int, int],
        sinks: int,
        growing: bool,
    ) -> Positions:
        kind = CompiledPositions if self.options.compiled else PairedPositions
        return kind(core, counts, grid, sinks, growing)

    def context(self, device: torch.device) -> AbstractContextManager[None]:
        if self.options.compiled:  # forwards may run in another thread than this was built in
            compat.set_up_compiler(COMPILED_SHAPES, TOLD)
        return attention_backend(device)

    def runner(self, model: Callable[..., Latents]) -> Callable[..., Latents]:
        if self._replays:
            return CudaGraphRunner(model)
        if not self._recorded:
            return model
        # Recordings hold the scales of adapters, which each stream may change for itself: it
        # records anew for each prompt, and a change of scales is one.
        shared = None if self._overlay.loras else self._recordings
        return ForwardReplay(model, shared)


class UncompiledView:
    """A bound view whose attention is not compiled.

    Where an attention writes and what it sees changes from block to block, so compiled code would
    be compiled anew for each.

    Args:
        view: the view.
        layer: number of the block.
        uncompiled: asks a view for attention, outside of compiled code.
    """

    def __init__(self, view: View, layer: int, uncompiled: Callable[..., Tensor]) -> None:
        self._view, self._layer, self._uncompiled = view, layer, uncompiled

    def attend(self, site: str, heads: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self._uncompiled(self._view, self._layer, site, heads, q, k, v)


def _attend(
    view: View, layer: int, site: str, heads: int, q: Tensor, k: Tensor, v: Tensor
) -> Tensor:
    return view.attend(layer, site, heads, q, k, v)


@torch.no_grad()
def accelerate(
    model: DualStream,
    options: InferenceOptions = DEFAULT,
    release: bool = False,
    overlay: Overlay | None = None,
) -> DualStream:
    """The student with the options that concern its blocks; the rollout knows the others.

    It shares the weights of ``model`` as they are now, and stays on its device.

    Args:
        model: the student.
        options: what makes the stream fast.
        release: free the model's weights that are copied (``FastKernels``).
        overlay: adapters to lay over the student.

    Raises:
        OmniForcingError: for an option that the device does not have.
    """
    device = model.sinks.device
    options.check(device)
    if overlay is not None:
        overlay.bind(model)
        if options.compiled:
            raise OmniForcingError(
                "model.speed-ups-conflict",
                "speed-up compiled and an adapter over the student exclude each other; leave one "
                "out, or merge the adapter with `omniforcing weights merge-lora`",
            )
    if not options.layers:
        return model if overlay is None else model.with_kernels(overlay.kernels(model))
    return model.with_kernels(FastKernels(options, device, release, overlay))
