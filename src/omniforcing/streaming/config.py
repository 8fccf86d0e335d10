"""Section of the artifact."""

from __future__ import annotations

from dataclasses import dataclass

from omniforcing.core.config import Section, chosen, ranged


@dataclass
class ExportConfig(Section):
    """Stage export: the artifact and a first stream from it."""

    prompt: str = "a red ball bounces high on the floor"
    """Prompt of the first stream."""
    seconds: float = ranged(8.0, above=0, at_most=86400)
    """Length of the first stream."""
    precision: str = chosen("fp32", ("fp32", "bf16"))
    """Precision of the artifact's student, in which it streams; bf16 takes half the memory."""
    registered_model: str | None = None
    """Register the model in MLflow under this name too; null: only log it."""
    licence: str | None = None
    """Licence of the weights, as the Hub writes it (`apache-2.0`); null: it cannot be pushed."""
    licence_link: str | None = None
    """Address of a licence that the Hub does not know."""
    base_model: str | None = None
    """Model on the Hub that the teacher came from; null: one of one's own."""
