"""How far decoders look and hear around what they make, and what a codec must be to be streamed at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from omniforcing.core.errors import OmniForcingError


class StreamingError(OmniForcingError):
    """A codec that cannot be decoded piece by piece; names the setting that stands in the way."""


@dataclass(frozen=True)
class Reach:
    """How a video decoder that looks both ways is decoded piece by piece; all 0 for a causal one.

    Attributes:
        ahead: latents after a frame's own that must be known before it comes out.
        again: latents before that are decoded again with every piece, now with more of what follows them.
        blend: frames over which a piece fades in from what the piece before made of them, with less look-ahead.
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


# The least for 45 dB at LTX-2's depth in the curve of `python -m benchmarks.lookahead` (docs/results/decoding.md), where decoding
# again gains 1 dB and blending loses some. Of random weights: a trained decoder needs less, and its codec.json may say so.
NON_CAUSAL = Reach(ahead=6)


def video_reach(config: Any) -> Reach:
    """What a video VAE's decoder gets unless its codec declares otherwise."""
    return Reach() if config.decoder_causal else NON_CAUSAL


def described_reach(description: Mapping[str, Any]) -> Reach:
    """What a ``codec.json`` declares for its video decoder; those of before say only whether it is causal."""
    declared = description.get("video_reach")
    if declared is not None:
        return Reach(**declared)
    return Reach() if description["video_decoder_causal"] else NON_CAUSAL


def require_settings(part: str, settings: dict[str, tuple[Any, Any]]) -> None:
    """Raise ``StreamingError`` for the first setting (found, needed) of a part that is not what streaming needs."""
    for name, (found, needed) in settings.items():
        if found != needed:
            raise StreamingError(
                "codec.cannot-stream",
                f"streaming needs a {part} with {name}={needed!r}, found {found!r}; train or fine-tune one with that setting",
            )


def vocoder_reach(config: Any) -> int:
    """How many mel frames on either side an output sample depends on, from the convolutions' arithmetic.

    Raises:
        StreamingError: for activations that filter in time, whose reach this does not count.
    """
    require_settings(
        "vocoder", {"act_fn": (config.act_fn, "leaky_relu"), "antialias": (config.antialias, False)}
    )
    resnets = zip(config.resnet_kernel_sizes, config.resnet_dilations, strict=True)
    grow = max(
        sum((kernel // 2) * (dilation + 1) for dilation in dilations)
        for kernel, dilations in resnets
    )
    left = right = 3  # the last convolution has 7 taps
    for stride, kernel in reversed(
        list(zip(config.upsample_factors, config.upsample_kernel_sizes, strict=True))
    ):
        padding = (kernel - stride) // 2
        left = (left + grow - padding + kernel - 1) // stride
        right = (stride - 1 + right + grow + padding) // stride
    return max(left, right) + 3  # and so has the first
