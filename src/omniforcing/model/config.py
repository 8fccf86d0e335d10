"""Sections of the transformer and of the causal student."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from itertools import pairwise

from omniforcing.core.config import Section, chosen, ranged
from omniforcing.core.layout import LAYOUTS, BlockTable, Counts

# Linear layers of a block that an adapter can change, by diffusers' names: projections of the six
# attentions, and the feed-forwards.
ATTENTIONS = (
    *("attn1", "attn2", "audio_attn1", "audio_attn2"),
    *("audio_to_video_attn", "video_to_audio_attn"),
)
ADAPTABLE = tuple(
    f"{site}.{part}" for site in ATTENTIONS for part in ("to_q", "to_k", "to_v", "to_out.0")
) + tuple(f"{site}.net.{part}" for site in ("ff", "audio_ff") for part in ("0.proj", "2"))

# Releases of LTX-2. From 2.3 on attentions are gated, and text keys and values depend on sigma; 2.5
# marks the first video latent.
RELEASES = ("2.0", "2.3", "2.5")


class Stabiliser(Enum):
    """What keeps the first audio tokens of the causal student from blowing up (paper table 3)."""

    sinks = "sinks"
    sinks_rope_growing = "sinks_rope_growing"
    qk_norm = "qk_norm"
    tanh_gate = "tanh_gate"
    none = "none"


@dataclass
class TransformerConfig(Section):
    """Sizes of a dual-stream transformer."""

    layers: int = ranged(4, at_least=1)
    """Transformer blocks."""
    heads: int = ranged(4, at_least=1)
    """Attention heads of each stream."""
    video_head_dim: int = ranged(32, at_least=1)
    """Channels of a video head."""
    audio_head_dim: int = ranged(16, at_least=1)
    """Channels of an audio head."""
    base_size: int = ranged(256, at_least=1)
    """Pixels that span one turn of the spatial RoPE's slowest frequency (LTX-2: 2048)."""


@dataclass
class StudentConfig(Section):
    """The causal student, from Stage II on."""

    layout: str = chosen("prefix", LAYOUTS)
    """Block table: `prefix` (the paper's), `merged` or `thirds`."""
    sigmas: list[float] = ranged([1.0, 0.909375, 0.725, 0.421875], above=0, at_most=1)
    """Denoising steps, falling from 1.0; from Stage I on."""
    sinks: int = ranged(16, at_least=0)
    """Learnable sink tokens before the audio."""
    stabiliser: Stabiliser = Stabiliser.sinks
    """Keeps the first audio tokens in bounds; `qk_norm`, `tanh_gate` and `none` need `sinks: 0`."""
    window: int = ranged(3, at_least=1)
    """Past blocks that stay visible besides the prefix."""
    context_noise: float = ranged(0.0, at_least=0, below=1)
    """Sigma of the forward that writes a finished block into the cache."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(
            self.sigmas[:1] == [1.0] and all(a > b for a, b in pairwise(self.sigmas)),
            "sigmas",
            "they must start at 1.0 and fall",
        )
        self.require(
            self.stabiliser.value.startswith("sinks") or self.sinks == 0,
            "sinks",
            f"stabiliser={self.stabiliser.value} needs 0",
        )

    @property
    def table(self) -> BlockTable:
        """The block table."""
        return LAYOUTS[self.layout]

    def horizon(self, counts: Counts) -> int:
        """Index of the last block of a training clip: the farthest that the student has seen.

        Args:
            counts: latents of a training clip.
        """
        return self.table.count_for(counts) - 1
