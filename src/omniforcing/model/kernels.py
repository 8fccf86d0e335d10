"""How the sub-layers of a transformer block compute: the plain strategy, by its own modules.

``inference.fast.FastKernels`` is the other strategy. A block (``block.TransformerBlock``) asks
its kernels for attentions and feed-forwards when it is built and for the element-wise steps when
it runs, so its structure stands once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from omniforcing.core.latents import Latents
from omniforcing.core.layout import Counts
from omniforcing.core.pair import Pair
from omniforcing.model.attention import Positions, View
from omniforcing.model.conditioning import AdaLNParams, KeyValue
from omniforcing.model.functions import few_passes
from omniforcing.model.stabiliser import gate_heads, normalise_heads
from omniforcing.networks.layers import Attention as AttentionModule
from omniforcing.networks.layers import FeedForward, RMSNorm
from omniforcing.networks.transformer import LTX2VideoTransformer3DModel

Function = TypeVar("Function", bound=Callable[..., Any])
T = TypeVar("T")
# Gives the function that computes a linear layer of a block.
Linear = Callable[[nn.Linear], Callable[[Tensor], Tensor]]


def _as_it_is(module: nn.Linear) -> Callable[[Tensor], Tensor]:
    return module


def _normalise(norm: RMSNorm | nn.RMSNorm, x: Tensor) -> Tensor:
    """A root mean square norm, of torch or LTX-2."""
    if norm.eps is not None and few_passes.in_few_passes(x):
        return few_passes.rms_norm(x, norm.weight, norm.eps)
    return norm(x)  # type: ignore[no-any-return]


class StabiliserParams(NamedTuple):
    """A stabiliser's parameters for the audio self-attention of one block, ``[heads]`` each.

    Attributes:
        qk_gain: gains of the normalised heads.
        tanh_gate: gates of the heads.
    """

    qk_gain: Tensor | None = None
    tanh_gate: Tensor | None = None


NO_STABILISER = StabiliserParams()


class ProjectedStates(NamedTuple):
    """Un-rotated queries and keys, and values, ``[B, N, C]`` each, of the same hidden states."""

    q: Tensor
    k: Tensor
    v: Tensor


class Attention:
    """An attention module of the transformer, taken apart where a view decides what queries see.

    Args:
        module: the attention's weights.
        linear: gives what computes one of its projections; by default the projection itself.
    """

    def __init__(self, module: AttentionModule, linear: Linear = _as_it_is) -> None:
        self.module, self.heads = module, module.heads
        self.to_q, self.to_k = linear(module.to_q), linear(module.to_k)
        self.to_v, self.to_out = linear(module.to_v), linear(module.to_out[0])

    def query(self, x: Tensor) -> Tensor:
        """Un-rotated queries ``[B, N, C]`` of hidden states."""
        return _normalise(self.module.norm_q, self.to_q(x))

    def key_value(self, x: Tensor) -> KeyValue:
        """Un-rotated keys, and values, ``[..., N, C]``, of hidden states."""
        return KeyValue(_normalise(self.module.norm_k, self.to_k(x)), self.to_v(x))

    def project(self, x: Tensor, stabiliser: StabiliserParams) -> ProjectedStates:
        """Queries, keys and values of the same hidden states ``[B, N, D]``."""
        # Queries first: the order decides in which order the backward pass adds up gradients.
        q = self.query(x)
        k, v = self.key_value(x)
        return self._stabilised(q, k, v, stabiliser)

    def _stabilised(
        self, q: Tensor, k: Tensor, v: Tensor, stabiliser: StabiliserParams
    ) -> ProjectedStates:
        if stabiliser.qk_gain is not None:
            q = normalise_heads(q, self.heads, stabiliser.qk_gain)
            k = normalise_heads(k, self.heads)
        return ProjectedStates(q, k, v)

    def output(
        self, x: Tensor, mixed: Tensor, stabiliser: StabiliserParams = NO_STABILISER
    ) -> Tensor:
        """Output projection, after the gates that a release or a stabiliser has.

        Args:
            x: hidden states of the queries, ``[B, N, D]``.
            mixed: values mixed by the attention weights, ``[B, N, heads * head_dim]``.
            stabiliser: parameters of the stabiliser.
        """
        if self.module.to_gate_logits is not None:
            gates = 2 * torch.sigmoid(self.module.to_gate_logits(x))
            mixed = (mixed.unflatten(-1, (self.heads, -1)) * gates.unsqueeze(-1)).flatten(2)
        if stabiliser.tanh_gate is not None:
            mixed = gate_heads(mixed, stabiliser.tanh_gate)
        return self.to_out(mixed)


class LayerView(Protocol):
    """A view as one block sees it: its layer is known."""

    def attend(self, site: str, heads: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention output ``[B, Nq, heads * head_dim]``, as ``View.attend`` gives it."""
        ...


class BoundView:
    """A view and the layer that asks it."""

    def __init__(self, view: View, layer: int) -> None:
        self._view, self._layer = view, layer

    def attend(self, site: str, heads: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self._view.attend(self._layer, site, heads, q, k, v)


@dataclass(frozen=True)
class TwoLayers:
    """Two linear layers with a GELU between them.

    No closure: a deep copy of a model must compute with its own layers.
    """

    expand: Callable[[Tensor], Tensor]
    contract: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor) -> Tensor:
        return self.contract(few_passes.gelu(self.expand(x)))


class Kernels:
    """The plain strategy: every sub-layer computes as its module does.

    Attributes:
        draws: whether a forward with gradient draws random numbers (dropout), which a recomputed
            one must draw again.
    """

    draws = False

    # What a block asks for when it is built.

    def self_attention(self, module: AttentionModule) -> Attention:
        """Attention of a stream to itself."""
        return Attention(module)

    def cross_attention(self, module: AttentionModule) -> Attention:
        """Attention of one stream to the other."""
        return Attention(module)

    def text_attention(self, module: AttentionModule) -> Attention:
        """Attention to the prompt, whose keys and values are cached."""
        return Attention(module)

    def feed_forward(self, module: FeedForward) -> Callable[[Tensor], Tensor]:
        """Feed-forward network of one stream."""
        return self._feed_forward(module, _as_it_is)

    @staticmethod
    def _feed_forward(module: FeedForward, linear: Linear) -> Callable[[Tensor], Tensor]:
        first, second = module.net[0], module.net[2]
        assert first.approximate == "tanh", "LTX-2 has no other"
        return TwoLayers(linear(first.proj), linear(second))

    def compile(self, function: Function) -> Function:
        """Compile a part of the block that lies between attentions, if the strategy does."""
        return function

    # What a block asks for when it runs.

    def normalise(self, norm: RMSNorm, x: Tensor) -> Tensor:
        """Normalise hidden states ``[B, N, D]``."""
        return _normalise(norm, x)

    def modulate(self, params: AdaLNParams, x: Tensor) -> Tensor:
        """adaLN, ``x * scale + shift``, of normalised states."""
        return params.modulate(x)

    def residual_add(self, h: Tensor, out: Tensor, gate: Tensor | None) -> Tensor:
        """Residual add, ``h + gate * out``; the caller does not use ``h`` again."""
        return h + out if gate is None else few_passes.multiply_add(out, gate, h)

    def per_stream(self, function: Callable[..., T], first: Pair[Any], *rest: Pair[Any]) -> Pair[T]:
        """Apply ``function`` to both streams, as ``first.map(function, *rest)``."""
        return first.map(function, *rest)

    def bind(self, view: View, layer: int) -> LayerView:
        """A view as the block of number ``layer`` sees it."""
        return BoundView(view, layer)

    # What a model asks for.

    def positions(
        self,
        core: LTX2VideoTransformer3DModel,
        counts: Counts,
        grid: tuple[int, int],
        sinks: int,
        growing: bool,
    ) -> Positions:
        """RoPE tables that fit the order of this strategy's query and key channels."""
        return Positions(core, counts, grid, sinks, growing)

    def context(self, device: torch.device) -> AbstractContextManager[None]:  # noqa: ARG002
        """Context in which forwards run."""
        return nullcontext()

    def runner(self, model: Callable[..., Latents]) -> Callable[..., Latents]:
        """What a stream calls for a forward: the model, or recorded forwards of it."""
        return model


class AdaptedKernels(Kernels):
    """The plain strategy with something in place of some linear layers.

    Args:
        layers: what computes a layer, by the identity of the layer it stands for.
        draws: whether it draws random numbers.
    """

    def __init__(
        self, layers: Mapping[int, Callable[[Tensor], Tensor]], draws: bool = False
    ) -> None:
        self._layers, self.draws = layers, draws

    def _linear(self, module: nn.Linear) -> Callable[[Tensor], Tensor]:
        return self._layers.get(id(module), module)

    def self_attention(self, module: AttentionModule) -> Attention:
        return Attention(module, self._linear)

    cross_attention = text_attention = self_attention

    def feed_forward(self, module: FeedForward) -> Callable[[Tensor], Tensor]:
        return self._feed_forward(module, self._linear)


PLAIN = Kernels()
