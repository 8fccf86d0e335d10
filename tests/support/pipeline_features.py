"""Text features as diffusers' own pipeline makes them."""

from pathlib import Path
from typing import Any

import torch
from diffusers import LTX2Pipeline
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from transformers import AutoModel, AutoTokenizer

from omniforcing.core.latents import TextFeatures
from omniforcing.core.pair import Pair


def pipeline_features(
    folder: Path, prompts: list[str], dtype: torch.dtype, kind: Any = AutoModel
) -> TextFeatures:
    """Encode prompts of 16 tokens by a whole LTX-2's folder; the text encoder is a ``kind``."""
    # The pipeline pads on the left whatever the tokenizer says.
    pipeline = LTX2Pipeline(
        tokenizer=AutoTokenizer.from_pretrained(folder / "tokenizer"),
        text_encoder=kind.from_pretrained(folder / "text_encoder", dtype=dtype),
        **dict.fromkeys(("scheduler", "vae", "audio_vae", "connectors", "transformer", "vocoder")),
    )
    connectors = LTX2TextConnectors.from_pretrained(folder / "connectors", torch_dtype=dtype)
    with torch.no_grad():
        states, mask, _, _ = pipeline.encode_prompt(
            prompts, do_classifier_free_guidance=False, max_sequence_length=16
        )
        video, audio, _ = connectors(states, mask)
    return Pair(video, audio)
