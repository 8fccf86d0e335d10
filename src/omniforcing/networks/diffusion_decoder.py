"""LTX-2.5's diffusion decoder: latents become a context volume, and noise becomes pixels in it.

Four stages of neighbourhood attention unfold the latents to one token for each patch of 4x4 pixels
and frame. A fifth turns noise into pixels in one step, given those tokens. Arguments and weights
have diffusers' names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omniforcing.networks.autoencoder import Decoded
from omniforcing.networks.layers import TimestepEmbedder
from omniforcing.networks.network import Network, records_config

# Queries that are attended to at a time, along time, height and width: more of them share the
# keys that they read, and compute more that their mask drops.
_TILE = (2, 8, 8)
_TOKENS = 16384  # tokens that a feed-forward holds at a time; its inner width is four times theirs
_MODULATIONS = 7  # rows of a checkpoint's adaLN; scale and shift are read, the three gates are not
_EPS, _ROPE_BASE = 1e-6, 10000.0


class Tiles(NamedTuple):
    """Tiles of an axis: which queries each has, and which keys those see.

    Attributes:
        queries: places ``[n, tile]``; beyond the end the last one again.
        first: first key of each tile ``[n]``.
        keys: number of keys of a tile.
        seen: which of a tile's keys a query sees ``[n, tile, keys]``.
    """

    queries: Tensor
    first: Tensor
    keys: int
    seen: Tensor


def tiles_of(length: int, kernel: int, tile: int, device: torch.device) -> Tiles:
    """Cut an axis into tiles of queries.

    A query sees ``kernel`` places around it; at the ends its window is shifted inward.
    """
    tile = min(tile, length)
    starts = torch.arange(0, length, tile, device=device)
    keys = min(length, tile + kernel - 1)
    first = (starts - kernel // 2).clamp(0, length - keys)
    queries = (starts[:, None] + torch.arange(tile, device=device)).clamp(max=length - 1)
    window = (queries - kernel // 2).clamp(0, length - kernel)[..., None]
    places = (first[:, None] + torch.arange(keys, device=device))[:, None]
    return Tiles(queries, first, keys, (places >= window) & (places < window + kernel))


def neighbourhood_attention(q: Tensor, k: Tensor, v: Tensor, kernel: Sequence[int]) -> Tensor:
    """Let each query attend to the box of keys around it, ``[B, T, H, W, heads, D]``.

    Args:
        q: queries, scaled.
        k: keys.
        v: values.
        kernel: size of the box.

    Raises:
        ValueError: if the grid is smaller than the box.
    """
    grid = q.shape[1:4]
    if any(size < needed for size, needed in zip(grid, kernel, strict=True)):
        raise ValueError(
            f"a grid of {tuple(grid)} tokens is smaller than its windows of {tuple(kernel)}"
        )
    axes = [tiles_of(n, size, t, q.device) for n, size, t in zip(grid, kernel, _TILE, strict=True)]
    times, rows, columns = axes
    # Tiles along the width are a batch: their keys are gathered, not sliced.
    gathered = columns.first[:, None] + torch.arange(columns.keys, device=q.device)
    out = torch.empty_like(v)
    for time in _places(times):
        for row in _places(rows):
            queries = q[:, time.queries][:, :, row.queries][:, :, :, columns.queries]
            keys, values = (x[:, time.keys, row.keys][:, :, :, gathered] for x in (k, v))
            mask = (
                time.seen[:, None, None, :, None, None]
                & row.seen[None, :, None, None, :, None]
                & columns.seen[:, None, None, :, None, None, :]
            )
            mixed = F.scaled_dot_product_attention(
                _as_batch(queries),
                _as_batch(keys),
                _as_batch(values),
                # One mask for each column of tiles, the same in all heads.
                attn_mask=mask.flatten(4).flatten(1, 3)[:, None].repeat(q.shape[0], 1, 1, 1),
                scale=1.0,
            )
            mixed = mixed.unflatten(0, (q.shape[0], -1)).unflatten(3, (*queries.shape[1:3], -1))
            # [B, columns, heads, t, h, w, D] -> [B, t, h, columns, w, heads, D]
            mixed = mixed.permute(0, 3, 4, 1, 5, 2, 6).flatten(3, 4)[:, :, :, : grid[2]]
            first, last = time.queries[0], time.queries[-1] + 1
            out[:, first:last, row.queries[0] : row.queries[-1] + 1] = mixed[
                :, : last - first, : row.queries[-1] + 1 - row.queries[0]
            ]
    return out


class _Place(NamedTuple):
    """A tile of an axis that is sliced."""

    queries: list[int]
    keys: slice
    seen: Tensor


def _places(tiles: Tiles) -> Iterator[_Place]:
    for queries, first, seen in zip(
        tiles.queries.tolist(), tiles.first.tolist(), tiles.seen, strict=True
    ):
        yield _Place(queries, slice(first, first + tiles.keys), seen)


def _as_batch(x: Tensor) -> Tensor:
    """``[B, t, h, columns, w, heads, D]`` as ``[B columns, heads, t h w, D]``."""
    return x.permute(0, 3, 5, 1, 2, 4, 6).flatten(3, 5).flatten(0, 1)


def _rotated(x: Tensor) -> Tensor:
    """Rotate neighbouring channels by the places of a token, ``[B, T, H, W, heads, D]``.

    A quarter of a head's channels stands for time, the rest half each for height and width.
    """
    dim = x.shape[-1]
    time = dim // 4 // 2 * 2
    time -= 2 * ((dim - time) // 2 % 2)
    out = []
    for axis, part in enumerate(x.split([time, *[(dim - time) // 2] * 2], -1)):
        count, size = part.shape[-1], x.shape[1 + axis]
        steps = torch.arange(0, count, 2, dtype=torch.float64, device=x.device) / count
        frequencies = (1.0 / _ROPE_BASE**steps).float()
        places = torch.arange(size, dtype=torch.float32, device=x.device)
        angles = places[:, None] * frequencies
        shape = [1] * 5 + [count // 2]
        shape[1 + axis] = size
        cos, sin = angles.cos().view(shape), angles.sin().view(shape)
        even, odd = part.float().unflatten(-1, (-1, 2)).unbind(-1)
        turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1)
        out.append(turned.flatten(-2).to(x.dtype))
    return torch.cat(out, -1)


class NeighbourhoodAttention(nn.Module):
    """Self-attention of tokens ``[B, T, H, W, C]`` to those around them.

    Args:
        dim: channels.
        kernel: size of the box around a token.
        head_dim: channels of a head.
    """

    def __init__(self, dim: int, kernel: Sequence[int], head_dim: int) -> None:
        super().__init__()
        self.kernel, self.head_dim = tuple(kernel), head_dim
        self.to_q, self.to_k, self.to_v = (nn.Linear(dim, dim) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(dim, dim), nn.Identity()])
        self.norm_q, self.norm_k = (nn.RMSNorm(head_dim, eps=_EPS) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (-1, self.head_dim))
            for layer in (self.to_q, self.to_k, self.to_v)
        )
        q, k = _rotated(self.norm_q(q) * self.head_dim**-0.5), _rotated(self.norm_k(k))
        return self.to_out[0](neighbourhood_attention(q, k, v, self.kernel).flatten(-2))


class GatedFeedForward(nn.Module):
    """``w_down(silu(w_gate x) * w_up x)``, a part of the tokens at a time.

    Args:
        dim: channels.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        inner = (4 * dim + 15) // 16 * 16
        self.w_up, self.w_gate = (nn.Linear(dim, inner, bias=False) for _ in range(2))
        self.w_down = nn.Linear(inner, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        parts = [
            self.w_down(F.silu(self.w_gate(part)) * self.w_up(part))
            for part in x.flatten(0, -2).split(_TOKENS)
        ]
        return torch.cat(parts).view(x.shape)


class Block(nn.Module):
    """Attention and feed-forward, each after a norm.

    Args:
        dim: channels.
        kernel: size of the box around a token.
        head_dim: channels of a head.
    """

    def __init__(self, dim: int, kernel: Sequence[int], head_dim: int) -> None:
        super().__init__()
        self.norm1 = nn.RMSNorm(dim, eps=_EPS)
        self.attn = NeighbourhoodAttention(dim, kernel, head_dim)
        self.norm2 = nn.RMSNorm(dim, eps=_EPS)
        self.mlp = GatedFeedForward(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PixelBlock(Block):
    """A block that also reads the context, and whose norms are modulated by the timestep.

    Args:
        dim: channels, of the context too.
        kernel: size of the box around a token.
        head_dim: channels of a head.
    """

    def __init__(self, dim: int, kernel: Sequence[int], head_dim: int) -> None:
        super().__init__(dim, kernel, head_dim)
        self.context_proj = nn.Linear(dim, dim)
        self.scale_shift_table = nn.Parameter(torch.zeros(_MODULATIONS, dim))

    def forward(self, x: Tensor, context: Tensor, modulation: Tensor) -> Tensor:  # type: ignore[override]
        """Update ``[B, T, H, W, C]``; the modulation is ``[B, 7, C]``."""
        rows = (modulation + self.scale_shift_table)[:, :, None, None, None].unbind(1)
        x = x + self.context_proj(context)
        x = x + self.attn(self.norm1(x) * (1 + rows[0]) + rows[1])
        return x + self.mlp(self.norm2(x) * (1 + rows[3]) + rows[4])


class Upsampler(nn.Module):
    """A linear layer whose channels unfold to more tokens.

    Args:
        dim: channels that go in.
        stride: factors of time, height and width.
        reduction: factor by which the channels become fewer.
    """

    def __init__(self, dim: int, stride: Sequence[int], reduction: int) -> None:
        super().__init__()
        self.stride = tuple(stride)
        self.proj = nn.Linear(dim, prod(stride) * dim // reduction)

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(x).unflatten(-1, (-1, *self.stride)).permute(0, 1, 5, 2, 6, 3, 7, 4)
        x = x.flatten(5, 6).flatten(3, 4).flatten(1, 2)
        # The first latent stands for one frame.
        return x[:, self.stride[0] - 1 :]


class PixelDiffusion(nn.Module):
    """All stages; see ``LTX2VideoDiffusionDecoderModel`` for the arguments."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        widths, depths = config["decoder_stage_channels"], config["decoder_stage_depths"]
        kernels, head = config["decoder_stage_kernels"], config["decoder_head_dim"]
        strides = config["decoder_upsample_strides"]
        self.patch_size = config["patch_size"]
        self.timestep = float(config["decoder_timestep_scale_multiplier"])  # of pure noise
        pixels, last = config["out_channels"] * self.patch_size**2, widths[-1]
        # At the end windows are shifted inward, which the last latent, repeated, moves behind it.
        self.repeats = kernels[0][0] // 2 * 2
        self.ratio = prod(stride[0] for stride in strides)
        self.conv_in = nn.Linear(config["latent_channels"], widths[0])
        self.det_stages, self.upsamples = nn.ModuleList(), nn.ModuleList()
        reductions = config["decoder_upsample_channel_reductions"]
        for width, depth, kernel, stride, reduction in zip(
            widths[:-1], depths[:-1], kernels[: len(strides)], strides, reductions, strict=True
        ):
            blocks = [Block(width, kernel, head) for _ in range(depth)]
            self.det_stages.append(nn.ModuleList(blocks))
            self.upsamples.append(Upsampler(width, stride, reduction))
        self.t_embedder = TimestepEmbedder(config["decoder_t_emb_dim"])
        self.conv_in_x_t = nn.Linear(pixels, last)
        self.shared_adaln = nn.ModuleDict(
            {"proj": nn.Linear(config["decoder_t_emb_dim"], _MODULATIONS * last)}
        )
        kernel = config["decoder_stage5_kernel"]
        self.diff_blocks = nn.ModuleList(PixelBlock(last, kernel, head) for _ in range(depths[-1]))
        self.norm_out = nn.RMSNorm(last, eps=_EPS)
        self.conv_out = nn.Linear(last, pixels)

    def context(self, z: Tensor) -> Tensor:
        """Unfold latents ``[B, C, t, h, w]`` to tokens ``[B, T, H / 4, W / 4, D]``."""
        x = torch.cat([z, z[:, :, -1:].expand(-1, -1, self.repeats, -1, -1)], 2)
        x = self.conv_in(x.permute(0, 2, 3, 4, 1))
        for blocks, upsample in zip(self.det_stages, self.upsamples, strict=True):
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x)
            x = upsample(x)
        return x[:, : x.shape[1] - self.repeats * self.ratio]

    def pixels(self, context: Tensor, noise: Tensor) -> Tensor:
        """Turn noise ``[B, 3, T, H, W]`` into pixels of the same shape, in one step from time 1."""
        patch = self.patch_size
        x = noise.unflatten(4, (-1, patch)).unflatten(3, (-1, patch))
        x = self.conv_in_x_t(x.permute(0, 2, 3, 5, 1, 6, 4).flatten(4))
        time = torch.full((x.shape[0],), self.timestep, device=x.device)
        embedded = self.t_embedder(time, context.dtype)
        modulation = self.shared_adaln["proj"](F.silu(embedded)).unflatten(1, (_MODULATIONS, -1))
        for block in self.diff_blocks:
            x = block(x, context, modulation)
        x = self.conv_out(self.norm_out(x)).unflatten(-1, (-1, patch, patch))
        return x.permute(0, 4, 1, 2, 6, 3, 5).flatten(5).flatten(3, 4)


class LTX2VideoDiffusionDecoderModel(Network):
    """The diffusion decoder; it has no encoder, and reads the latents of the convolutional VAE.

    Raises:
        ValueError: for a prediction, or a number of steps, that no release has.
    """

    @records_config
    def __init__(
        self,
        out_channels: int = 3,
        latent_channels: int = 128,
        patch_size: int = 4,
        scaling_factor: float = 1.0,
        decoder_head_dim: int = 64,
        decoder_stage_channels: Sequence[int] = (2048, 1024, 512, 512, 256),
        decoder_stage_depths: Sequence[int] = (4, 6, 4, 2, 8),
        decoder_stage_kernels: Sequence[Sequence[int]] = (
            *((3, 7, 7), (3, 7, 7)),
            *((3, 5, 5), (3, 5, 5)),
        ),
        decoder_upsample_strides: Sequence[Sequence[int]] = (
            *((1, 2, 2), (2, 1, 1)),
            *((2, 2, 2), (2, 2, 2)),
        ),
        decoder_upsample_channel_reductions: Sequence[int] = (2, 2, 1, 2),
        decoder_stage5_kernel: Sequence[int] = (11, 11, 11),
        decoder_t_emb_dim: int = 384,
        decoder_timestep_scale_multiplier: float = 1000.0,
        decoder_model_output_type: str = "x0",
        decoder_num_inference_steps: int = 1,
        spatial_compression_ratio: int = 32,
        temporal_compression_ratio: int = 8,
    ) -> None:
        super().__init__()
        told = decoder_model_output_type, decoder_num_inference_steps
        if told != ("x0", 1):
            raise ValueError(f"the diffusion decoder predicts {told}; ('x0', 1) is computed")
        self.decoder = PixelDiffusion(self.config)
        self.register_buffer("latents_mean", torch.zeros(latent_channels))
        self.register_buffer("latents_std", torch.ones(latent_channels))

    @property
    def smallest(self) -> tuple[int, int, int]:
        """Fewest latents, and rows and columns of them, that all windows fit into."""
        config = self.config
        strides, kernels = config.decoder_upsample_strides, config.decoder_stage_kernels
        least, scale = [1, 1, 1], [1, 1, 1]
        for stage in range(len(strides) + 1):
            last = stage == len(strides)
            kernel = config.decoder_stage5_kernel if last else kernels[stage]
            for axis in range(3):
                # The last latent is repeated in the first stages; of time the first one counts one.
                extra = (1 - scale[0] if last else self.decoder.repeats) if axis == 0 else 0
                needed = -(-(kernel[axis] - min(extra, 0)) // scale[axis]) - max(extra, 0)
                least[axis] = max(least[axis], needed)
            if not last:
                scale = [s * factor for s, factor in zip(scale, strides[stage], strict=True)]
        return least[0], least[1], least[2]

    def decode(self, z: Tensor, noise: Tensor) -> Decoded:
        """Decode latents ``[B, C, t, h, w]`` with noise ``[B, 3, T, H, W]`` to pixels."""
        return Decoded(self.decoder.pixels(self.decoder.context(z), noise))
