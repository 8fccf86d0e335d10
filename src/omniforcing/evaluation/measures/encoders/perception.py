"""Perception Encoder Audio-Video (PE-AV): picture, sound and text in one space.

Its picture tower is one of `timm`, which needs `torchvision`: both are in the extra `measures`.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from omniforcing.core.layout import FPS, SAMPLE_RATE
from omniforcing.evaluation.measures.clips import Clip
from omniforcing.evaluation.measures.encoders.models import BATCH, Features, load, unit
from omniforcing.evaluation.measures.encoders.weights import Unusable, Weights

NEEDED = ("timm", "torchvision")


class PerceptionEncoder:
    """PE-AV: whole pictures and sounds, single frames and pieces of sound, and texts.

    The model's parts are called one by one: ``PeAudioVideoModel.get_video_embeds`` and its texts'
    counterparts call methods that their parts do not have (transformers 5.23).
    """

    name = "pe_av"

    def __init__(self, weights: Weights) -> None:
        folder = weights.folder(self.name, "pe_audio_video")
        lacking = [name for name in NEEDED if find_spec(name) is None]
        if lacking:
            raise Unusable(
                f"PE-AV needs {' and '.join(lacking)}: pip install -c constraints.txt "
                "'omniforcing[measures]'"
            )
        from transformers import (
            AutoTokenizer,
            PeAudioFeatureExtractor,
            PeAudioVideoModel,
            PeVideoVideoProcessor,
        )

        self.model = load(PeAudioVideoModel, folder, weights.device)
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            self.of_sound = PeAudioFeatureExtractor.from_pretrained(folder, local_files_only=True)
            self.of_video = PeVideoVideoProcessor.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise Unusable(f"{folder} has no tokenizer or preprocessor of PE-AV") from error

    @torch.no_grad()
    def picture(self, clip: Clip) -> Features:
        """Embed a clip's picture ``[D]``, of the frames that the weights' own settings choose."""
        if "pe_picture" not in clip.embedded:
            about = {"total_num_frames": len(clip.media.video), "fps": FPS}
            pixels = self._pixels(clip.media.video, video_metadata=[about])
            clip.embedded["pe_picture"] = self._videos(pixels[None])[0]
        return clip.embedded["pe_picture"]

    @torch.no_grad()
    def frames(self, clip: Clip) -> Features:
        """Embed each frame of a clip ``[T, D]``, as a video of its own."""
        parts = []
        for first in range(0, len(clip.media.video), BATCH):
            chosen = clip.media.video[first : first + BATCH]
            pixels = self._pixels(chosen, do_sample_frames=False)
            parts.append(self._videos(pixels[:, None]))
        return np.concatenate(parts)

    @torch.no_grad()
    def sound(self, pieces: NDArray[Any]) -> Features:
        """Embed sounds ``[N, samples]`` at 16 kHz, ``[N, D]``."""
        from torchaudio.functional import resample

        rate = self.of_sound.sampling_rate
        waves = resample(torch.as_tensor(pieces).float(), SAMPLE_RATE, rate).numpy()
        inputs = self.of_sound(list(waves), sampling_rate=rate, return_tensors="pt")
        return unit(self.model.get_audio_embeds(**inputs.to(self.model.device)))

    def video_text(self, caption: str) -> Features:
        """Embed a caption ``[D]``, to be compared with pictures."""
        return self._text(caption, self.model.video_model.text_video_head)

    def sound_text(self, caption: str) -> Features:
        """Embed a caption ``[D]``, to be compared with sounds."""
        return self._text(caption, self.model.audio_model.text_audio_head)

    @torch.no_grad()
    def _text(self, caption: str, head: Any) -> Features:
        longest = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(
            [caption], return_tensors="pt", truncation=True, max_length=longest
        ).to(self.model.device)
        mask = tokens.attention_mask
        found = self.model.text_model(tokens.input_ids, mask, output_hidden_states=True)
        return unit(head(found.hidden_states[-1][:, 0]))[0]

    def _pixels(self, frames: NDArray[np.uint8], **options: Any) -> Tensor:
        """Prepare frames as the weights' own settings say, ``[T, 3, H, W]``."""
        video = torch.as_tensor(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
        prepared = self.of_video([video], return_tensors="pt", **options)
        pixels: Tensor = prepared.pixel_values_videos[0]
        return pixels

    def _videos(self, pixels: Tensor) -> Features:
        """Embed videos ``[N, T, 3, H, W]``."""
        part = self.model.video_model
        found = part.video_encoder(pixel_values_videos=pixels.to(self.model.device))
        return unit(part.video_head(found.pooler_output))
