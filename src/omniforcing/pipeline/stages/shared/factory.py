"""Open the samplers of every model as a preset configures them."""

from __future__ import annotations

from pathlib import Path

from omniforcing.evaluation.samplers import SamplerFactory
from omniforcing.pipeline.config import Config


def open_factory(config: Config, codec: Path, latents: Path) -> SamplerFactory:
    """Open codec and text features, on a GPU if there is one and the config allows it.

    Args:
        config: the whole configuration.
        codec: folder of the codec stage.
        latents: folder of the latents stage.

    Raises:
        OmniForcingError: if one of them is missing or unreadable.
    """
    return SamplerFactory.from_config(
        config.clips,
        config.student,
        config.teacher.sampler,
        config.evaluate.batch,
        codec,
        latents,
        config.trainer.device,
    )
