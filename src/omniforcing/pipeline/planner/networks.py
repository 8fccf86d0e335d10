"""The trained stages of a preset at their real sizes and without memory: what a plan traces."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import LTX2VideoTransformer3DModel

from omniforcing.codec.codec import Codec
from omniforcing.codec.config import Source
from omniforcing.core.latents import Batch, Pair, TextFeatures
from omniforcing.distill.bidirectional_dmd import BidirectionalDmd
from omniforcing.distill.causal_ode import CausalOde
from omniforcing.distill.self_forcing import SelfForcing
from omniforcing.distill.teacher import Teacher
from omniforcing.model.student import core_config
from omniforcing.model.transformer import DualStream
from omniforcing.model.weights.checkpoint import open_checkpoint
from omniforcing.pipeline.config import Config
from omniforcing.training.stages import StageModule

# LTX-2.0 as released, for a plan made before its weights are fetched: channels of its latents, 32 pixels to a token, width and
# length of its text features. A test holds that, with preset ltx2's own sizes, they give every tensor of the release.
LTX2 = {"video_channels": 128, "audio_channels": 128}
LTX2_PIXELS, LTX2_CAPTION, LTX2_LENGTH = 32, 3840, 1024


@dataclass(frozen=True)
class Sizes:
    """What decides the shapes of a training step.

    Attributes:
        core: arguments of diffusers' transformer.
        grid: spatial tokens of a video latent, (H, W).
        length: tokens of a caption.
        caption: widths of the text features, video and audio.
        device: where what is made of them goes; on ``meta`` it takes no memory.
        checkpoint_activations: whether networks recompute activations in the backward.
    """

    core: dict[str, Any]
    grid: tuple[int, int]
    length: int
    caption: Pair[int]
    device: str = "meta"
    checkpoint_activations: bool = False

    @classmethod
    def of(cls, config: Config, root: Path) -> Sizes:
        """From the weights that a preset loads, if they are there, else from its configuration.

        Raises:
            OmniForcingError: if the weights cannot be read.
        """
        height, width = config.clips.height, config.clips.width
        loads = config.teacher.source is Source.load
        if loads:
            grid = (height // LTX2_PIXELS, width // LTX2_PIXELS)
            description, wide, length = (
                {**LTX2, "height": height, "grid": grid},
                LTX2_CAPTION,
                LTX2_LENGTH,
            )
        else:
            with torch.device("meta"):
                codec = Codec.from_config(config.codec, height, width)
            grid, wide, length = (
                codec.token_grid(height, width),
                config.codec.text.hidden,
                config.codec.text.length,
            )
            channels = {
                "video_channels": codec.video_channels,
                "audio_channels": codec.audio_channels,
            }
            description = {**channels, "height": height, "grid": grid}
        path = root / str(config.teacher.path)
        core = (
            open_checkpoint(path).config
            if loads and path.exists()
            else core_config(config.teacher.model, description, wide)
        )
        prompt = core.get("use_prompt_embeddings", True)
        widths = (
            Pair(wide, wide)
            if prompt
            else Pair(core["cross_attention_dim"], core["audio_cross_attention_dim"])
        )
        return cls(dict(core), grid, length, widths)

    def with_layers(self, layers: int) -> Sizes:
        """The same with another depth."""
        return replace(self, core={**self.core, "num_layers": layers})

    def network(
        self, sinks: int = 0, dtype: torch.dtype = torch.float32, **rest: Any
    ) -> DualStream:
        """A network of random weights."""
        with torch.device(self.device):
            core = LTX2VideoTransformer3DModel(**self.core)
        recompute = self.checkpoint_activations
        network = DualStream(core, sinks, checkpoint_activations=recompute, **rest)
        return network.to(self.device, dtype)

    def text(self, batch: int) -> TextFeatures:
        """Text features of a batch."""
        return self.caption.map(
            lambda width: torch.zeros(batch, self.length, width, device=self.device)
        )

    def batch(self, config: Config, size: int, states: int = 0) -> Batch:
        """A batch of clips, or of trajectories of so many ``states``."""
        counts, shape = config.clips.latent_counts, (size, states) if states else (size,)
        spatial, core = self.grid[0] * self.grid[1], self.core
        video = torch.zeros(*shape, counts.video, spatial, core["in_channels"], device=self.device)
        audio = torch.zeros(*shape, counts.audio, core["audio_in_channels"], device=self.device)
        return Batch(Pair(video, audio), self.text(size))


def _teacher(config: Config, sizes: Sizes, dtype: torch.dtype) -> StageModule:
    network, counts = sizes.network(dtype=dtype), config.clips.latent_counts
    return Teacher.from_config(
        config.teacher, network, sizes.text(1), counts, sizes.grid, config.seed
    )


def _bidirectional_dmd(config: Config, sizes: Sizes, dtype: torch.dtype) -> StageModule:
    networks = [sizes.network(dtype=dtype) for _ in range(3)]
    return BidirectionalDmd.from_config(
        config.bidirectional_dmd,
        config.student.sigmas,
        networks,
        sizes.text(1),
        config.clips.latent_counts,
        sizes.grid,
        config.seed,
    )


def _causal_ode(config: Config, sizes: Sizes, dtype: torch.dtype) -> StageModule:
    return CausalOde.from_config(
        config.causal_ode,
        config.student,
        _student(config, sizes, dtype),
        config.clips.latent_counts,
        sizes.grid,
        config.seed,
    )


def _self_forcing(config: Config, sizes: Sizes, dtype: torch.dtype) -> StageModule:
    networks = [_student(config, sizes, dtype), *(sizes.network(dtype=dtype) for _ in range(2))]
    return SelfForcing.from_config(
        config.self_forcing,
        config.student,
        networks,
        sizes.text(1),
        sizes.text(1),
        config.clips.latent_counts,
        sizes.grid,
        config.seed,
    )


def _student(config: Config, sizes: Sizes, dtype: torch.dtype) -> DualStream:
    return sizes.network(config.student.sinks, dtype, stabiliser=config.student.stabiliser)


BUILDERS: dict[str, Callable[[Config, Sizes, torch.dtype], StageModule]] = {
    "teacher": _teacher,
    "bidirectional_dmd": _bidirectional_dmd,
    "causal_ode": _causal_ode,
    "self_forcing": _self_forcing,
}


def trained_stages(config: Config) -> list[str]:
    """The stages that train a transformer under a preset."""
    return [name for name in BUILDERS if name != "teacher" or config.teacher.source is Source.train]
