"""Our forward over LTX-2's modules: one per-layer code path for teacher, critic and student.

The modules are diffusers' ``LTX2VideoTransformer3DModel`` with ``use_cross_timestep=False``, so every weight of LTX-2.0, 2.3
and 2.5 loads by name; the architecture always comes from its config. What a query sees is the view's business
(``attention.py``), what a sigma and a prompt decide is made before (``conditioning.py``).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator

import torch
from diffusers import LTX2VideoTransformer3DModel
from torch import Tensor, nn

from omniforcing.core.config import Stabiliser
from omniforcing.core.errors import OmniForcingError
from omniforcing.core.latents import Latents, Pair, TextFeatures
from omniforcing.core.layout import FRAMES_PER_LATENT, HOP, MEL_PER_LATENT, SAMPLE_RATE
from omniforcing.model.attention import Positions, View
from omniforcing.model.conditioning import Conditions, Row, Sigma, TextCache
from omniforcing.model.layers import Bounds, Layer
from omniforcing.model.stabiliser import WITH_SINKS, added_parameters

# What the forward and the block table take for granted, as every LTX-2 release has it.
_FIXED = {
    **dict.fromkeys(("patch_size", "patch_size_t", "audio_patch_size", "audio_patch_size_t"), 1),
    "causal_offset": 1,
    "audio_sampling_rate": SAMPLE_RATE,
    "audio_hop_length": HOP,
    "audio_scale_factor": MEL_PER_LATENT,
}


class DualStream(nn.Module):
    """Video and audio streams joined in every layer, with learnable audio sinks in front when a view starts the stream.

    Args:
        core: diffusers' transformer, of any LTX-2 generation.
        sinks: number of sink tokens S in hidden space (paper section 3.3); 0 for bidirectional models.
        stabiliser: what keeps the audio's self-attention in bounds; its parameters start afresh.
        checkpoint_activations: keep the inputs of each block alone in a forward with gradient,
            and compute the rest again in the backward.

    Raises:
        OmniForcingError: for an architecture this forward does not cover.
    """

    positions: type[Positions] = Positions
    sinks: nn.Parameter
    qk_gain: nn.Parameter | None
    tanh_gate: nn.Parameter | None
    # Where the weights come from, of a model that has no memory for them yet.
    weights: Callable[[], Iterator[tuple[str, Tensor]]] | None = None

    def __init__(
        self,
        core: LTX2VideoTransformer3DModel,
        sinks: int = 0,
        stabiliser: Stabiliser = Stabiliser.sinks,
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__()
        check_architecture(core)
        if sinks and stabiliser not in WITH_SINKS:
            raise OmniForcingError(
                "config.inconsistent",
                f"a student with stabiliser {stabiliser.value} has no sinks, found {sinks}; "
                "set student.sinks to 0",
            )
        self.core, self.stabiliser = core, stabiliser
        self.checkpoint_activations = checkpoint_activations
        width, heads = core.audio_proj_in.out_features, core.config.audio_num_attention_heads
        added = added_parameters(stabiliser, sinks, width, len(core.transformer_blocks), heads)
        for name, parameter in added.items():
            self.register_parameter(name, parameter)

    def layers(self) -> list[Layer]:
        """The transformer's blocks as our forward runs them."""
        recompute = self.checkpoint_activations
        blocks = enumerate(self.core.transformer_blocks)
        return [Layer(block, index, self.bounds(index), recompute) for index, block in blocks]

    def bounds(self, index: int) -> Bounds:
        """What the stabiliser adds to the audio's self-attention of a layer."""
        return Bounds(*(None if p is None else p[index] for p in (self.qk_gain, self.tanh_gate)))

    def replayed(self) -> Callable[..., Latents]:
        """What a stream calls for a forward: the model, or what replays its recorded forwards."""
        return self

    def cache_text(self, text: TextFeatures) -> TextCache:
        """The prompt as every layer sees it; with gradient, so that the text path learns in rollouts."""
        return TextCache(self.core, self.layers(), text)

    def forward(self, x: Latents, sigma: Sigma, text: TextCache, view: View) -> Latents:
        """Velocity of latents.

        Args:
            x: video ``[B, Tv, S, Cv]``, audio ``[B, Ta, Ca]``, of any precision; computed in that of the weights.
            sigma: a number, ``[B]``, or ``[B, G]`` (a tuple for ``[G]``) with one value per group that ``view.owner`` names.
            text: from ``cache_text``, batch B (or 1).
            view: which keys the queries see.
        """
        shapes = x.map(lambda t: t.shape)
        cast = x.map(lambda t: t.to(self.core.proj_in.weight.dtype))
        hidden = Pair(
            self.core.proj_in(cast.video.flatten(1, 2)), self.core.audio_proj_in(cast.audio)
        )
        prepended = self.sinks.shape[0] if view.starts else 0
        if prepended:
            hidden = Pair(
                hidden.video,
                torch.cat([self.sinks.expand(hidden.audio.shape[0], -1, -1), hidden.audio], 1),
            )
        conditions = text.at(sigma, shapes.video[0])
        owner = view.owner.map(
            lambda o: None if o is None or conditions.groups == 1 else o.to(hidden.video.device)
        )
        runs = view.owner.map(lambda o: _runs(o, conditions))
        for layer, rows, keys in zip(
            self.layers(), conditions.layers, conditions.text, strict=True
        ):
            hidden = layer(hidden, rows, owner, keys, view, runs)
        core, head = (
            self.core,
            conditions.head.map(lambda row, o: row if o is None else row.spread(o), owner),
        )
        video = _head(hidden.video, core.norm_out, head.video, core.proj_out)
        audio = _head(hidden.audio, core.audio_norm_out, head.audio, core.audio_proj_out)
        return Pair(video.reshape(shapes.video), audio[:, prepended:])


def _head(x: Tensor, norm: nn.Module, row: Row, project: nn.Module) -> Tensor:
    return project(row(norm(x)))


def _runs(owner: Tensor | None, conditions: Conditions) -> list[int] | None:
    """Tokens of each group, in order, where each group has a text of its own."""
    if owner is None or conditions.text[0].video[0].ndim == 3:
        return None
    return torch.bincount(owner, minlength=conditions.groups).tolist()


def check_architecture(core: LTX2VideoTransformer3DModel) -> None:
    """Refuse what this forward would compute wrongly.

    Raises:
        OmniForcingError: naming the config key.
    """
    config = core.config
    known = {*inspect.signature(type(core).__init__).parameters}
    for key in config:
        if key not in known and not key.startswith("_"):
            raise OmniForcingError(
                "weights.unknown-key",
                f"transformer config: {key} is unknown to this version, which covers LTX-2.0, 2.3 and 2.5",
            )
    if config.num_attention_heads != config.audio_num_attention_heads:
        raise OmniForcingError(
            "weights.unsupported-config",
            f"transformer config: num_attention_heads is {config.num_attention_heads} but audio_num_attention_heads is "
            f"{config.audio_num_attention_heads}; the cross-modal RoPE needs them equal",
        )
    for key, value in _FIXED.items():
        if config[key] != value:
            raise OmniForcingError(
                "weights.unsupported-config",
                f"transformer config: {key} is {config[key]}, and only {value} is supported; "
                "use weights of LTX-2.0, 2.3 or 2.5",
            )
    if config.vae_scale_factors[0] != FRAMES_PER_LATENT:
        raise OmniForcingError(
            "weights.unsupported-config",
            f"transformer config: vae_scale_factors starts with {config.vae_scale_factors[0]}, but a video latent lasts "
            f"{FRAMES_PER_LATENT} frames",
        )
