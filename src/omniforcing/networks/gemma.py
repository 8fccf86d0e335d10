"""Gemma 3's text model, for the hidden states of all its layers; transformers' weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from omniforcing.networks.layers import Rotation
from omniforcing.networks.network import CONFIG, Loaded, NetworkConfig

WEIGHTS = "model.safetensors"
# What this network has of the choices that transformers offers.
_ONLY: dict[str, Any] = {
    "model_type": "gemma3_text",
    "hidden_activation": "gelu_pytorch_tanh",
    "attention_bias": False,
    "attn_logit_softcapping": None,
    "use_bidirectional_attention": False,
}


@dataclass(frozen=True)
class HiddenStates:
    """Result of the model: per layer ``[B, L, D]``, the embedding first, the last normalised."""

    hidden_states: tuple[Tensor, ...]


class GemmaNorm(nn.Module):
    """Divide by the root mean square, and scale by one plus the weights, in float32.

    Args:
        dim: channels.
        eps: added to the mean square.
    """

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        whole = x.float()
        normal = whole * torch.rsqrt(whole.pow(2).mean(-1, keepdim=True) + self.eps)
        return (normal * (1.0 + self.weight.float())).type_as(x)


class GemmaAttention(nn.Module):
    """Causal self-attention with normalised queries and keys.

    Args:
        config: the model's config.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        dim, self.head_dim = config.hidden_size, config.head_dim
        heads, keys = config.num_attention_heads, config.num_key_value_heads
        self.groups, self.scale = heads // keys, config.query_pre_attn_scalar**-0.5
        self.q_proj = nn.Linear(dim, heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(dim, keys * self.head_dim, bias=False)
        self.v_proj = nn.Linear(dim, keys * self.head_dim, bias=False)
        self.o_proj = nn.Linear(heads * self.head_dim, dim, bias=False)
        self.q_norm = GemmaNorm(self.head_dim, config.rms_norm_eps)
        self.k_norm = GemmaNorm(self.head_dim, config.rms_norm_eps)

    def forward(self, x: Tensor, mask: Tensor | None, rotation: Rotation) -> Tensor:
        """Attend.

        Args:
            x: ``[B, L, D]``.
            mask: which keys a query sees, ``[B, 1, L, L]``; None for itself and all before it.
            rotation: cosines and sines ``[1, L, head_dim]``.
        """
        q, k, v = (
            layer(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = _rotated(self.q_norm(q), rotation), _rotated(self.k_norm(k), rotation)
        shares = self.groups > 1 and mask is None and self.head_dim <= 256
        if self.groups > 1 and not shares:
            k, v = (t.repeat_interleave(self.groups, 1) for t in (k, v))
        mixed = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            scale=self.scale,
            is_causal=mask is None and x.shape[1] > 1,
            enable_gqa=shares,
        )
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


def _rotated(x: Tensor, rotation: Rotation) -> Tensor:
    cos, sin = (table.unsqueeze(1) for table in rotation)
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


class GemmaMLP(nn.Module):
    """Gated feed-forward.

    Args:
        config: the model's config.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        dim, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(dim, inner, bias=False)
        self.up_proj = nn.Linear(dim, inner, bias=False)
        self.down_proj = nn.Linear(inner, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate = F.gelu(self.gate_proj(x), approximate="tanh")
        return self.down_proj(gate * self.up_proj(x))


class GemmaLayer(nn.Module):
    """Attention and feed-forward, each with a norm before and after it.

    Args:
        config: the model's config.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        dim, eps = config.hidden_size, config.rms_norm_eps
        self.self_attn, self.mlp = GemmaAttention(config), GemmaMLP(config)
        self.input_layernorm = GemmaNorm(dim, eps)
        self.post_attention_layernorm = GemmaNorm(dim, eps)
        self.pre_feedforward_layernorm = GemmaNorm(dim, eps)
        self.post_feedforward_layernorm = GemmaNorm(dim, eps)

    def forward(self, x: Tensor, mask: Tensor | None, rotation: Rotation) -> Tensor:
        mixed = self.self_attn(self.input_layernorm(x), mask, rotation)
        x = x + self.post_attention_layernorm(mixed)
        fed = self.mlp(self.pre_feedforward_layernorm(x))
        return x + self.post_feedforward_layernorm(fed)


class GemmaEmbedding(nn.Module):
    """Embedded tokens, scaled.

    Args:
        config: the model's config.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        # Not an nn.Embedding, whose start values make torch load its compiler on the meta device.
        self.weight = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))
        self.scale = config.hidden_size**0.5

    def forward(self, ids: Tensor) -> Tensor:
        # The factor is a tensor of the weights' precision, as the model was trained.
        return F.embedding(ids, self.weight) * torch.tensor(self.scale).to(self.weight)


class GemmaText(nn.Module):
    """The text model.

    Args:
        config: contents of its ``config.json``.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.config = known = NetworkConfig(config)
        self.embed_tokens = GemmaEmbedding(known)
        self.layers = nn.ModuleList(GemmaLayer(known) for _ in range(known.num_hidden_layers))
        self.norm = GemmaNorm(known.hidden_size, known.rms_norm_eps)

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype = torch.float32) -> Loaded:
        """Read a folder that ``covers`` accepts.

        Raises:
            OSError: if a file is missing or cannot be read.
            ValueError: if the config is no json object.
            RuntimeError: if a tensor has another shape than the config's.
            SafetensorError: if the weights are damaged.
        """
        with torch.device("meta"):
            network = cls(json.loads((folder / CONFIG).read_text()))
        state = {name: tensor.to(dtype) for name, tensor in load_file(folder / WEIGHTS).items()}
        found = network.load_state_dict(state, strict=False, assign=True)
        return Loaded(network.eval(), found.missing_keys, found.unexpected_keys)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        output_hidden_states: bool = True,
    ) -> HiddenStates:
        """Hidden states of token ids ``[B, L]``; the mask has 0 for padding."""
        x = self.embed_tokens(input_ids)
        kinds = set(self.config.layer_types)
        masks = {kind: self._mask(kind, attention_mask.bool()) for kind in kinds}
        rotations = {kind: self._rotation(kind, x) for kind in kinds}
        states = [x]
        for kind, layer in zip(self.config.layer_types, self.layers, strict=True):
            x = layer(x, masks[kind], rotations[kind])
            states.append(x)
        return HiddenStates((*states[:-1], self.norm(x)))

    def _mask(self, kind: str, present: Tensor) -> Tensor | None:
        length, window = present.shape[1], self.config.sliding_window
        slides = kind == "sliding_attention"
        if bool(present.all()) and not (slides and length >= window):
            return None
        places = torch.arange(length, device=present.device)
        queries, keys = places[:, None], places[None, :]
        seen = keys <= queries
        if slides:
            seen = seen & (keys > queries - window)
        return seen & present[:, None, None, :]

    def _rotation(self, kind: str, x: Tensor) -> Rotation:
        theta, dim = self.config.rope_parameters[kind]["rope_theta"], self.config.head_dim
        steps = torch.arange(0, dim, 2, dtype=torch.float).to(x.device) / dim
        places = torch.arange(x.shape[1], device=x.device)[None, :, None]
        angles = places.float() * (1.0 / theta**steps)
        angles = torch.cat([angles, angles], -1)
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


def covers(folder: Path) -> bool:
    """Whether this network computes what a folder's config describes."""
    try:
        config = json.loads((folder / CONFIG).read_text())
        ropes = config["rope_parameters"]
        plain = all(ropes[kind]["rope_type"] == "default" for kind in set(config["layer_types"]))
        only = all(config[key] == value for key, value in _ONLY.items())
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return only and plain and (folder / WEIGHTS).is_file()
