"""Log-mel spectrograms as LTX-2's audio VAE takes them, and resampling.

16 kHz stereo, windows of 1024 samples every 160, 64 Slaney bands up to 8 kHz, natural log of the
magnitude. Mel frame m is centred on sample 160 m, so K seconds give 1+100K frames. Decoding does
not need this module.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from omniforcing.core.layout import HOP, SAMPLE_RATE

MEL_BINS = 64
WINDOW = 1024
FLOOR = 1e-5  # least magnitude: digital silence is ln(1e-5) = -11.51


@cache
def _transform(device: torch.device) -> Any:
    from torchaudio.transforms import MelSpectrogram

    return MelSpectrogram(
        sample_rate=SAMPLE_RATE,
        n_fft=WINDOW,
        hop_length=HOP,
        n_mels=MEL_BINS,
        f_min=0.0,
        f_max=SAMPLE_RATE / 2,
        power=1.0,
        center=True,
        pad_mode="reflect",
        norm="slaney",
        mel_scale="slaney",
    ).to(device)


def resample(samples: Tensor, rate: int) -> Tensor:
    """Resample waveforms to 16 kHz without delay.

    Args:
        samples: float ``[..., N]``.
        rate: their rate in Hz.

    Returns:
        Float ``[..., ceil(N * 16000 / rate)]``; sample i is the sound at i / 16000 s.
    """
    if rate == SAMPLE_RATE:
        return samples
    from torchaudio.functional import resample as at_rate

    # Less than 0.1 dB lost up to 7 kHz, and nothing above 8.1 kHz folded down: the defaults fold
    # 8.5 kHz to 7.5 kHz 11 dB down only.
    result: Tensor = at_rate(
        samples,
        rate,
        SAMPLE_RATE,
        lowpass_filter_width=64,
        rolloff=0.9476,
        resampling_method="sinc_interp_kaiser",
        beta=14.77,
    )
    return result


def log_mel(samples: Tensor) -> Tensor:
    """Compute log-mel spectrograms; differentiable.

    Args:
        samples: float ``[B, 2, N]`` at 16 kHz.

    Returns:
        Natural log of the mel magnitude, ``[B, 2, 1 + N/160, 64]``.
    """
    return _transform(samples.device)(samples).clamp(min=FLOOR).log().transpose(-1, -2)
