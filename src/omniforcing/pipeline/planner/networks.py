"""Trained stages of a preset at their real sizes, built without memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from omniforcing.codec.codec import Codec
from omniforcing.codec.config import Source
from omniforcing.core.latents import Batch, HeldText, TextFeatures
from omniforcing.core.pair import Pair
from omniforcing.distill.bidirectional_dmd import BidirectionalDmd
from omniforcing.distill.causal_ode import CausalOde
from omniforcing.distill.self_forcing import SelfForcing
from omniforcing.distill.teacher import Teacher
from omniforcing.model.student import core_config
from omniforcing.model.transformer import DualStream
from omniforcing.model.weights.checkpoint import open_checkpoint
from omniforcing.networks.transformer import LTX2VideoTransformer3DModel
from omniforcing.pipeline.config import Config
from omniforcing.training.adapters import AdaptedStream, build_layers
from omniforcing.training.config import AdapterConfig
from omniforcing.training.stages import DEFAULT, StageModule, TrainingOptions

# LTX-2 as released, for plans made before its weights are fetched: channels of latents, pixels per
# token, width of Gemma's states and length of its text features. A test checks that these, with the
# sizes of presets ltx2, ltx23 and ltx25, give every tensor of each release.
LTX2 = {"video_channels": 128, "audio_channels": 128}
LTX2_PIXELS, LTX2_CAPTION, LTX2_LENGTH = 32, 3840, 1024
NO_DIGEST = 64 * "0"  # of weights that are not there


@dataclass(frozen=True)
class Sizes:
    """Sizes that decide all shapes of a training step.

    Attributes:
        core: arguments of diffusers' transformer.
        grid: rows and columns of a video latent.
        length: tokens of a caption.
        caption: widths of the text features of both streams.
        device: device of networks and batches; on ``meta`` they take no memory.
        checkpoint_activations: whether networks recompute activations in the backward pass.
    """

    core: dict[str, Any]
    grid: tuple[int, int]
    length: int
    caption: Pair[int]
    device: str = "meta"
    checkpoint_activations: bool = False

    @classmethod
    def from_config(cls, config: Config, root: Path) -> Sizes:
        """Read sizes from the weights that a preset loads, or from its config if they are missing.

        Args:
            config: configuration of the training.
            root: the checkout, below which weights are looked for.

        Raises:
            OmniForcingError: if the weights cannot be read.
        """
        height, width = config.clips.height, config.clips.width
        loads = config.teacher.source is Source.load
        if loads:
            grid = (height // LTX2_PIXELS, width // LTX2_PIXELS)
            description = {**LTX2, "height": height, "grid": grid}
            wide, length = LTX2_CAPTION, LTX2_LENGTH
        else:
            with torch.device("meta"):
                codec = Codec.from_config(config.codec, height, width)
            grid = codec.token_grid(height, width)
            wide, length = config.codec.text.hidden, config.codec.text.length
            channels = {
                "video_channels": codec.video_channels,
                "audio_channels": codec.audio_channels,
            }
            description = {**channels, "height": height, "grid": grid}
        path = root / str(config.teacher.path)
        if loads and path.exists():
            core = open_checkpoint(path).config
        else:
            release = config.teacher.release
            core = core_config(config.teacher.model, description, wide, release)
        # Without prompt embeddings in the transformer, connectors give features of its own widths.
        widths = Pair(wide, wide)
        if not core.get("use_prompt_embeddings", True):
            widths = Pair(core["cross_attention_dim"], core["audio_cross_attention_dim"])
        return cls(dict(core), grid, length, widths)

    def with_layers(self, layers: int) -> Sizes:
        """Return the same sizes with another number of layers."""
        return replace(self, core={**self.core, "num_layers": layers})

    def network(
        self, sinks: int = 0, dtype: torch.dtype = torch.float32, **rest: Any
    ) -> DualStream:
        """Build a network with random weights."""
        with torch.device(self.device):
            core = LTX2VideoTransformer3DModel(**self.core)
        recompute = self.checkpoint_activations
        network = DualStream(core, sinks, checkpoint_activations=recompute, **rest)
        return network.to(self.device, dtype)

    def text(self, batch: int) -> TextFeatures:
        """Make text features of a batch."""
        return self.caption.map(
            lambda width: torch.zeros(batch, self.length, width, device=self.device)
        )

    def batch(self, config: Config, size: int, states: int = 0) -> Batch:
        """Make a batch of clips, or with ``states`` a batch of trajectories of so many states."""
        counts, shape = config.clips.latent_counts, (size, states) if states else (size,)
        spatial, core = self.grid[0] * self.grid[1], self.core
        video = torch.zeros(*shape, counts.video, spatial, core["in_channels"], device=self.device)
        audio = torch.zeros(*shape, counts.audio, core["audio_in_channels"], device=self.device)
        return Batch(Pair(video, audio), self.text(size))


def _teacher(
    config: Config, sizes: Sizes, dtype: torch.dtype, options: TrainingOptions = DEFAULT
) -> StageModule:
    network, counts = sizes.network(dtype=dtype), config.clips.latent_counts
    return Teacher.from_config(
        config.teacher, network, sizes.text(1), counts, sizes.grid, config.seed, options
    )


def _bidirectional_dmd(
    config: Config, sizes: Sizes, dtype: torch.dtype, options: TrainingOptions = DEFAULT
) -> StageModule:
    section, teacher = config.bidirectional_dmd, sizes.network(dtype=dtype)
    student = _role(teacher, section.adapter) or sizes.network(dtype=dtype)
    critic = _role(teacher, section.critic_adapter) or sizes.network(dtype=dtype)
    return BidirectionalDmd.from_config(
        section,
        config.student.sigmas,
        [student, teacher, critic],
        sizes.text(1),
        config.clips.latent_counts,
        sizes.grid,
        config.seed,
        options,
    )


def _causal_ode(
    config: Config, sizes: Sizes, dtype: torch.dtype, options: TrainingOptions = DEFAULT
) -> StageModule:
    return CausalOde.from_config(
        config.causal_ode,
        config.student,
        _student(config, sizes, dtype, None, config.causal_ode.adapter),
        config.clips.latent_counts,
        sizes.grid,
        config.seed,
        options,
    )


def _self_forcing(
    config: Config, sizes: Sizes, dtype: torch.dtype, options: TrainingOptions = DEFAULT
) -> StageModule:
    section, teacher = config.self_forcing, sizes.network(dtype=dtype)
    student = _student(config, sizes, dtype, teacher, section.adapter)
    critic = _role(teacher, section.critic_adapter) or sizes.network(dtype=dtype)
    return SelfForcing.from_config(
        section,
        config.student,
        [student, teacher, critic],
        sizes.text(1),
        HeldText(sizes.text(1)),
        config.clips.latent_counts,
        sizes.grid,
        config.seed,
        options,
    )


def _student(
    config: Config,
    sizes: Sizes,
    dtype: torch.dtype,
    teacher: DualStream | None,
    adapter: AdapterConfig | None,
) -> DualStream:
    """Build a student with its sinks: a whole network, or an adapter on the teacher's weights."""
    kind = (config.student.sinks, config.student.stabiliser)
    if adapter is None:
        return sizes.network(kind[0], dtype, stabiliser=kind[1])
    return _adapted(teacher or sizes.network(dtype=dtype), adapter, *kind)


def _role(teacher: DualStream, adapter: AdapterConfig | None) -> DualStream | None:
    """Build a role that is an adapter on the teacher's weights; None where it has weights."""
    return None if adapter is None else _adapted(teacher, adapter)


def _adapted(base: DualStream, adapter: AdapterConfig, *kind: Any) -> DualStream:
    model = AdaptedStream(base, build_layers(base, adapter, seed=0), NO_DIGEST, *kind)
    weight = next(base.parameters())
    return model.to(weight.device, weight.dtype)


BUILDERS: dict[str, Callable[..., StageModule]] = {
    "teacher": _teacher,
    "bidirectional_dmd": _bidirectional_dmd,
    "causal_ode": _causal_ode,
    "self_forcing": _self_forcing,
}


def trained_stages(config: Config) -> list[str]:
    """List the stages that train a transformer under a preset."""
    return [name for name in BUILDERS if name != "teacher" or config.teacher.source is Source.train]
