"""A cached forward as public causal audio-video code runs it, on a ``DualStream``'s weights: what ours is measured against.

Dense masks turned into logits per call, history cloned and joined at every step, adaLN per token, RoPE tables and caption
projections built anew in every forward, text keys and values copied. Equal to ours up to rounding, as long as the stream is
within its horizon.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.transformers.transformer_ltx2 import (
    apply_interleaved_rotary_emb,
    apply_split_rotary_emb,
)
from torch import Tensor, nn

from omniforcing.core.errors import OmniForcingError
from omniforcing.core.latents import Latents, Pair, TextFeatures
from omniforcing.core.layout import Span
from omniforcing.model.attention import SITES
from omniforcing.model.conditioning import prompt_follows_sigma
from omniforcing.model.rollout import RolloutConfig, few_step, gaussian, refresh
from omniforcing.model.transformer import DualStream

Rope = tuple[Tensor, Tensor]


class PlainView:
    """The present block and all that came before it."""

    def __init__(self, cache: PlainCache, index: int, write: bool) -> None:
        self.cache, self.index, self.write = cache, index, write

    def spans(self, stream: str) -> tuple[Span, Span]:
        """Tokens of the present block, and of the history."""
        own = self.cache.span(self.index, stream)
        return own, Span(0, own.start)


class PlainCache:
    """Whole-clip buffers of rotated keys and of values; the text's too, once they are made."""

    def __init__(self, student: PlainStudent, blocks: int) -> None:
        self.student, self.blocks = student, blocks
        self.buffers: dict[tuple[int, str], tuple[Tensor, Tensor]] = {}
        self.text: dict[tuple[int, str], tuple[Tensor, Tensor]] = {}

    def view(self, index: int, write: bool = False) -> PlainView:
        return PlainView(self, index, write)

    def span(self, index: int, stream: str) -> Span:
        grid = self.student.config.grid
        video, audio = self.student.config.table.block(index).tokens(
            grid[0] * grid[1], self.student.sinks
        )
        return video if stream == "video" else audio

    def join(
        self, key: tuple[int, str], view: PlainView, k: Tensor, v: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Store the block's keys and values; return them behind a copy of the history's."""
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
    """Callable like a ``DualStream``, its prompt given as text features and its view by a ``PlainCache``.

    Raises:
        OmniForcingError: for weights whose text follows sigma, which that code does not know.
    """

    def __init__(self, model: DualStream, config: RolloutConfig) -> None:
        if prompt_follows_sigma(model.core):
            raise OmniForcingError(
                "benchmarks.other-release",
                "the plain forward computes LTX-2.0 only, and these weights modulate the prompt by sigma; "
                "name weights of LTX-2.0",
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
        """The first blocks of a stream, from the same noise as a ``Rollout`` draws."""
        cache = PlainCache(self, blocks)
        output: list[Latents] = []
        batch = text.video.shape[0]
        for index in range(blocks):
            if index:
                refresh(self, self.config, cache, text, index - 1, output[-1], generator)  # type: ignore[arg-type]
            noise = gaussian(
                self.model, self.config.table.counts(index), self.config.grid, batch, generator
            )
            x0 = few_step(self, noise, self.config.sigmas, text, cache.view(index), generator)  # type: ignore[arg-type]
            output.append(x0)
        return output

    def __call__(self, x: Latents, sigma: float, text: TextFeatures, view: PlainView) -> Latents:
        core, dtype = self.core, self.core.proj_in.weight.dtype
        hidden = Pair(
            core.proj_in(x.video.flatten(1, 2).to(dtype)), core.audio_proj_in(x.audio.to(dtype))
        )
        starting = self.sinks if view.index == 0 else 0
        if starting:
            sinks = self.model.sinks.expand(hidden.audio.shape[0], -1, -1)
            hidden = Pair(hidden.video, torch.cat([sinks, hidden.audio], 1))
        prompt = Pair(
            core.caption_projection(text.video), core.audio_caption_projection(text.audio)
        )
        steps = hidden.map(
            lambda h: torch.full(
                h.shape[:2], sigma * core.config.timestep_scale_multiplier, device=h.device
            )
        )
        embedded = Pair(
            self._embed("", "video", "a2v", steps.video),
            self._embed("audio_", "audio", "v2a", steps.audio),
        )
        ropes = self._ropes(view)
        for index, layer in enumerate(core.transformer_blocks):
            hidden = self._layer(index, layer, hidden, prompt, embedded, ropes, view)
        video = self._head(hidden.video, embedded.video["head"], "")
        audio = self._head(hidden.audio, embedded.audio["head"], "audio_")
        return Pair(video.reshape(x.video.shape), audio[:, starting:])

    def _embed(self, prefix: str, stream: str, gate: str, steps: Tensor) -> dict[str, Tensor]:
        core = self.core
        scale = (
            core.config.cross_attn_timestep_scale_multiplier / core.config.timestep_scale_multiplier
        )

        def rows(module: Callable[..., tuple[Tensor, Tensor]], at: Tensor) -> tuple[Tensor, Tensor]:
            made = module(
                at.flatten(), batch_size=at.shape[0], hidden_dtype=core.proj_in.weight.dtype
            )
            return made[0].view(*at.shape, -1), made[1].view(*at.shape, -1)

        main, head = rows(getattr(core, f"{prefix}time_embed"), steps)
        cross = rows(getattr(core, f"av_cross_attn_{stream}_scale_shift"), steps)[0]
        return {
            **{"main": main, "head": head, "cross": cross},
            "gate": rows(getattr(core, f"av_cross_attn_{stream}_{gate}_gate"), steps * scale)[0],
        }

    def _ropes(self, view: PlainView) -> dict[tuple[str, str], Rope]:
        """Tables of the present block's tokens, from coordinates of the whole clip."""
        core, config = self.core, self.config
        total, device = config.table.total(view.index + 1), core.proj_in.weight.device
        video = core.rope.prepare_video_coords(1, total.video, *config.grid, device=device).double()
        audio = core.audio_rope.prepare_audio_coords(1, total.audio, device=device).double()
        own, heard = view.spans("video")[0], view.spans("audio")[0]
        heard = Span(max(0, heard.start - self.sinks), heard.stop - self.sinks)
        tables = {
            ("own", "video"): core.rope(video[:, :, own.slice]),
            ("own", "audio"): core.audio_rope(audio[:, :, heard.slice]),
            ("cross", "video"): core.cross_attn_rope(video[:, :1, own.slice]),
            ("cross", "audio"): core.cross_attn_audio_rope(audio[:, :, heard.slice]),
        }
        return {key: self._still(key, table, view) for key, table in tables.items()}

    def _still(self, key: tuple[str, str], table: Rope, view: PlainView) -> Rope:
        """The table in fp32, behind the identity for the sinks."""
        cos, sin = (t.float() for t in table)
        if key[1] == "audio" and view.index == 0 and self.sinks:
            shape = [*cos.shape[:-2], self.sinks, cos.shape[-1]]
            cos = torch.cat([cos.new_ones(shape), cos], -2)
            sin = torch.cat([sin.new_zeros(shape), sin], -2)
        return cos, sin

    def _layer(
        self,
        index: int,
        layer: nn.Module,
        x: Latents,
        prompt: Latents,
        embedded: Pair[dict[str, Tensor]],
        ropes: dict[tuple[str, str], Rope],
        view: PlainView,
    ) -> Latents:
        def rows(table: Tensor, values: Tensor) -> tuple[Tensor, ...]:
            return (table + values.unflatten(-1, (table.shape[0], -1))).unbind(2)

        def attend(module: Any, site: str, queries: Tensor, context: Tensor) -> Tensor:
            q, k = module.norm_q(module.to_q(queries)), module.norm_k(module.to_k(context))
            asked, kept, axes = SITES[site]
            q, k = self._turn(q, ropes[axes, asked]), self._turn(k, ropes[axes, kept])
            return self._attend(
                module, q, *view.cache.join((index, site), view, k, module.to_v(context))
            )

        def first(
            prefix: str, site: str, h: Tensor, features: Tensor, at: dict[str, Tensor]
        ) -> tuple[Tensor, tuple[Tensor, ...]]:
            values = rows(getattr(layer, f"{prefix}scale_shift_table"), at["main"])
            y = getattr(layer, f"{prefix}norm1")(h) * (1 + values[1]) + values[0]
            h = h + attend(getattr(layer, f"{prefix}attn1"), site, y, y) * values[2]
            module, key = getattr(layer, f"{prefix}attn2"), (index, site)
            if key not in view.cache.text:
                view.cache.text[key] = (module.norm_k(module.to_k(features)), module.to_v(features))
            q = module.norm_q(module.to_q(getattr(layer, f"{prefix}norm2")(h)))
            return h + self._attend(module, q, *(t.clone() for t in view.cache.text[key])), values

        video, rows_v = first("", "video", x.video, prompt.video, embedded.video)
        audio, rows_a = first("audio_", "audio", x.audio, prompt.audio, embedded.audio)
        tables = (
            layer.video_a2v_cross_attn_scale_shift_table,
            layer.audio_a2v_cross_attn_scale_shift_table,
        )
        cross_v, cross_a = (rows(t[:4], e["cross"]) for t, e in zip(tables, embedded, strict=True))
        gate_v, gate_a = (rows(t[4:], e["gate"])[0] for t, e in zip(tables, embedded, strict=True))
        seen, heard = layer.audio_to_video_norm(video), layer.video_to_audio_norm(audio)
        for_a2v = [n * (1 + c[0]) + c[1] for n, c in ((seen, cross_v), (heard, cross_a))]
        for_v2a = [n * (1 + c[2]) + c[3] for n, c in ((seen, cross_v), (heard, cross_a))]
        video = video + gate_v * attend(layer.audio_to_video_attn, "a2v", for_a2v[0], for_a2v[1])
        audio = audio + gate_a * attend(layer.video_to_audio_attn, "v2a", for_v2a[1], for_v2a[0])
        video = video + layer.ff(layer.norm3(video) * (1 + rows_v[4]) + rows_v[3]) * rows_v[5]
        audio = (
            audio
            + layer.audio_ff(layer.audio_norm3(audio) * (1 + rows_a[4]) + rows_a[3]) * rows_a[5]
        )
        return Pair(video, audio)

    def _turn(self, x: Tensor, table: Rope) -> Tensor:
        if table[0].ndim == 4:
            table = table[0].expand(x.shape[0], -1, -1, -1), table[1].expand(x.shape[0], -1, -1, -1)
        return self._rotate(x, table)

    def _attend(self, module: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # The mask of what may be seen is made once per shape, and turned into what is added to the logits in every call.
        shape = (q.shape[0], 1, q.shape[1], k.shape[1])
        if shape not in self._masks:
            self._masks[shape] = torch.ones(shape, dtype=torch.bool, device=q.device)
        bias = torch.zeros(shape, dtype=q.dtype, device=q.device).masked_fill(
            ~self._masks[shape], float("-inf")
        )
        q, k, v = (t.unflatten(-1, (module.heads, -1)).transpose(1, 2) for t in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return module.to_out[0](mixed.transpose(1, 2).flatten(2))

    def _head(self, x: Tensor, embedded: Tensor, prefix: str) -> Tensor:
        core = self.core
        shift, scale = (getattr(core, f"{prefix}scale_shift_table") + embedded.unsqueeze(2)).unbind(
            2
        )
        return getattr(core, f"{prefix}proj_out")(
            getattr(core, f"{prefix}norm_out")(x) * (1 + scale) + shift
        )
