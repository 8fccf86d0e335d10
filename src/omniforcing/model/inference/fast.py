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

from omniforcing.core.latents import Latents, Pair
from omniforcing.core.layout import Span
from omniforcing.model.attention import Positions, View
from omniforcing.model.conditioning import KeyValue, Row, Sigma, TextCache
from omniforcing.model.inference.gpu import Fp8Linear, Graphs, Lanes, attention_backend
from omniforcing.model.layers import NONE, Attention, Bounds, Layer
from omniforcing.model.options import DEFAULT, Speed
from omniforcing.model.stabiliser import normalise_heads
from omniforcing.model.transformer import DualStream
from omniforcing.model.weights.rope_layout import rope_rows

# Every stream, site and size of a block is compiled for itself; torch alone would give up after 8.
COMPILED_SHAPES = 128


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """Root mean square norm over the last dimension, in the fewest passes of either device."""
    if x.is_cuda or x.dtype is not torch.float32 or torch.compiler.is_compiling():
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


def turn(x: Tensor, table: Tensor) -> Tensor:
    """``x [B, N, C]`` with its pairs of channels turned by cosines and sines ``table [N, C / 2, 2]``."""
    (a, b), (cos, sin) = x.float().unflatten(-1, (-1, 2)).unbind(-1), table.unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2).to(x.dtype)


class CompiledPositions(PairedPositions):
    """The same in one compiled pass; complex numbers are not compiled."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._turn = torch.compile(turn, dynamic=True)

    def rotate(self, x: Tensor, axes: str, stream: str, span: Span) -> Tensor:
        """Turn ``x [B, N, C]`` to the places ``span`` (N tokens) of a stream."""
        (table,) = self._table(axes, stream, x.device)
        return self._turn(x, torch.view_as_real(table[span.slice]))


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
        order = (
            rope_rows(self.heads, width // self.heads, "interleaved")
            if split
            else torch.arange(width)
        )
        order = order.to(module.to_q.weight.device)
        joined = ("to_q", "to_k", "to_v") if of_itself else ("to_k", "to_v")
        self.joined: Callable[[Tensor], Tensor] = _join(
            [getattr(module, name) for name in joined], order
        )
        if not of_itself:
            self.asks = _join([module.to_q], order, values=False)
        self.width, self.eps = width, module.norm_q.eps
        gains = Pair(module.norm_q.weight, module.norm_k.weight)  # of queries and keys
        self.gains = gains.map(lambda gain: gain.index_select(0, order))
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
            q, k = (
                normalise_heads(q, self.heads, self.bounds.qk_gain),
                normalise_heads(k, self.heads),
            )
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
    joined = nn.Linear(
        like.shape[1], len(order) * len(parts), parts[0].bias is not None, device="meta"
    )
    taken = list(zip(parts, orders, strict=True))
    joined.weight = nn.Parameter(
        torch.cat([p.weight.index_select(0, o) for p, o in taken]), requires_grad=False
    )
    if parts[0].bias is not None:
        joined.bias = nn.Parameter(
            torch.cat([p.bias.index_select(0, o) for p, o in taken]), requires_grad=False
        )
    return joined


class PackedGelu:
    """A linear layer and its GELU as one product of oneDNN, on a CPU in fp32; the weights are packed once."""

    def __init__(self, linear: nn.Linear) -> None:
        self.weight, self.bias = (
            torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach()),
            linear.bias,
        )

    def __call__(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "gelu", [], "tanh")

    @staticmethod
    def fits(gelu: nn.Module) -> bool:
        """Whether this machine has the kernel, and the module is what it computes."""
        weight = gelu.proj.weight
        return (
            weight.device.type == "cpu"
            and weight.dtype == torch.float32
            and torch.backends.mkldnn.is_available()
        )


class FastLayer(Layer):
    """A block that keeps its weights in the form that is fastest to use.

    Args:
        block: diffusers' module.
        index: its place, by which a view knows it.
        bounds: what a stabiliser adds to the audio's self-attention.
        speed: whether linear layers compute in fp8, and whether what lies between attentions is compiled.
        lanes: two CUDA streams for the two streams of the block.
    """

    def __init__(
        self, block: nn.Module, index: int, bounds: Bounds, speed: Speed, lanes: Lanes | None = None
    ) -> None:
        self._speed, self._lanes, self._place = speed, lanes, index
        self._copied: list[
            nn.Linear
        ] = []  # diffusers' layers whose weights this one keeps in a form of its own
        super().__init__(block, index, bounds)
        if speed.compiled:
            # Once for all layers: what is compiled must not see what tells them apart, which the view keeps.
            self.index = 0
            for name in ("_attend", "_cross", "_feed"):
                setattr(self, name, torch.compile(getattr(self, name), dynamic=False))

    def seen(self, view: View) -> View:
        return _Apart(view, self._place) if self._speed.compiled else view

    def both(self, function: Callable[..., Tensor], *pairs: Pair[Any]) -> Latents:
        return (
            super().both(function, *pairs)
            if self._lanes is None
            else self._lanes.both(function, self.parts, *pairs)
        )

    def release(self) -> None:
        """Give up the weights of diffusers' layers that this one has copies of; the block is of no use by itself then."""
        for linear in self._copied:
            linear.weight = nn.Parameter(linear.weight.new_empty(0), requires_grad=False)
        self._copied.clear()

    def attention(self, module: nn.Module, bounds: Bounds = NONE, kind: str = "own") -> Attention:
        own = kind == "own"
        made = (
            TextAttention(module)
            if kind == "text"
            else FastAttention(module, bounds, of_itself=own)
        )
        if kind != "text":
            self._copied += [module.to_q, module.to_k, module.to_v]
        if self._speed.fp8:
            self._copied += [module.to_out[0], *([module.to_q] if kind == "text" else [])]
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
        if self._speed.fp8:
            self._copied += [first.proj, second]
            wide, narrow = Fp8Linear(first.proj), Fp8Linear(second)
            return lambda x: narrow(F.gelu(wide(x), approximate="tanh"))
        if self._speed.compiled or not PackedGelu.fits(first):
            return module
        self._copied.append(first.proj)
        packed = PackedGelu(first.proj)
        return lambda x: second(packed(x))

    def normalise(self, norm: nn.Module, x: Tensor) -> Tensor:
        return rms_norm(x, norm.weight, norm.eps) if isinstance(norm, RMSNorm) else norm(x)

    def modulate(self, row: Row, x: Tensor) -> Tensor:
        return torch.addcmul(row.shift, x, row.scale)

    def leave(self, h: Tensor, out: Tensor, gate: Tensor | None) -> Tensor:
        return h.add_(out) if gate is None else h.addcmul_(out, gate)


class _Apart:
    """One layer's view whose attention is not compiled: where it writes and what it sees changes from block to block."""

    def __init__(self, view: View, layer: int) -> None:
        self.starts, self.owner, self.kind, self._view, self._layer = (
            view.starts,
            view.owner,
            view.kind,
            view,
            layer,
        )

    @torch.compiler.disable
    def attend(self, layer: int, site: str, heads: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:  # noqa: ARG002
        return self._view.attend(self._layer, site, heads, q, k, v)


class FastStudent(DualStream):
    """A student for streams; shares the weights of the one it is made of, as they are now, and stays on its device.

    Args:
        model: the student.
        speed: which of the speed-ups that are its layers' own to use.
        release: free each weight of the model as soon as it is copied into another form. The model is then of no use by
            itself, and the student cannot be saved; 19B parameters take a fifth less memory, with fp8 half.

    Raises:
        OmniForcingError: for a speed-up that the device does not have.
    """

    @torch.no_grad()
    def __init__(self, model: DualStream, speed: Speed = DEFAULT, release: bool = False) -> None:
        speed.check(model.sinks.device)
        super().__init__(model.core, model.sinks.shape[0], model.stabiliser)
        for name, parameter in model.named_parameters(recurse=False):
            setattr(self, name, parameter)
        self.speed = speed
        if speed.compiled:
            torch._dynamo.config.recompile_limit = max(
                torch._dynamo.config.recompile_limit, COMPILED_SHAPES
            )
        self.positions = CompiledPositions if speed.compiled else PairedPositions
        lanes = Lanes(model.sinks.device) if speed.concurrent else None
        self._layers = []
        for index, block in enumerate(self.core.transformer_blocks):
            layer = FastLayer(block, index, self.bounds(index), speed, lanes)
            if release:
                layer.release()
            self._layers.append(layer)
        self.eval()

    def forward(self, x: Latents, sigma: Sigma, text: TextCache, view: View) -> Latents:
        """As the student's, on the device's fastest attention."""
        with attention_backend(self.sinks.device):
            return super().forward(x, sigma, text, view)

    def layers(self) -> list[Layer]:
        return list(self._layers)

    def replayed(self) -> Callable[..., Latents]:
        """CUDA graphs of this student's forwards, if it is compiled and on a GPU."""
        return Graphs(self) if self.speed.compiled and self.sinks.is_cuda else self


def accelerate(model: DualStream, speed: Speed = DEFAULT, release: bool = False) -> DualStream:
    """The student with those speed-ups that are its layers' own; the rollout knows the others.

    Args:
        release: free the model's weights that are copied (``FastStudent``).

    Raises:
        OmniForcingError: for a speed-up that the device does not have.
    """
    speed.check(model.sinks.device)
    return FastStudent(model, speed, release) if speed.layers else model
