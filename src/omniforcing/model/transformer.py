"""Our forward over LTX-2's modules: one code path for teacher, critic and student.

The modules are diffusers' ``LTX2VideoTransformer3DModel`` with ``use_cross_timestep=False``, so
every weight of LTX-2.0, 2.3 and 2.5 loads by name; the architecture comes from its config. The
view decides which keys a query sees (``attention.py``), ``conditioning.py`` prepares everything
that depends on sigma and prompt, the kernels decide how the blocks compute (``kernels.py``).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from omniforcing.core.errors import OmniForcingError
from omniforcing.core.latents import Latents, TextFeatures
from omniforcing.core.layout import FRAMES_PER_LATENT, HOP, MEL_PER_LATENT, SAMPLE_RATE, Counts
from omniforcing.core.pair import Pair
from omniforcing.model.attention import Positions, View
from omniforcing.model.block import BlockInputs, TransformerBlock
from omniforcing.model.conditioning import (
    AdaLNParams,
    Conditioning,
    Sigma,
    TextCache,
    project_text,
)
from omniforcing.model.config import Stabiliser
from omniforcing.model.kernels import PLAIN, Kernels, StabiliserParams
from omniforcing.model.stabiliser import WITH_SINKS, added_parameters
from omniforcing.networks.transformer import LTX2VideoTransformer3DModel

# Values that the forward and the block table rely on; every LTX-2 release has them.
_FIXED = {
    **dict.fromkeys(("patch_size", "patch_size_t", "audio_patch_size", "audio_patch_size_t"), 1),
    "causal_offset": 1,
    "audio_sampling_rate": SAMPLE_RATE,
    "audio_hop_length": HOP,
    "audio_scale_factor": MEL_PER_LATENT,
}
# Yields the weights of a model by name, one tensor at a time.
WeightSource = Callable[[], Iterator[tuple[str, Tensor]]]


class DualStream(nn.Module):
    """Video and audio streams that meet in every block, with learnable audio sinks in front.

    Args:
        core: diffusers' transformer, of any LTX-2 generation.
        sinks: number of sink tokens S in hidden space (paper section 3.3), prepended to the audio
            when a view starts the stream; 0 for bidirectional models.
        stabiliser: what keeps the audio's self-attention in bounds.
        checkpoint_activations: keep the inputs of each block alone in a forward with gradient,
            and compute the rest again in the backward.
        kernels: how the blocks compute.
        added: parameters of sinks and stabiliser, by name, to share with another model; None
            makes fresh ones.
        weights: source of the weights of a model that has no memory for them yet.

    Raises:
        OmniForcingError: for an architecture this forward does not cover.
    """

    # The model whose weights this one shares and adapts (``training.adapters``); else None.
    base: DualStream | None = None

    sinks: nn.Parameter
    qk_gain: nn.Parameter | None
    tanh_gate: nn.Parameter | None

    def __init__(
        self,
        core: LTX2VideoTransformer3DModel,
        sinks: int = 0,
        stabiliser: Stabiliser = Stabiliser.sinks,
        checkpoint_activations: bool = False,
        kernels: Kernels = PLAIN,
        added: Mapping[str, nn.Parameter | None] | None = None,
        weights: WeightSource | None = None,
    ) -> None:
        super().__init__()
        check_architecture(core)
        if sinks and stabiliser not in WITH_SINKS:
            raise OmniForcingError(
                "config.inconsistent",
                f"a student with stabiliser {stabiliser.value} has no sinks, found {sinks}; "
                "set student.sinks to 0",
            )
        self.core, self.stabiliser, self.kernels = core, stabiliser, kernels
        self.weights = weights
        if added is None:
            width, heads = core.audio_proj_in.out_features, core.config.audio_num_attention_heads
            blocks = len(core.transformer_blocks)
            added = added_parameters(stabiliser, sinks, width, blocks, heads)
        for name in ("sinks", "qk_gain", "tanh_gate"):
            self.register_parameter(name, added.get(name))
        # Plain objects, not modules: parameters keep diffusers' names.
        self.blocks: list[TransformerBlock] = []
        for index, module in enumerate(core.transformer_blocks):
            block = TransformerBlock(module, index, kernels, checkpoint_activations)
            self.blocks.append(block)

    def with_kernels(self, kernels: Kernels) -> DualStream:
        """A model that shares these weights and computes with other kernels; for inference."""
        added = dict(self.named_parameters(recurse=False))
        twin = DualStream(self.core, len(self.sinks), self.stabiliser, kernels=kernels, added=added)
        return twin.eval()

    def units(self) -> list[nn.Module]:
        """Modules of this model's own weights that are sharded each by itself: one per block."""
        return list(self.core.transformer_blocks)

    def take_weights(self) -> WeightSource | None:
        """Hand over the source of the weights, once; None for a model that has its weights."""
        source, self.weights = self.weights, None
        return source

    def runner(self) -> Callable[..., Latents]:
        """What a stream calls for a forward: the model, or recorded forwards of it."""
        return self.kernels.runner(self)

    def positions(
        self, counts: Counts, grid: tuple[int, int], sinks: int, growing: bool
    ) -> Positions:
        """RoPE tables over the first ``counts`` latents, in the form that the kernels use."""
        return self.kernels.positions(self.core, counts, grid, sinks, growing)

    def cache_text(self, text: TextFeatures) -> TextCache:
        """Cache the prompt's keys and values in every block.

        With gradient, where it is enabled: the text path learns in rollouts.

        Args:
            text: features ``[B, L, D]`` per stream.
        """
        return TextCache(self.core, self.blocks, self.project_text(text))

    def project_text(self, text: TextFeatures) -> TextFeatures:
        """Text features ``[B, L, D]`` as the blocks take them; a part of ``cache_text``."""
        return project_text(self.core, text)

    def forward(self, x: Latents, sigma: Sigma, text: TextCache, view: View) -> Latents:
        """Velocity of latents.

        Args:
            x: video ``[B, Tv, S, Cv]``, audio ``[B, Ta, Ca]``, of any precision; computed in that
                of the weights.
            sigma: a number, ``[B]``, or ``[B, G]`` (a tuple for ``[G]``) with one value per group
                that ``view.group_ids`` names.
            text: from ``cache_text``, batch B (or 1).
            view: which keys the queries see.
        """
        with self.kernels.context(self.sinks.device):
            hidden = self._project_in(x, view)
            conditioning = text.at(sigma, len(x.video))
            group_ids = self._group_ids(view, conditioning)
            group_sizes = view.group_ids.map(lambda ids: _group_sizes(ids, conditioning))
            for index, block in enumerate(self.blocks):
                inputs = BlockInputs(
                    conditioning.blocks[index],
                    group_ids,
                    group_sizes,
                    conditioning.text[index],
                    self._stabiliser_params(index),
                )
                hidden = block(hidden, inputs, view)
            out = self._project_out(hidden, conditioning, group_ids)
        prepended = hidden.audio.shape[1] - x.audio.shape[1]
        return Pair(out.video.reshape(x.video.shape), out.audio[:, prepended:])

    def _project_in(self, x: Latents, view: View) -> Latents:
        """Hidden states ``[B, N, D]`` of latents, sinks prepended where the view takes them."""
        x = x.map(lambda t: t.to(self.core.proj_in.weight.dtype))
        video = self.core.proj_in(x.video.flatten(1, 2))
        audio = self.core.audio_proj_in(x.audio)
        if view.starts and self.core.config.use_keyframes_abs_pos_embedding:
            # LTX-2.5 marks the tokens of the first video latent, which holds a single frame.
            first, rest = video.tensor_split([x.video.shape[2]], 1)
            video = torch.cat([first + self.core.keyframes_abs_pos_embedding, rest], 1)
        if view.takes_sinks and len(self.sinks):
            audio = torch.cat([self.sinks.expand(audio.shape[0], -1, -1), audio], 1)
        return Pair(video, audio)

    def _project_out(
        self, hidden: Latents, conditioning: Conditioning, group_ids: Pair[Tensor | None]
    ) -> Latents:
        """Velocity ``[B, N, C]`` of the last hidden states."""
        core = self.core

        def per_token(params: AdaLNParams, ids: Tensor | None) -> AdaLNParams:
            return params if ids is None else params.per_token(ids)

        head = conditioning.head.map(per_token, group_ids)
        video = core.proj_out(head.video.modulate(core.norm_out(hidden.video)))
        audio = core.audio_proj_out(head.audio.modulate(core.audio_norm_out(hidden.audio)))
        return Pair(video, audio)

    def _group_ids(self, view: View, conditioning: Conditioning) -> Pair[Tensor | None]:
        """The view's groups on the model's device; None where all tokens share one sigma."""
        device = self.sinks.device
        if conditioning.groups == 1:
            return Pair(None, None)
        return view.group_ids.map(lambda ids: None if ids is None else ids.to(device))

    def _stabiliser_params(self, index: int) -> StabiliserParams:
        """The stabiliser's parameters for a block.

        Looked up in each forward: sharding and loading replace the parameters.
        """
        gain = None if self.qk_gain is None else self.qk_gain[index]
        gate = None if self.tanh_gate is None else self.tanh_gate[index]
        return StabiliserParams(gain, gate)


def _group_sizes(group_ids: Tensor | None, conditioning: Conditioning) -> list[int] | None:
    """Tokens of each group, in order, where each group has a text of its own."""
    if group_ids is None or conditioning.text[0].video.keys.ndim == 3:
        return None
    return torch.bincount(group_ids, minlength=conditioning.groups).tolist()


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
                f"transformer config: {key} is unknown to this version, "
                "which covers LTX-2.0, 2.3 and 2.5",
            )
    if config.num_attention_heads != config.audio_num_attention_heads:
        raise OmniForcingError(
            "weights.unsupported-config",
            f"transformer config: num_attention_heads is {config.num_attention_heads} but "
            f"audio_num_attention_heads is {config.audio_num_attention_heads}; the cross-modal "
            "RoPE needs them equal",
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
            f"transformer config: vae_scale_factors starts with {config.vae_scale_factors[0]}, "
            f"but a video latent lasts {FRAMES_PER_LATENT} frames",
        )
