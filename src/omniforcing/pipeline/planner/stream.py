"""Memory of a stream, by what an engine holds of each part; nothing is allocated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from diffusers import LTX2VideoTransformer3DModel

from omniforcing.codec.config import Source, VideoDecoder
from omniforcing.codec.reach import DIFFUSION
from omniforcing.core.layout import BlockTable
from omniforcing.distill.sampling import rollout_config
from omniforcing.model.attention import SITES
from omniforcing.pipeline.config import Config
from omniforcing.pipeline.planner.networks import Sizes

# Parameters of the parts of a release around its transformer; a test counts them.
CODECS = {"2.0": 1_331_320_549, "2.3": 907_891_563, "2.5": 907_891_563}
CONNECTORS = {"2.0": 1_431_475_200, "2.3": 3_172_227_584, "2.5": 3_172_227_584}
DIFFUSION_PARAMETERS = 417_133_616  # of LTX-2.5's, beside its convolutional one
# Numbers that the convolutional decoder keeps of a stream for each token of a latent: the inputs
# that its layers need again. Linear in the picture; a test counts them, too.
KEPT = {"2.0": 169_856, "2.3": 217_088, "2.5": 217_088}
# Of Gemma 3 12B with its vision tower; LTX-2.5's Gemma 4 is as large.
GEMMA = 12.2e9
FP32, BF16 = 4, 2
GB = 1e9


@dataclass(frozen=True)
class StreamMemory:
    """Bytes that a stream takes between two forwards; those of activations come on top.

    Attributes:
        student: weights of the student.
        cache: keys and values of the prefix, the window and the present block.
        prompt: keys and values of the prompt.
        text: Gemma and the connectors, while they are loaded.
        codec: VAEs and vocoder, in fp32.
        decoder: what the video decoder keeps of the stream, in fp32.
    """

    student: float
    cache: float
    prompt: float
    text: float
    codec: float
    decoder: float

    @property
    def total(self) -> float:
        """Bytes of all parts."""
        return sum(asdict(self).values())


def student_numbers(
    core: Mapping[str, Any],
    table: BlockTable,
    window: int,
    grid: tuple[int, int],
    length: int,
    texts: int = 1,
) -> dict[str, int]:
    """Count the numbers that a student holds in a stream.

    Args:
        core: arguments of diffusers' transformer.
        table: the block table.
        window: past blocks visible besides the prefix.
        grid: rows and columns of a video latent.
        length: tokens of a prompt.
        texts: sigmas for each of which keys and values of the prompt are held.

    Returns:
        ``weights``; ``joined``, those of them that fast blocks also hold in joined form unless the
        originals are freed; ``cache``, ``prompt``.
    """
    with torch.device("meta"):
        network = LTX2VideoTransformer3DModel(**core)
    weights = joined = 0
    for name, parameter in network.named_parameters():
        weights += parameter.numel()
        # Attention to the text (attn2) keeps its projections apart.
        projection = name.endswith(("to_q.weight", "to_k.weight", "to_v.weight"))
        if projection and "attn2" not in name:
            joined += parameter.numel()
    counts = table.total(table.ring(window) + 1)
    tokens = {"video": counts.video * grid[0] * grid[1], "audio": counts.audio}
    video_width = network.config.num_attention_heads * network.config.attention_head_dim
    audio_width = network.config.audio_cross_attention_dim
    cached = 0
    for site, (_, keys, _) in SITES.items():
        # Both cross-modal attentions are as wide as the audio stream.
        width = video_width if site == "video" else audio_width
        cached += 3 * tokens[keys] * width  # un-rotated keys, keys and values
    prompt = 2 * length * (video_width + audio_width) * texts
    layers = network.config.num_layers
    return {
        "weights": weights,
        "joined": joined,
        "cache": cached * layers,
        "prompt": prompt * layers,
    }


def stream_memory(
    config: Config, sizes: Sizes, precision: int, text_kept: bool = True
) -> StreamMemory:
    """Plan the memory of a stream of a preset that loads LTX-2.

    Args:
        config: the configuration.
        sizes: sizes of its networks.
        precision: bytes of a number of student and text encoder.
        text_kept: whether the text encoder stays in memory between prompts.
    """
    release, student = config.teacher.release, config.student
    rollout = rollout_config(student, config.clips.latent_counts, sizes.grid)
    # From LTX-2.3 on the prompt's keys and values are held for each step and for the refresh.
    modulated = sizes.core.get("cross_attn_mod", False)
    follows = modulated and sizes.core.get("use_prompt_adaln_single", True)
    texts = len({*rollout.sigmas, rollout.context_noise}) if follows else 1
    numbers = student_numbers(
        sizes.core, rollout.table, rollout.window, rollout.grid, sizes.length, texts
    )
    text = GEMMA + CONNECTORS[release] if text_kept else 0
    return StreamMemory(
        student=precision * numbers["weights"],
        cache=precision * numbers["cache"],
        prompt=precision * numbers["prompt"],
        text=precision * text,
        codec=FP32 * codec_weights(config),
        decoder=FP32 * _kept(config, sizes),
    )


def codec_weights(config: Config) -> int:
    """Count the parameters of VAEs and vocoder, and of the diffusion decoder where it is used."""
    return CODECS[config.teacher.release] + _by_diffusion(config) * DIFFUSION_PARAMETERS


def _by_diffusion(config: Config) -> bool:
    return config.codec.video_decoder is VideoDecoder.diffusion


def _kept(config: Config, sizes: Sizes) -> int:
    """Count the numbers that the video decoder keeps between two blocks of a stream."""
    rows, columns = sizes.grid
    if not _by_diffusion(config):
        return KEPT[config.teacher.release] * rows * columns
    # It keeps latents alone: those that the next piece is decoded with.
    return int(sizes.core["in_channels"]) * (DIFFUSION.again + DIFFUSION.ahead) * rows * columns


def stream_plans(config: Config, sizes: Sizes) -> dict[str, StreamMemory]:
    """Plan a stream under each setting of an engine, by its name.

    Returns:
        Nothing for a preset that does not load LTX-2: its parts are small.
    """
    if config.teacher.source is not Source.load:
        return {}
    return {
        "fp32": stream_memory(config, sizes, FP32),
        "bf16": stream_memory(config, sizes, BF16),
        "bf16, text encoder freed": stream_memory(config, sizes, BF16, text_kept=False),
    }


def latents_memory(config: Config) -> dict[str, float]:
    """Plan the weights that a worker of stage latents holds, in bytes: the codec, then the text.

    Both are never held at once. The text encoder is loaded as it is published, in bf16.

    Returns:
        Bytes by part; nothing for a preset that does not load LTX-2.
    """
    if config.teacher.source is not Source.load:
        return {}
    text = GEMMA + CONNECTORS[config.teacher.release]
    return {"codec": FP32 * codec_weights(config), "text": BF16 * text}


def as_table(plans: Mapping[str, StreamMemory], latents: Mapping[str, float]) -> str:
    """Write plans as lines of text, in GB; empty without plans."""
    if not plans:
        return ""
    names = list(asdict(next(iter(plans.values()))))
    lines = ["a stream between two forwards, GB"]
    lines.append(f"{'precision':<26}" + "".join(f"{name:>10}" for name in [*names, "all"]))
    for title, plan in plans.items():
        sizes = [*asdict(plan).values(), plan.total]
        lines.append(f"{title:<26}" + "".join(f"{size / GB:>10.1f}" for size in sizes))
    parts = ", then ".join(f"{name} {size / GB:.1f}" for name, size in latents.items())
    lines.append(f"weights of a worker of stage latents, GB: {parts}")
    return "\n".join(lines)
