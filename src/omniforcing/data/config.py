"""Sections of the training data: clips, shards, latents."""

from __future__ import annotations

from dataclasses import dataclass

from omniforcing.core.config import Section, chosen, fraction, ranged
from omniforcing.core.layout import Counts, clip_frames, clip_latents
from omniforcing.media.format import ClipFormat


@dataclass
class ClipsConfig(Section):
    """Stage clips: where the training clips come from."""

    source: str = chosen("synthetic", ("synthetic", "folder"))
    """`synthetic` (bouncing balls) or `folder` (your own videos)."""
    folder: str | None = None
    """For `source: folder`: where the videos are."""
    captions: str | None = None
    """For `source: folder`: json, jsonl or csv of (video, caption); null: a .txt per video."""
    language: str | None = None
    """For `source: folder`: language of the sound to prefer, as files name it (`eng`, `deu`)."""
    hdr: str = chosen("convert", ("convert", "reject"))
    """For `source: folder`: videos in HDR (PQ, HLG) are converted to standard range or rejected."""
    interlaced: str = chosen("deinterlace", ("deinterlace", "reject"))
    """For `source: folder`: what is done with interlaced videos."""
    count: int = ranged(1536, at_least=1)
    """Synthetic clips, those for training and those held out."""
    seconds: int = ranged(4, at_least=1)
    """Length of a training clip, whole seconds."""
    height: int = ranged(64, at_least=32)
    """Height of the picture, pixels, a multiple of 32."""
    width: int = ranged(64, at_least=32)
    """Width of the picture, pixels, a multiple of 32."""
    duets: float = fraction(0.15)
    """Share of the synthetic training clips in which two balls bounce."""
    heldout: int = ranged(64, at_least=0)
    """Clips kept out of training, for evaluation."""
    heldout_duets: int = ranged(32, at_least=0)
    """Synthetic clips of two balls in addition to them, the harder split."""
    max_reject_share: float = fraction(0.2)
    """Stop the stage when more than this share of the clips is unusable."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for side in ("height", "width"):
            self.require(getattr(self, side) % 32 == 0, side, "it must be a multiple of 32")
        self.require(
            self.source != "folder" or self.folder is not None,
            "folder",
            "source=folder needs the folder that holds the videos",
            missing=True,
        )
        self.require(
            self.source != "synthetic" or self.heldout < self.count,
            "heldout",
            f"it must be below count={self.count}, or nothing is left to train on",
        )

    @property
    def form(self) -> ClipFormat:
        """Format of the clips."""
        return ClipFormat(self.height, self.width, self.seconds)

    @property
    def latent_counts(self) -> Counts:
        """Latents of one training clip."""
        return clip_latents(self.seconds)

    @property
    def frames(self) -> int:
        """Frames of one training clip."""
        return clip_frames(self.seconds)


@dataclass
class ShardsConfig(Section):
    """Stage shards: conformed clips in WebDataset tars."""

    per_shard: int = ranged(64, at_least=1)
    """Clips per tar."""
    near_duplicates: str = chosen("tell", ("tell", "reject"))
    """Training clips that look like a held-out clip are told, or rejected from training."""
    flags: str | None = None
    """File of `omniforcing inspect --flags` with clips to leave out; null: none."""


@dataclass
class LatentsConfig(Section):
    """Stage latents: encoded clips and text features."""

    batch: int = ranged(16, at_least=1)
    """Clips encoded at a time."""
