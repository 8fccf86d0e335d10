"""The student as streams run it: the same layers and weights with projections joined and norms, adaLN and RoPE in fewer passes.

For inference alone, and equal to ``DualStream`` up to rounding. Queries and keys of the attentions with RoPE come with the two
channels of every rotation side by side, whatever order the weights have; their products do not notice.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.activations import GELU
from diffusers.models.normalization import RMSNorm
from torch import Tensor, nn

from omniforcing.latents import Latents, Pair
from omniforcing.layout import Span
from omniforcing.model.attention import Positions
from omniforcing.model.conditioning import KeyValue, Row
from omniforcing.model.gpu import Fp8Linear, Lanes
from omniforcing.model.layers import NONE, Attention, Bounds, Layer
from omniforcing.model.rope_layout import rope_rows
from omniforcing.model.speed import DEFAULT, Speed
from omniforcing.model.stabiliser import normalise_heads
from omniforcing.model.transformer import DualStream


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """Root mean square norm over the last dimension, in the fewest passes of either device."""
    if x.is_cuda or x.dtype is not torch.float32:
        return F.rms_norm(x, x.shape[-1:], weight, eps)
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    normed = x * torch.addcmul(_constant(eps), norm, norm, value=1 / x.shape[-1]).rsqrt_()
    return normed if weight is None else normed.mul_(weight)


@cache
def _constant(value: float) -> Tensor:
    return torch.tensor(value)


class PairedPositions(Positions):
    """RoPE tables as complex numbers ``[T, C / 2]``, for channels whose pairs stand side by side."""

    def _finish(self, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
        if cos.ndim == 4:  # split tables: heads, then their pairs
            cos, sin = (t[0].transpose(0, 1).flatten(1) for t in (cos, sin))
        else:  # interleaved ones say everything twice
            cos, sin = (t[0, :, ::2] for t in (cos, sin))
        return (torch.complex(cos.contiguous(), sin.contiguous()),)

    def rotate(self, x: Tensor, axes: str, stream: str, span: Span) -> Tensor:
        """Turn ``x [B, N, C]`` to the places ``span`` (N tokens) of a stream."""
        (table,) = self._table(axes, stream, x.device)
        pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * table[span.slice]).flatten(-2).to(x.dtype)


class FastAttention(Attention):
    """An attention with RoPE whose projections of the same states are one matrix product.

    Args:
        module: diffusers' module; its own weights stay as they are.
        bounds: of a stabiliser.
        of_itself: whether queries come from the same states as keys and values.
    """

    def __init__(self, module: nn.Module, bounds: Bounds = NONE, of_itself: bool = True) -> None:
        super().__init__(module, bounds)
        width, split = module.to_q.out_features, module.rope_type == "split"
        order = rope_rows(self.heads, width // self.heads, "interleaved") if split else torch.arange(width)
        order = order.to(module.to_q.weight.device)
        joined = ("to_q", "to_k", "to_v") if of_itself else ("to_k", "to_v")
        self.joined: Callable[[Tensor], Tensor] = _join([getattr(module, name) for name in joined], order)
        if not of_itself:
            self.asks = _join([module.to_q], order, values=False)
        self.width, self.eps = width, module.norm_q.eps
        self.gains = Pair(module.norm_q.weight[order], module.norm_k.weight[order])  # of queries and keys
        self.both = torch.stack([self.gains.video, self.gains.audio])

    def query(self, x: Tensor) -> Tensor:
        return rms_norm(self.asks(x), self.gains.video, self.eps)

    def key_value(self, x: Tensor) -> KeyValue:
        k, v = self.joined(x).split(self.width, -1)
        return rms_norm(k, self.gains.audio, self.eps), v

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        qk, v = self.joined(x).split([2 * self.width, self.width], -1)
        q, k = rms_norm(qk.unflatten(-1, (2, -1)), None, self.eps).mul_(self.both).unbind(-2)
        if self.bounds.qk_gain is not None:
            q, k = normalise_heads(q, self.heads, self.bounds.qk_gain), normalise_heads(k, self.heads)
        return q, k, v


class TextAttention(Attention):
    """The attention to the prompt, whose keys and values a stream has beforehand."""

    def query(self, x: Tensor) -> Tensor:
        return rms_norm(self.asks(x), self.module.norm_q.weight, self.module.norm_q.eps)


def _join(parts: list[nn.Linear], order: Tensor, values: bool = True) -> nn.Linear:
    """Projections as one, the rows of all but the values in ``order``."""
    orders = [order] * len(parts)
    if values:
        orders[-1] = torch.arange(len(order), device=order.device)
    like = parts[0].weight
    joined = nn.Linear(like.shape[1], len(order) * len(parts), parts[0].bias is not None, device="meta")
    joined.weight = nn.Parameter(torch.cat([p.weight[o] for p, o in zip(parts, orders, strict=True)]), requires_grad=False)
    if parts[0].bias is not None:
        joined.bias = nn.Parameter(torch.cat([p.bias[o] for p, o in zip(parts, orders, strict=True)]), requires_grad=False)
    return joined


class PackedGelu:
    """A linear layer and its GELU as one product of oneDNN, on a CPU in fp32; the weights are packed once."""

    def __init__(self, linear: nn.Linear) -> None:
        self.weight, self.bias = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach()), linear.bias

    def __call__(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "gelu", [], "tanh")

    @staticmethod
    def fits(gelu: nn.Module) -> bool:
        """Whether this machine has the kernel, and the module is what it computes."""
        weight = gelu.proj.weight
        return weight.device.type == "cpu" and weight.dtype == torch.float32 and torch.backends.mkldnn.is_available()


class FastLayer(Layer):
    """A block that keeps its weights in the form that is fastest to use.

    Args:
        block: diffusers' module.
        index: its place, by which a view knows it.
        bounds: what a stabiliser adds to the audio's self-attention.
        fp8: whether linear layers compute in fp8.
        lanes: two CUDA streams for the two streams of the block.
    """

    def __init__(self, block: nn.Module, index: int, bounds: Bounds, fp8: bool = False, lanes: Lanes | None = None) -> None:
        self._fp8, self._lanes = fp8, lanes
        super().__init__(block, index, bounds)

    def both(self, function: Callable[..., Tensor], *pairs: Pair[Any]) -> Latents:
        return super().both(function, *pairs) if self._lanes is None else self._lanes.both(function, self.parts, *pairs)

    def attention(self, module: nn.Module, bounds: Bounds = NONE, kind: str = "own") -> Attention:
        own = kind == "own"
        made = TextAttention(module) if kind == "text" else FastAttention(module, bounds, of_itself=own)
        if self._fp8:
            made.out = Fp8Linear(made.out)
            if not own:
                made.asks = Fp8Linear(made.asks)
            if isinstance(made, FastAttention):
                made.joined = Fp8Linear(made.joined)
        return made

    def feed_forward(self, module: nn.Module) -> Callable[[Tensor], Tensor]:
        first, second = module.net[0], module.net[2]
        if not isinstance(first, GELU) or first.approximate != "tanh":
            return module
        if self._fp8:
            wide, narrow = Fp8Linear(first.proj), Fp8Linear(second)
            return lambda x: narrow(F.gelu(wide(x), approximate="tanh"))
        if not PackedGelu.fits(first):
            return module
        packed = PackedGelu(first.proj)
        return lambda x: second(packed(x))

    def normalise(self, norm: nn.Module, x: Tensor) -> Tensor:
        return rms_norm(x, norm.weight, norm.eps) if isinstance(norm, RMSNorm) else norm(x)

    def modulate(self, row: Row, x: Tensor) -> Tensor:
        return torch.addcmul(row.shift, x, row.scale)

    def leave(self, h: Tensor, out: Tensor, gate: Tensor | None) -> Tensor:
        return h.add_(out) if gate is None else h.addcmul_(out, gate)


class FastStudent(DualStream):
    """A student for streams; shares the weights of the one it is made of, as they are now, and stays on its device.

    Args:
        model: the student.
        speed: which of the speed-ups that are its layers' own to use.

    Raises:
        OmniForcingError: for a speed-up that the device does not have.
    """

    positions = PairedPositions

    @torch.no_grad()
    def __init__(self, model: DualStream, speed: Speed = DEFAULT) -> None:
        speed.check(model.sinks.device)
        super().__init__(model.core, model.sinks.shape[0], model.stabiliser)
        for name, parameter in model.named_parameters(recurse=False):
            setattr(self, name, parameter)
        lanes = Lanes() if speed.concurrent else None
        blocks = enumerate(self.core.transformer_blocks)
        self._layers = [FastLayer(block, i, self.bounds(i), speed.fp8, lanes) for i, block in blocks]
        self.eval()

    def layers(self) -> list[Layer]:
        return list(self._layers)


def accelerate(model: DualStream, speed: Speed = DEFAULT) -> DualStream:
    """The student with those speed-ups that are its layers' own; the rollout knows the others.

    Raises:
        OmniForcingError: for a speed-up that the device does not have.
    """
    speed.check(model.sinks.device)
    return FastStudent(model, speed) if speed.layers else model
