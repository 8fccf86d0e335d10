"""The students that are measured: architectures, rollouts and random weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import LTX2VideoTransformer3DModel

from benchmarks.presets import load_preset
from omniforcing.core.files import read_json
from omniforcing.core.layout import LAYOUTS
from omniforcing.model.rollout import RolloutConfig
from omniforcing.model.student import core_config
from omniforcing.model.transformer import DualStream
from omniforcing.pocket.foundation import KEPT

SIGMAS = (1.0, 0.909375, 0.725, 0.421875)


@dataclass(frozen=True)
class Case:
    """A student with random weights, and what it streams.

    Attributes:
        core: arguments of diffusers' transformer.
        rollout: block table, spatial grid, denoising steps and window.
        text_tokens: length of a prompt.
        dtype: of the weights.
        codec: folder of a codec that decodes the stream; None: latents alone.
    """

    core: dict[str, Any]
    rollout: RolloutConfig
    text_tokens: int
    dtype: torch.dtype
    codec: Path | None = None

    @property
    def layers(self) -> int:
        return int(self.core["num_layers"])

    def with_layers(self, layers: int) -> Case:
        """Return this case with another number of layers."""
        return replace(self, core={**self.core, "num_layers": layers})

    def with_heads(self, heads: int) -> Case:
        """Return this case with another number of heads, of the same width, in both streams."""
        core = dict(self.core)
        for stream in ("", "audio_"):
            core[f"{stream}num_attention_heads"] = heads
            core[f"{stream}cross_attention_dim"] = heads * core[f"{stream}attention_head_dim"]
        return replace(self, core=core)


def ltx2_core(**changes: Any) -> dict[str, Any]:
    """Return the arguments of the LTX-2.0 transformer as released, with some of them changed."""
    released = {
        "num_attention_heads": 32,
        "attention_head_dim": 128,
        "cross_attention_dim": 4096,
        "caption_channels": 3840,
        "audio_num_attention_heads": 32,
        "audio_attention_head_dim": 64,
        "audio_cross_attention_dim": 2048,
        "num_layers": 48,
        "rope_type": "split",
    }
    return {**released, **changes}


def tiny() -> Case:
    """Four layers of 8 heads, 32 and 16 wide, on 8x8 tokens: small enough for any CPU."""
    core = ltx2_core(
        num_attention_heads=8,
        attention_head_dim=32,
        cross_attention_dim=256,
        audio_num_attention_heads=8,
        audio_attention_head_dim=16,
        audio_cross_attention_dim=128,
        num_layers=4,
        caption_channels=256,
    )
    rollout = RolloutConfig(LAYOUTS["merged"], (8, 8), SIGMAS, window=5, horizon=6)
    return Case(core, rollout, 128, torch.float32)


def ltx2() -> Case:
    """The 19B model at 512x768 pixels, in bf16."""
    rollout = RolloutConfig(LAYOUTS["merged"], (16, 24), SIGMAS, window=5, horizon=6)
    return Case(ltx2_core(), rollout, 1024, torch.bfloat16)


def pocket() -> Case:
    """The architecture and the codec of preset pocket, in the merged layout like the others."""
    config = load_preset("pocket")
    folder = KEPT / "codec"
    codec = read_json(folder / "codec.json")
    features = read_json(folder / "text" / "connectors" / "config.json")["caption_channels"]
    core = core_config(config.teacher.model, codec, features)
    rollout = RolloutConfig(LAYOUTS["merged"], tuple(codec["grid"]), SIGMAS, window=5, horizon=6)
    return Case(core, rollout, config.codec.text.length, torch.float32, folder)


CASES: dict[str, Callable[[], Case]] = {"tiny": tiny, "pocket": pocket, "ltx2": ltx2}


def random_student(case: Case, device: torch.device) -> DualStream:
    """Build a student with random weights.

    Weights are drawn on the device itself: 19B parameters never lie in the CPU's memory.
    """
    with torch.device("meta"):
        student = DualStream(LTX2VideoTransformer3DModel(**case.core))
    student = student.to(case.dtype).to_empty(device=device).eval()
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for name, parameter in student.core.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, parameter.shape[-1] ** -0.5, generator=generator)
            else:
                parameter.fill_(1.0 if "norm" in name else 0.0)
    return student
