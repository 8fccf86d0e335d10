"""The causal student: LTX-2's modules, sink tokens, and how both are saved and loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import LTX2VideoTransformer3DModel

from omniforcing.config import Stabiliser, TransformerConfig
from omniforcing.errors import OmniForcingError
from omniforcing.layout import Counts
from omniforcing.model.attention import Positions
from omniforcing.model.stabiliser import adopt, load_added, save_added
from omniforcing.model.transformer import DualStream

SINKS_FILE = "sinks.safetensors"


def core_config(model: TransformerConfig, codec: dict[str, Any], caption_channels: int) -> dict[str, Any]:
    """Arguments of diffusers' transformer for a codec (its ``codec.json``) and a width of text features.

    Everything that LTX-2.0's released config sets apart from the constructor's defaults is set here too.
    """
    pixels = codec["height"] // codec["grid"][0]
    return {
        "in_channels": codec["video_channels"],
        "out_channels": codec["video_channels"],
        "num_attention_heads": model.heads,
        "attention_head_dim": model.video_head_dim,
        "cross_attention_dim": model.heads * model.video_head_dim,
        "vae_scale_factors": (8, pixels, pixels),
        "base_height": model.base_size,
        "base_width": model.base_size,
        "audio_in_channels": codec["audio_channels"],
        "audio_out_channels": codec["audio_channels"],
        "audio_num_attention_heads": model.heads,
        "audio_attention_head_dim": model.audio_head_dim,
        "audio_cross_attention_dim": model.heads * model.audio_head_dim,
        "num_layers": model.layers,
        "caption_channels": caption_channels,
        "rope_type": "split",
    }


def build_core(config: dict[str, Any], seed: int) -> LTX2VideoTransformer3DModel:
    """A transformer of random weights that depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LTX2VideoTransformer3DModel(**config)


def save_model(model: DualStream, folder: Path) -> None:
    """Write ``transformer/`` in diffusers format, and the sinks (or what stabilises instead) beside it."""
    model.core.save_pretrained(folder / "transformer")
    save_added(model, folder / SINKS_FILE)


def load_model(folder: Path, sinks: int | None = None, device: str = "cpu", stabiliser: Stabiliser | None = None) -> DualStream:
    """Read a folder that ``save_model`` or diffusers wrote.

    Args:
        folder: holds ``transformer/``, or is itself a diffusers transformer folder; sinks are optional.
        sinks: how many sink tokens the model must have; when the file has none, they start from their initial values.
        device: where to.
        stabiliser: what the model must be stabilised by; when the file has nothing of any, it starts afresh.

    Raises:
        OmniForcingError: if the folder holds no transformer, its weights do not fit its config, or sinks or stabiliser differ.
    """
    source = folder / "transformer" if (folder / "transformer").is_dir() else folder
    if not (source / "config.json").is_file():
        raise OmniForcingError(f"{source} holds no transformer: config.json is missing; run the stage that writes it")
    try:
        core, report = LTX2VideoTransformer3DModel.from_pretrained(
            source, local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise OmniForcingError(f"{source} is not a readable LTX-2 transformer: {str(error).splitlines()[0]}") from error
    wrong = {k: v for k, v in report.items() if v and k in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")}
    if wrong:
        kind, names = next(iter(wrong.items()))
        raise OmniForcingError(
            f"{source}: {kind.replace('_', ' ')}: {list(names)[:3]}; the weights are of another architecture"
        )
    added = load_added(folder / SINKS_FILE)
    count = len(added.tensors.get("sinks", ())) if sinks is None else sinks
    model = DualStream(core, count, stabiliser or added.stabiliser or Stabiliser.sinks)
    adopt(model, added, folder / SINKS_FILE)
    return model.to(device)


def positions_for(model: DualStream, counts: Counts, grid: tuple[int, int], sinks: bool) -> Positions:
    """RoPE tables of a model over the first ``counts`` latents."""
    growing = model.stabiliser is Stabiliser.sinks_rope_growing
    return model.positions(model.core, counts, grid, model.sinks.shape[0] if sinks else 0, growing)
