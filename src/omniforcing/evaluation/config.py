"""Section of the evaluation."""

from __future__ import annotations

from dataclasses import dataclass

from omniforcing.core.config import Section, ranged


@dataclass
class EvaluateConfig(Section):
    """Stage evaluate: every model on the same captions and seeds."""

    clips: int = ranged(64, at_least=1)
    """Held-out captions."""
    seeds: int = ranged(2, at_least=1)
    """Samples per caption."""
    batch: int = ranged(16, at_least=1)
    """Clips sampled at a time."""
    drift_clips: int = ranged(16, at_least=0)
    """Longer rollouts that drift is measured on; 0: none, as for clips of another world."""
    page_clips: int = ranged(6, at_least=1)
    """Videos per model on the page."""
    train_clips: int = ranged(2000, at_least=1)
    """Training clips, the first ones, among which the nearest to each sample is looked for."""
    weights: str | None = None
    """YAML file that names pretrained weights of measures by path and sha256; null: those measures
    are left out."""
