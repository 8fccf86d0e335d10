"""The baseline: a cached forward as public causal audio-video code runs it, on our weights.

It turns a dense mask into logits in every call, clones and joins the history at every step,
computes adaLN per token, builds RoPE tables and caption projections anew in every forward and
copies the text's keys and values. Its blocks equal ours up to rounding while the stream is within
its horizon.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.transformers.transformer_ltx2 import (
    apply_interleaved_rotary_emb,
    apply_split_rotary_emb,
)
from torch import Tensor

from omniforcing.core.errors import OmniForcingError
from omniforcing.core.latents import Latents, TextFeatures
from omniforcing.core.layout import Span
from omniforcing.core.pair import Pair
from omniforcing.model.attention import SITES
from omniforcing.model.conditioning import prompt_follows_sigma
from omniforcing.model.rollout import RolloutConfig, few_step, gaussian, refresh
from omniforcing.model.transformer import DualStream

Rope = tuple[Tensor, Tensor]


class PlainView:
    """One block of a ``PlainCache``: its queries see the block itself and the whole history."""

    def __init__(self, cache: PlainCache, index: int, write: bool) -> None:
        self.cache, self.index, self.write = cache, index, write

    def spans(self, stream: str) -> tuple[Span, Span]:
        """Return the tokens of this block and of the history, for ``video`` or ``audio``."""
        own = self.cache.span(self.index, stream)
        return own, Span(0, own.start)


class PlainCache:
    """Buffers of rotated keys and of values ``[B, N, C]`` for a whole clip, per layer and site.

    ``text`` holds the keys and values of the caption, filled by the first forward.
    """

    def __init__(self, student: PlainStudent, blocks: int) -> None:
        self.student, self.blocks = student, blocks
        self.buffers: dict[tuple[int, str], tuple[Tensor, Tensor]] = {}
        self.text: dict[tuple[int, str], tuple[Tensor, Tensor]] = {}

    def view(self, index: int, write: bool = False) -> PlainView:
        """Return the view of block ``index``."""
        return PlainView(self, index, write)

    def span(self, index: int, stream: str) -> Span:
        """Return the tokens of block ``index`` in ``video`` or ``audio``, sinks included."""
        grid = self.student.config.grid
        video, audio = self.student.config.table.block(index).tokens(
            grid[0] * grid[1], self.student.sinks
        )
        return video if stream == "video" else audio

    def join(
        self, key: tuple[int, str], view: PlainView, k: Tensor, v: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Store the block's keys and values; return a copy of the history's, followed by them."""
        own, past = view.spans(SITES[key[1]][1])
        if key not in self.buffers:
            shape = (k.shape[0], self.span(self.blocks - 1, SITES[key[1]][1]).stop, k.shape[2])
            self.buffers[key] = (k.new_zeros(shape), k.new_zeros(shape))
        joined = []
        for buffer, new in zip(self.buffers[key], (k, v), strict=True):
            buffer[:, own.slice] = new
            joined.append(torch.cat([buffer[:, past.slice].clone(), new], 1))
        return joined[0], joined[1]


class PlainStudent:
    """The plain forward; called like a ``DualStream``, with text features and a ``PlainView``.

    Raises:
        OmniForcingError: for weights that modulate the prompt by sigma, which that code does not
            support.
    """

    def __init__(self, model: DualStream, config: RolloutConfig) -> None:
        if prompt_follows_sigma(model.core):
            raise OmniForcingError(
                "benchmarks.other-release",
                "the plain forward computes LTX-2.0 only, and these weights modulate the prompt "
                "by sigma; name weights of LTX-2.0",
            )
        self.model, self.core, self.config = model, model.core, config
        self.sinks = model.sinks.shape[0]
        self._masks: dict[tuple[int, ...], Tensor] = {}
        self._rotate = (
            apply_split_rotary_emb
            if self.core.config.rope_type == "split"
            else apply_interleaved_rotary_emb
        )

    @torch.no_grad()
    def stream(self, text: TextFeatures, generator: torch.Generator, blocks: int) -> list[Latents]:
        """Generate the first ``blocks`` blocks of a stream, from the noise of a ``Rollout``."""
        # These three stand in for a `DualStream`, its cache and its cached text in our sampler.
        student: Any = self
        cache: Any = PlainCache(self, blocks)
        features: Any = text
        output: list[Latents] = []
        batch = text.video.shape[0]
        for index in range(blocks):
            if index:
                previous = index - 1
                refresh(student, self.config, cache, features, previous, output[-1], generator)
            counts = self.config.table.counts(index)
            noise = gaussian(self.model, counts, self.config.grid, batch, generator)
            view = cache.view(index)
            output.append(few_step(student, noise, self.config.sigmas, features, view, generator))
        return output

    def __call__(self, x: Latents, sigma: float, text: TextFeatures, view: PlainView) -> Latents:
        """Predict a block's velocity.

        Args:
            x: noisy latents, video ``[B, F, S, C]`` and audio ``[B, F, C]``.
            sigma: noise level, the same for all tokens.
            text: features ``[B, L, D]``.
            view: the block's place in its cache.

        Returns:
            Velocity in the shapes of ``x``.
        """
        core, dtype = self.core, self.core.proj_in.weight.dtype
        hidden = Pair(
            core.proj_in(x.video.flatten(1, 2).to(dtype)), core.audio_proj_in(x.audio.to(dtype))
        )
        sinks = self.sinks if view.index == 0 else 0  # block 0's audio begins with the sinks
        if sinks:
            embeddings = self.model.sinks.expand(hidden.audio.shape[0], -1, -1)
            hidden = Pair(hidden.video, torch.cat([embeddings, hidden.audio], 1))
        prompt = Pair(
            core.caption_projection(text.video), core.audio_caption_projection(text.audio)
        )
        timestep = sigma * core.config.timestep_scale_multiplier
        timesteps = hidden.map(lambda h: torch.full(h.shape[:2], timestep, device=h.device))
        adaln = Pair(
            self._adaln("", "video", "a2v", timesteps.video),
            self._adaln("audio_", "audio", "v2a", timesteps.audio),
        )
        ropes = self._ropes(view)
        for index, layer in enumerate(core.transformer_blocks):
            hidden = self._layer(index, layer, hidden, prompt, adaln, ropes, view)
        video = self._head(hidden.video, adaln.video["head"], "")
        audio = self._head(hidden.audio, adaln.audio["head"], "audio_")
        return Pair(video.reshape(x.video.shape), audio[:, sinks:])

    def _adaln(self, prefix: str, stream: str, gate: str, timesteps: Tensor) -> dict[str, Tensor]:
        """Embed the timestep of every token ``[B, N]`` into AdaLN values ``[B, N, rows * C]``.

        Returns:
            Values of the layers (``main``), the output head, and cross-modal attention's scale and
            shift (``cross``) and ``gate``.
        """
        core, settings = self.core, self.core.config
        scale = settings.cross_attn_timestep_scale_multiplier / settings.timestep_scale_multiplier

        def embed(module: Any, at: Tensor) -> tuple[Tensor, Tensor]:
            dtype = core.proj_in.weight.dtype
            values, embedded = module(at.flatten(), batch_size=at.shape[0], hidden_dtype=dtype)
            return values.view(*at.shape, -1), embedded.view(*at.shape, -1)

        main, head = embed(getattr(core, f"{prefix}time_embed"), timesteps)
        cross, _ = embed(getattr(core, f"av_cross_attn_{stream}_scale_shift"), timesteps)
        gates, _ = embed(getattr(core, f"av_cross_attn_{stream}_{gate}_gate"), timesteps * scale)
        return {"main": main, "head": head, "cross": cross, "gate": gates}

    def _ropes(self, view: PlainView) -> dict[tuple[str, str], Rope]:
        """Build the block's RoPE tables from coordinates of the whole clip."""
        core, config = self.core, self.config
        total, device = config.table.total(view.index + 1), core.proj_in.weight.device
        video = core.rope.prepare_video_coords(1, total.video, *config.grid, device=device).double()
        audio = core.audio_rope.prepare_audio_coords(1, total.audio, device=device).double()
        own, _ = view.spans("video")
        heard, _ = view.spans("audio")
        # Sinks have no coordinates: audio tokens count from behind them.
        heard = Span(max(0, heard.start - self.sinks), heard.stop - self.sinks)
        tables = {
            ("own", "video"): core.rope(video[:, :, own.slice]),
            ("own", "audio"): core.audio_rope(audio[:, :, heard.slice]),
            ("cross", "video"): core.cross_attn_rope(video[:, :1, own.slice]),
            ("cross", "audio"): core.cross_attn_audio_rope(audio[:, :, heard.slice]),
        }
        return {key: self._with_sinks(key[1], table, view) for key, table in tables.items()}

    def _with_sinks(self, stream: str, table: Rope, view: PlainView) -> Rope:
        """Convert a table to fp32; in block 0's audio, let the sinks go first, not rotated."""
        cos, sin = table[0].float(), table[1].float()
        if stream == "audio" and view.index == 0 and self.sinks:
            shape = [*cos.shape[:-2], self.sinks, cos.shape[-1]]
            cos = torch.cat([cos.new_ones(shape), cos], -2)
            sin = torch.cat([sin.new_zeros(shape), sin], -2)
        return cos, sin

    def _layer(
        self,
        index: int,
        layer: Any,  # a block of diffusers
        x: Latents,
        prompt: Latents,
        adaln: Pair[dict[str, Tensor]],
        ropes: dict[tuple[str, str], Rope],
        view: PlainView,
    ) -> Latents:
        """Run one transformer layer on hidden states ``[B, N, C]`` of both streams."""

        def rows(table: Tensor, values: Tensor) -> tuple[Tensor, ...]:
            return (table + values.unflatten(-1, (table.shape[0], -1))).unbind(2)

        def attend(module: Any, site: str, queries: Tensor, context: Tensor) -> Tensor:
            q, k = module.norm_q(module.to_q(queries)), module.norm_k(module.to_k(context))
            query_stream, key_stream, axes = SITES[site]
            q = self._rotate_heads(q, ropes[axes, query_stream])
            k = self._rotate_heads(k, ropes[axes, key_stream])
            k, v = view.cache.join((index, site), view, k, module.to_v(context))
            return self._attend(module, q, k, v)

        def self_and_text(
            prefix: str, site: str, h: Tensor, features: Tensor, values: tuple[Tensor, ...]
        ) -> Tensor:
            y = getattr(layer, f"{prefix}norm1")(h) * (1 + values[1]) + values[0]
            h = h + attend(getattr(layer, f"{prefix}attn1"), site, y, y) * values[2]
            module, key = getattr(layer, f"{prefix}attn2"), (index, site)
            if key not in view.cache.text:
                view.cache.text[key] = (module.norm_k(module.to_k(features)), module.to_v(features))
            q = module.norm_q(module.to_q(getattr(layer, f"{prefix}norm2")(h)))
            k, v = view.cache.text[key]
            return h + self._attend(module, q, k.clone(), v.clone())

        def cross_values(table: Tensor, at: dict[str, Tensor]) -> tuple[tuple[Tensor, ...], Tensor]:
            return rows(table[:4], at["cross"]), rows(table[4:], at["gate"])[0]

        rows_v = rows(layer.scale_shift_table, adaln.video["main"])
        rows_a = rows(layer.audio_scale_shift_table, adaln.audio["main"])
        video = self_and_text("", "video", x.video, prompt.video, rows_v)
        audio = self_and_text("audio_", "audio", x.audio, prompt.audio, rows_a)

        cross_v, gate_v = cross_values(layer.video_a2v_cross_attn_scale_shift_table, adaln.video)
        cross_a, gate_a = cross_values(layer.audio_a2v_cross_attn_scale_shift_table, adaln.audio)
        # Both directions read the streams as they are before either adds to them.
        norm_v, norm_a = layer.audio_to_video_norm(video), layer.video_to_audio_norm(audio)
        video_q, audio_kv = (
            norm_v * (1 + cross_v[0]) + cross_v[1],
            norm_a * (1 + cross_a[0]) + cross_a[1],
        )
        video_kv, audio_q = (
            norm_v * (1 + cross_v[2]) + cross_v[3],
            norm_a * (1 + cross_a[2]) + cross_a[3],
        )
        video = video + gate_v * attend(layer.audio_to_video_attn, "a2v", video_q, audio_kv)
        audio = audio + gate_a * attend(layer.video_to_audio_attn, "v2a", audio_q, video_kv)

        y = layer.norm3(video) * (1 + rows_v[4]) + rows_v[3]
        video = video + layer.ff(y) * rows_v[5]
        y = layer.audio_norm3(audio) * (1 + rows_a[4]) + rows_a[3]
        audio = audio + layer.audio_ff(y) * rows_a[5]
        return Pair(video, audio)

    def _rotate_heads(self, x: Tensor, table: Rope) -> Tensor:
        cos, sin = table
        if cos.ndim == 4:  # a table per head, of one sample
            cos, sin = (t.expand(x.shape[0], -1, -1, -1) for t in table)
        return self._rotate(x, (cos, sin))

    def _attend(self, module: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # The mask is built once per shape, and turned into a bias of the logits in every call.
        shape = (q.shape[0], 1, q.shape[1], k.shape[1])
        if shape not in self._masks:
            self._masks[shape] = torch.ones(shape, dtype=torch.bool, device=q.device)
        bias = torch.zeros(shape, dtype=q.dtype, device=q.device)
        bias = bias.masked_fill(~self._masks[shape], float("-inf"))
        q, k, v = (t.unflatten(-1, (module.heads, -1)).transpose(1, 2) for t in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return module.to_out[0](mixed.transpose(1, 2).flatten(2))

    def _head(self, x: Tensor, embedded: Tensor, prefix: str) -> Tensor:
        """Project hidden states ``[B, N, C]`` to velocities, modulated per token."""
        core = self.core
        values = getattr(core, f"{prefix}scale_shift_table") + embedded.unsqueeze(2)
        shift, scale = values.unbind(2)
        normed = getattr(core, f"{prefix}norm_out")(x) * (1 + scale) + shift
        return getattr(core, f"{prefix}proj_out")(normed)
