"""Receptive fields of the decoders in time, and the settings that a codec needs to be streamed.

``Reach`` says how a video decoder that is not causal is decoded piece by piece; ``vocoder_reach``
counts how many mel frames a sample depends on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from omniforcing.core.errors import OmniForcingError


class StreamingError(OmniForcingError):
    """Error of a codec that cannot be decoded piece by piece."""


@dataclass(frozen=True)
class Reach:
    """How a video decoder that looks both ways is decoded piece by piece; all 0 if it is causal.

    Attributes:
        ahead: latents after a frame's own that must be known before the frame comes out.
        again: latents before them that every piece decodes again, now knowing more of what follows.
        blend: frames over which a piece fades in from the previous piece's version of them, which
            was made with less look-ahead.

    Raises:
        StreamingError: if a value is negative, or ``blend`` exceeds the frames of ``ahead``.
    """

    ahead: int = 0
    again: int = 0
    blend: int = 0

    def __post_init__(self) -> None:
        if min(self.ahead, self.again, self.blend) < 0 or self.blend > 8 * self.ahead:
            raise StreamingError(
                "codec.impossible-reach",
                f"{self} is impossible: no value may be negative, and blend is at most 8 frames "
                "for each latent ahead",
            )


# The least look-ahead for 45 dB at LTX-2's depth in the curve of `python -m benchmarks.lookahead`
# (docs/results/decoding.md), where decoding again gains 1 dB and blending loses some. The curve is
# that of random weights: a trained decoder needs less, and its codec.json may say so.
NON_CAUSAL = Reach(ahead=6)


def video_reach(config: Any) -> Reach:
    """Return the reach of a video VAE whose codec declares none."""
    return Reach() if config.decoder_causal else NON_CAUSAL


def described_reach(description: Mapping[str, Any]) -> Reach:
    """Return the reach that a ``codec.json`` declares for its video decoder."""
    # Older ones only say whether the decoder is causal.
    declared = description.get("video_reach")
    if declared is not None:
        return Reach(**declared)
    return Reach() if description["video_decoder_causal"] else NON_CAUSAL


def require_settings(part: str, settings: dict[str, tuple[Any, Any]]) -> None:
    """Check that a part of a codec has the settings that streaming needs.

    Args:
        part: name of the part, for the message.
        settings: name of each setting -> (its value, the value that streaming needs).

    Raises:
        StreamingError: for the first setting that differs.
    """
    for name, (found, needed) in settings.items():
        if found != needed:
            raise StreamingError(
                "codec.cannot-stream",
                f"streaming needs a {part} with {name}={needed!r}, found {found!r}; "
                "train or fine-tune one with that setting",
            )


def vocoder_reach(config: Any) -> int:
    """Count the mel frames on either side that an output sample depends on.

    Args:
        config: config of an ``LTX2Vocoder``.

    Raises:
        StreamingError: if its activations filter in time, which is not counted here.
    """
    require_settings(
        "vocoder", {"act_fn": (config.act_fn, "leaky_relu"), "antialias": (config.antialias, False)}
    )
    # Every level runs several resnets side by side; the widest counts. Each dilation is followed by
    # a convolution without one.
    grow = 0
    for kernel, dilations in zip(config.resnet_kernel_sizes, config.resnet_dilations, strict=True):
        grow = max(grow, sum((kernel // 2) * (dilation + 1) for dilation in dilations))
    # From the last layer back to the first, the reach of one sample in units of each layer's input.
    # The last convolution has 7 taps, and so has the first.
    left = right = 3
    levels = zip(config.upsample_factors, config.upsample_kernel_sizes, strict=True)
    for stride, kernel in reversed(list(levels)):
        # Output i of a transposed convolution reads inputs (i + padding - kernel + 1) / stride to
        # (i + padding) / stride; the worst i of a stride counts on either side.
        padding = (kernel - stride) // 2
        left = (left + grow - padding + kernel - 1) // stride
        right = (stride - 1 + right + grow + padding) // stride
    return max(left, right) + 3
