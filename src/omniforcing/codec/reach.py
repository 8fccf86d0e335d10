"""How far a vocoder hears around a sample, and what a codec must be to be streamed at all."""

from __future__ import annotations

from typing import Any

from omniforcing.errors import OmniForcingError


class StreamingError(OmniForcingError):
    """A codec that cannot be decoded piece by piece; names the setting that stands in the way."""


def refuse(part: str, settings: dict[str, tuple[Any, Any]]) -> None:
    """Raise ``StreamingError`` for the first setting (found, needed) of a part that is not what streaming needs."""
    for name, (found, needed) in settings.items():
        if found != needed:
            raise StreamingError(
                f"streaming needs a {part} with {name}={needed!r}, found {found!r}; train or fine-tune one with that setting"
            )


def vocoder_reach(config: Any) -> int:
    """How many mel frames on either side an output sample depends on, from the convolutions' arithmetic.

    Raises:
        StreamingError: for activations that filter in time, whose reach this does not count.
    """
    refuse("vocoder", {"act_fn": (config.act_fn, "leaky_relu"), "antialias": (config.antialias, False)})
    resnets = zip(config.resnet_kernel_sizes, config.resnet_dilations, strict=True)
    grow = max(sum((kernel // 2) * (dilation + 1) for dilation in dilations) for kernel, dilations in resnets)
    left = right = 3  # the last convolution has 7 taps
    for stride, kernel in reversed(list(zip(config.upsample_factors, config.upsample_kernel_sizes, strict=True))):
        padding = (kernel - stride) // 2
        left = (left + grow - padding + kernel - 1) // stride
        right = (stride - 1 + right + grow + padding) // stride
    return max(left, right) + 3  # and so has the first
