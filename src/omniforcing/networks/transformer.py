"""LTX-2's dual-stream transformer: its weights and RoPE; ``model.transformer`` has the forward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from omniforcing.networks.layers import (
    AdaLayerNormSingle,
    Attention,
    FeedForward,
    RMSNorm,
    Rotation,
    TwoLinears,
    random_parameter,
    rope_frequencies,
    rotation_table,
)
from omniforcing.networks.network import Network, records_config

ROPE_TYPES = ("interleaved", "split")


class LTX2VideoTransformerBlock(nn.Module):
    """Weights of one block: self, text and cross-modal attention and feed-forward of each stream.

    Args:
        config: arguments of the transformer.
        widths: channels of video and audio.
    """

    def __init__(self, config: dict[str, Any], widths: tuple[int, int]) -> None:
        super().__init__()
        video, audio = widths
        eps, affine = config["norm_eps"], config["norm_elementwise_affine"]
        audio_heads = (config["audio_num_attention_heads"], config["audio_attention_head_dim"])
        heads = (config["num_attention_heads"], config["attention_head_dim"])

        def norm(dim: int) -> RMSNorm:
            return RMSNorm(dim, eps, affine)

        def attention(dim: int, sizes: tuple[int, int], keys: int | None, stream: str) -> Attention:
            return Attention(
                dim,
                *sizes,
                keys,
                config["attention_bias"],
                config["attention_out_bias"],
                config["rope_type"],
                config[f"{stream}gated_attn"],
            )

        activation = config["activation_fn"]
        self.norm1 = norm(video)
        self.attn1 = attention(video, heads, None, "")
        self.audio_norm1 = norm(audio)
        self.audio_attn1 = attention(audio, audio_heads, None, "audio_")
        self.norm2 = norm(video)
        self.attn2 = attention(video, heads, config["cross_attention_dim"], "")
        self.audio_norm2 = norm(audio)
        text = config["audio_cross_attention_dim"]
        self.audio_attn2 = attention(audio, audio_heads, text, "audio_")
        self.audio_to_video_norm = norm(video)
        self.audio_to_video_attn = attention(video, audio_heads, audio, "")
        self.video_to_audio_norm = norm(audio)
        self.video_to_audio_attn = attention(audio, audio_heads, video, "audio_")
        self.norm3 = norm(video)
        self.ff = FeedForward(video, activation, config["ff_bias"])
        self.audio_norm3 = norm(audio)
        self.audio_ff = FeedForward(audio, activation, config["audio_ff_bias"])

        modulates = config["cross_attn_mod"], config["audio_cross_attn_mod"]
        self.video_cross_attn_adaln, self.audio_cross_attn_adaln = modulates
        self.scale_shift_table = _table(_rows(modulates[0]), video)
        self.audio_scale_shift_table = _table(_rows(modulates[1]), audio)
        self.cross_attn_adaln = any(modulates)
        if self.cross_attn_adaln:
            self.prompt_scale_shift_table = random_parameter(torch.randn, 2, video)
            self.audio_prompt_scale_shift_table = random_parameter(torch.randn, 2, audio)
        self.video_a2v_cross_attn_scale_shift_table = random_parameter(torch.randn, 5, video)
        self.audio_a2v_cross_attn_scale_shift_table = random_parameter(torch.randn, 5, audio)


def _rows(modulates_text: bool) -> int:
    """Rows of a stream's adaLN table: three for each of its own sub-layers."""
    return 9 if modulates_text else 6


def _table(rows: int, dim: int) -> nn.Parameter:
    return random_parameter(lambda shape: torch.randn(shape) / dim**0.5, rows, dim)


class Rope(nn.Module):
    """RoPE of one stream: places in time and in the picture, and their angles. No weights.

    Args:
        dim: channels of all heads.
        heads: number of heads.
        ends: the place along each axis that counts as 1: seconds, and rows and columns of pixels.
        factors: frames and pixels, or mel frames, of a latent along each axis.
        config: arguments of the transformer.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        ends: tuple[int, ...],
        factors: Sequence[int],
        config: dict[str, Any],
    ) -> None:
        super().__init__()
        self.dim, self.num_attention_heads, self.ends = dim, heads, ends
        self.rope_type = config["rope_type"]
        if self.rope_type not in ROPE_TYPES:
            raise ValueError(f"rope_type is {self.rope_type!r}, not {' or '.join(ROPE_TYPES)}")
        self.scale_factors, self.causal_offset = tuple(factors), config["causal_offset"]
        self.theta, self.double_precision = config["rope_theta"], config["rope_double_precision"]
        self.patch_size, self.patch_size_t = config["patch_size"], config["patch_size_t"]
        self.audio_patch_size_t = config["audio_patch_size_t"]
        self.sampling_rate = config["audio_sampling_rate"]
        self.hop_length = config["audio_hop_length"]

    def prepare_video_coords(
        self,
        batch_size: int,
        num_frames: int,
        height: int,
        width: int,
        device: torch.device | str,
        fps: float = 24.0,
    ) -> Tensor:
        """First and last second, row and column of every video token, ``[B, 3, N, 2]``."""
        sizes = (self.patch_size_t, self.patch_size, self.patch_size)
        axes = [
            torch.arange(0, end, step, dtype=torch.float32, device=device)
            for end, step in zip((num_frames, height, width), sizes, strict=True)
        ]
        first = torch.stack(torch.meshgrid(*axes, indexing="ij"))
        last = first + torch.tensor(sizes, dtype=first.dtype, device=first.device).view(3, 1, 1, 1)
        latents = torch.stack([first, last], -1).flatten(1, 3).unsqueeze(0)
        latents = latents.repeat(batch_size, 1, 1, 1)
        places = latents * torch.tensor(self.scale_factors, device=latents.device).view(1, -1, 1, 1)
        # The first latent holds one frame, so every later one begins that much earlier.
        frames = (places[:, 0] + self.causal_offset - self.scale_factors[0]).clamp(min=0)
        places[:, 0] = frames / fps
        return places

    def prepare_audio_coords(
        self, batch_size: int, num_frames: int, device: torch.device | str, shift: int = 0
    ) -> Tensor:
        """First and last second of every audio latent, ``[B, 1, N, 2]``."""
        step, factor = self.audio_patch_size_t, self.scale_factors[0]
        latents = torch.arange(shift, num_frames + shift, step, dtype=torch.float32, device=device)
        seconds = []
        for edge in (latents, latents + step):
            mels = (edge * factor + self.causal_offset - factor).clip(min=0)
            seconds.append(mels * self.hop_length / self.sampling_rate)
        return torch.stack(seconds, -1).unsqueeze(0).expand(batch_size, -1, -1).unsqueeze(1)

    def forward(self, coords: Tensor) -> Rotation:
        """Rotation table of tokens at ``coords [B, axes, N, 2]``."""
        first, last = coords.chunk(2, -1)
        middle = ((first + last) / 2.0).squeeze(-1)
        axes = middle.shape[1]
        places = torch.stack([middle[:, axis] / self.ends[axis] for axis in range(axes)], -1)
        count = self.dim // (2 * axes)
        frequencies = rope_frequencies(
            self.theta, count, self.double_precision, device=coords.device
        )
        angles = (places.unsqueeze(-1) * 2 - 1) * frequencies
        angles = angles.transpose(-1, -2).flatten(2)
        return rotation_table(angles, self.dim, self.rope_type, self.num_attention_heads)


class LTX2VideoTransformer3DModel(Network):
    """The transformer of LTX-2.0, 2.3 and 2.5; arguments and weights have diffusers' names.

    Raises:
        ValueError: for a RoPE convention, an activation or a norm that it does not have.
    """

    @records_config
    def __init__(
        self,
        in_channels: int = 128,
        out_channels: int | None = 128,
        patch_size: int = 1,
        patch_size_t: int = 1,
        num_attention_heads: int = 32,
        attention_head_dim: int = 128,
        cross_attention_dim: int = 4096,
        vae_scale_factors: tuple[int, int, int] = (8, 32, 32),
        pos_embed_max_pos: int = 20,
        base_height: int = 2048,
        base_width: int = 2048,
        gated_attn: bool = False,
        cross_attn_mod: bool = False,
        audio_in_channels: int = 128,
        audio_out_channels: int | None = 128,
        audio_patch_size: int = 1,
        audio_patch_size_t: int = 1,
        audio_num_attention_heads: int = 32,
        audio_attention_head_dim: int = 64,
        audio_cross_attention_dim: int = 2048,
        audio_scale_factor: int = 4,
        audio_pos_embed_max_pos: int = 20,
        audio_sampling_rate: int = 16000,
        audio_hop_length: int = 160,
        audio_gated_attn: bool = False,
        audio_cross_attn_mod: bool = False,
        num_layers: int = 48,
        activation_fn: str = "gelu-approximate",
        qk_norm: str = "rms_norm_across_heads",
        norm_elementwise_affine: bool = False,
        norm_eps: float = 1e-6,
        caption_channels: int = 3840,
        attention_bias: bool = True,
        attention_out_bias: bool = True,
        rope_theta: float = 10000.0,
        rope_double_precision: bool = True,
        causal_offset: int = 1,
        timestep_scale_multiplier: int = 1000,
        cross_attn_timestep_scale_multiplier: int = 1000,
        rope_type: str = "interleaved",
        use_prompt_embeddings: bool = True,
        perturbed_attn: bool = False,
        ff_bias: bool = True,
        audio_ff_bias: bool = True,
        use_prompt_adaln_single: bool = True,
        use_keyframes_abs_pos_embedding: bool = False,
    ) -> None:
        super().__init__()
        if qk_norm != "rms_norm_across_heads":
            raise ValueError(f"qk_norm is {qk_norm}, not rms_norm_across_heads")
        video = num_attention_heads * attention_head_dim
        audio = audio_num_attention_heads * audio_attention_head_dim
        self.proj_in = nn.Linear(in_channels, video)
        self.audio_proj_in = nn.Linear(audio_in_channels, audio)
        if use_keyframes_abs_pos_embedding:
            self.keyframes_abs_pos_embedding = nn.Parameter(torch.zeros(1, video))
        if use_prompt_embeddings:
            self.caption_projection = _caption_projection(caption_channels, video)
            self.audio_caption_projection = _caption_projection(caption_channels, audio)
        self.prompt_modulation = cross_attn_mod or audio_cross_attn_mod
        self.time_embed = AdaLayerNormSingle(video, _rows(cross_attn_mod))
        self.audio_time_embed = AdaLayerNormSingle(audio, _rows(audio_cross_attn_mod))
        self.av_cross_attn_video_scale_shift = AdaLayerNormSingle(video, 4)
        self.av_cross_attn_audio_scale_shift = AdaLayerNormSingle(audio, 4)
        self.av_cross_attn_video_a2v_gate = AdaLayerNormSingle(video, 1)
        self.av_cross_attn_audio_v2a_gate = AdaLayerNormSingle(audio, 1)
        self.scale_shift_table = _table(2, video)
        self.audio_scale_shift_table = _table(2, audio)
        if self.prompt_modulation and use_prompt_adaln_single:
            self.prompt_adaln = AdaLayerNormSingle(video, 2)
            self.audio_prompt_adaln = AdaLayerNormSingle(audio, 2)
        self._add_ropes(self.config, video, audio)
        self.transformer_blocks: Any = nn.ModuleList(
            LTX2VideoTransformerBlock(self.config, (video, audio)) for _ in range(num_layers)
        )
        self.norm_out = nn.LayerNorm(video, eps=1e-6, elementwise_affine=False)
        self.proj_out = nn.Linear(video, out_channels or in_channels)
        self.audio_norm_out = nn.LayerNorm(audio, eps=1e-6, elementwise_affine=False)
        self.audio_proj_out = nn.Linear(audio, audio_out_channels or audio_in_channels)

    def _add_ropes(self, config: dict[str, Any], video: int, audio: int) -> None:
        heads, audio_heads = config["num_attention_heads"], config["audio_num_attention_heads"]
        end, audio_end = config["pos_embed_max_pos"], config["audio_pos_embed_max_pos"]
        picture = (config["base_height"], config["base_width"])
        factors, mels = config["vae_scale_factors"], [config["audio_scale_factor"]]
        cross, cross_end = config["audio_cross_attention_dim"], max(end, audio_end)
        self.rope = Rope(video, heads, (end, *picture), factors, config)
        self.audio_rope = Rope(audio, audio_heads, (audio_end,), mels, config)
        self.cross_attn_rope = Rope(cross, heads, (cross_end, *picture), factors, config)
        self.cross_attn_audio_rope = Rope(cross, audio_heads, (cross_end,), mels, config)


def _caption_projection(channels: int, dim: int) -> TwoLinears:
    return TwoLinears(channels, dim, nn.GELU(approximate="tanh"), "act_1")
