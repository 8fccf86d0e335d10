"""Tiny transformers of LTX-2's architecture, and latents for them."""

from typing import Any

import torch

from benchmarks.published.transformer import tiny_config
from omniforcing.core.latents import Latents, TextFeatures
from omniforcing.core.layout import Counts
from omniforcing.core.pair import Pair
from omniforcing.model.config import Stabiliser
from omniforcing.model.student import build_core
from omniforcing.model.transformer import DualStream

GRID = (2, 3)
TOLERANCE = 1e-5


def tiny_model(
    sinks: int = 0,
    stabiliser: Stabiliser = Stabiliser.sinks,
    checkpoint_activations: bool = False,
    **changes: Any,
) -> DualStream:
    """A tiny dual-stream model with sinks, or what stabilises instead, large enough to matter."""
    core = build_core(tiny_config(**changes), seed=1)
    model = DualStream(core, sinks, stabiliser, checkpoint_activations)
    with torch.no_grad():
        model.sinks.mul_(50)
        if core.config.use_keyframes_abs_pos_embedding:  # zeros until it is trained
            width = core.keyframes_abs_pos_embedding.shape[1]
            core.keyframes_abs_pos_embedding.copy_(torch.linspace(-1, 1, width)[None])
        for parameter in (model.qk_gain, model.tanh_gate):
            if parameter is not None:
                parameter.copy_(torch.linspace(0.5, 2, parameter.numel()).view_as(parameter))
    return model


def latents(counts: Counts, batch: int = 2, seed: int = 0) -> Latents:
    """Gaussian latents for the tiny model."""
    g = torch.Generator().manual_seed(seed)
    return Pair(
        torch.randn(batch, counts.video, GRID[0] * GRID[1], 8, generator=g),
        torch.randn(batch, counts.audio, 12, generator=g),
    )


def features(batch: int = 2, seed: int = 0, model: DualStream | None = None) -> TextFeatures:
    """Text features for the tiny model: of LTX-2.0, or as ``model`` takes them."""
    widths = [20, 20]
    if model is not None and not model.core.config.use_prompt_embeddings:
        widths = [48, 32]
    g = torch.Generator().manual_seed(100 + seed)
    video, audio = (torch.randn(batch, 5, width, generator=g) for width in widths)
    return Pair(video, audio)


def difference(a: Latents, b: Latents) -> float:
    """Largest absolute difference of two pairs of latents."""
    return max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True))


def library_core(core: Any) -> Any:
    """Diffusers' transformer with the same weights, whose own forward is the oracle of ours."""
    import diffusers

    config = {key: value for key, value in core.config.items() if not key.startswith("_")}
    library = diffusers.LTX2VideoTransformer3DModel(**config).to(core.dtype).eval()
    library.load_state_dict(core.state_dict())
    return library
