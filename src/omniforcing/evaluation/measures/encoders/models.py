"""Encoders of `transformers`: architecture from its config, weights from a folder, no download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional

from omniforcing.core.layout import SAMPLE_RATE
from omniforcing.evaluation.measures.clips import Clip
from omniforcing.evaluation.measures.encoders.weights import Unusable, Weights, json_object

Features = NDArray[np.float32]
BATCH = 16  # frames at a time
CLIP_FRAMES = 48  # of a clip, evenly spaced
DINO_RATE = 8  # frames per second
CLAP_RATE = 48000
# What `transformers` raises for weights that are not what their config says.
_FAULTS: tuple[type[Exception], ...] = (
    *(OSError, ValueError, RuntimeError, LookupError, AttributeError, TypeError),
    SafetensorError,
)
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
OPENAI = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])


def pictures(frames: NDArray[np.uint8], size: int, mean: list[float], std: list[float]) -> Tensor:
    """Prepare frames: short side to ``size``, centre crop, normalised.

    Args:
        frames: uint8 ``[T, H, W, 3]``.
        size: side of the square.
        mean: of each channel.
        std: of each channel.

    Returns:
        Float ``[T, 3, size, size]``.
    """
    pixels = torch.as_tensor(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float() / 255
    scale = size / min(pixels.shape[2:])
    shape = [max(size, round(side * scale)) for side in pixels.shape[2:]]
    pixels = functional.interpolate(pixels, shape, mode="bicubic", antialias=True).clamp(0, 1)
    top, left = ((side - size) // 2 for side in shape)
    pixels = pixels[..., top : top + size, left : left + size]
    return (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def evenly(count: int, most: int) -> NDArray[np.int64]:
    """Indices of at most ``most`` of ``count`` frames, evenly spaced."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(np.int64)


def load(kind: Any, folder: Path, device: str) -> Any:
    """Load a model from safetensors in its folder.

    Raises:
        Unusable: if they cannot be loaded, or lack a tensor, which would stay random.
    """
    try:
        model, told = kind.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except _FAULTS as error:
        said = " ".join(str(error).split())[:120]
        raise Unusable(f"{folder} cannot be loaded: {said}") from error
    lacking = sorted(told["missing_keys"]) + sorted(map(str, told["mismatched_keys"]))
    if lacking:
        raise Unusable(f"{folder} lacks {len(lacking)} tensors, first {lacking[0]}")
    return model.eval().to(device)


def unit(features: Tensor) -> Features:
    """Features of length 1, as an array."""
    array: Features = functional.normalize(features.float(), dim=-1).cpu().numpy()
    return array


class ClipEncoder:
    """CLIP: frames and texts."""

    name = "clip"

    def __init__(self, weights: Weights) -> None:
        from transformers import AutoTokenizer, CLIPModel

        folder = weights.folder(self.name, "clip")
        self.model = load(CLIPModel, folder, weights.device)
        self.tokenizer = _tokenizer(AutoTokenizer, folder)
        self.size = self.model.config.vision_config.image_size
        self.normal = normalisation(folder, OPENAI)

    @torch.no_grad()
    def frames(self, clip: Clip) -> Features:
        """Embed ``CLIP_FRAMES`` frames ``[T, D]``."""
        chosen = clip.media.video[evenly(len(clip.media.video), CLIP_FRAMES)]
        parts = []
        for first in range(0, len(chosen), BATCH):
            pixels = pictures(chosen[first : first + BATCH], self.size, *self.normal)
            parts.append(self.model.get_image_features(pixels.to(self.model.device)).pooler_output)
        return unit(torch.cat(parts))

    @torch.no_grad()
    def text(self, caption: str) -> Features:
        """Embed a caption ``[D]``; what exceeds the encoder's length is cut."""
        longest = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(
            [caption], return_tensors="pt", truncation=True, max_length=longest
        ).to(self.model.device)
        return unit(self.model.get_text_features(**tokens).pooler_output)[0]


class ClapEncoder:
    """CLAP: sounds and texts."""

    name = "clap"

    def __init__(self, weights: Weights) -> None:
        from transformers import AutoTokenizer, ClapFeatureExtractor, ClapModel

        folder = weights.folder(self.name, "clap")
        self.model = load(ClapModel, folder, weights.device)
        self.tokenizer = _tokenizer(AutoTokenizer, folder)
        try:
            self.extractor = ClapFeatureExtractor.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise Unusable(f"{folder} has no feature extractor that can be loaded") from error

    @torch.no_grad()
    def sound(self, clip: Clip) -> Features:
        """Embed a clip's sound ``[D]``: 48 kHz, one channel, the encoder's own padding."""
        key = "clap"
        if key not in clip.embedded:
            mono = torch.as_tensor(clip.media.audio).float().mean(0)
            from torchaudio.functional import resample

            # The extractor draws where to cut a sound that is too long.
            wave = resample(mono, SAMPLE_RATE, CLAP_RATE).numpy()[: self.extractor.nb_max_samples]
            inputs = self.extractor(wave, sampling_rate=CLAP_RATE, return_tensors="pt")
            output = self.model.get_audio_features(**inputs.to(self.model.device))
            clip.embedded[key] = unit(output.pooler_output)[0]
        return clip.embedded[key]

    @torch.no_grad()
    def text(self, caption: str) -> Features:
        """Embed a caption ``[D]``."""
        tokens = self.tokenizer([caption], return_tensors="pt", truncation=True, max_length=77)
        return unit(self.model.get_text_features(**tokens.to(self.model.device)).pooler_output)[0]


class DinoEncoder:
    """DINOv2: what stands in frames."""

    name = "dinov2"

    def __init__(self, weights: Weights) -> None:
        from transformers import Dinov2Model

        folder = weights.folder(self.name, "dinov2")
        self.model = load(Dinov2Model, folder, weights.device)
        self.size = min(224, self.model.config.image_size)
        self.normal = normalisation(folder, IMAGENET)

    @torch.no_grad()
    def frames(self, clip: Clip) -> Features:
        """Embed ``DINO_RATE`` frames per second ``[T, D]``."""
        chosen = clip.media.video[:: 24 // DINO_RATE]
        parts = []
        for first in range(0, len(chosen), BATCH):
            pixels = pictures(chosen[first : first + BATCH], self.size, *self.normal)
            parts.append(self.model(pixels.to(self.model.device)).pooler_output)
        return unit(torch.cat(parts))


class VjepaEncoder:
    """V-JEPA 2: how things look and move."""

    name = "vjepa2"

    def __init__(self, weights: Weights) -> None:
        from transformers import VJEPA2Model

        folder = weights.folder(self.name, "vjepa2")
        self.model = load(VJEPA2Model, folder, weights.device)
        self.normal = normalisation(folder, IMAGENET)

    @torch.no_grad()
    def picture(self, clip: Clip) -> Features:
        """Embed a clip's picture ``[D]``: the mean of all tokens."""
        key, config = "vjepa2", self.model.config
        if key not in clip.embedded:
            chosen = clip.media.video[evenly(len(clip.media.video), config.frames_per_clip)]
            even = len(chosen) // config.tubelet_size * config.tubelet_size
            pixels = pictures(chosen[:even], config.crop_size, *self.normal)[None]
            output = self.model(pixels.to(self.model.device), skip_predictor=True)
            clip.embedded[key] = output.last_hidden_state.mean(1)[0].float().cpu().numpy()
        return clip.embedded[key]


def normalisation(
    folder: Path, otherwise: tuple[list[float], list[float]]
) -> tuple[list[float], list[float]]:
    """Mean and deviation of the channels, from ``preprocessor_config.json`` if there is one."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return otherwise
    found = json_object(path)
    return found.get("image_mean", otherwise[0]), found.get("image_std", otherwise[1])


def _tokenizer(kind: Any, folder: Path) -> Any:
    try:
        return kind.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise Unusable(f"{folder} has no tokenizer that can be loaded") from error
