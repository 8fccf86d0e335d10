"""Receptive fields of the decoders in time, and the settings that a codec needs to be streamed.

``Reach`` says how a video decoder that is not causal is decoded piece by piece, ``SoundReach`` how
a vocoder is; ``network_reach`` counts how many frames a vocoder's sample depends on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from omniforcing.core.errors import OmniForcingError


class StreamingError(OmniForcingError):
    """Error of a codec that cannot be decoded piece by piece."""


@dataclass(frozen=True)
class Reach:
    """How a video decoder that looks both ways is decoded piece by piece; all 0 if it is causal.

    Attributes:
        ahead: latents after a frame's own that must be known before the frame comes out.
        again: latents before them that every piece decodes again, now knowing more of what follows;
            of a diffusion decoder the latents before a piece that it sees.
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


# The least look-ahead for 45 dB in the curves of `python -m benchmarks.lookahead` with each
# release's depth (docs/results/decoding.md), where decoding again gains 1 to 2 dB and blending
# loses some. The curves are those of random weights: a trained decoder needs less, and its
# codec.json may say so. A decoder of more levels looks further, in latents.
_AHEAD = {3: 6, 4: 7}  # levels of the decoder: LTX-2.0 has 3, LTX-2.3 and 2.5 have 4
_UNDECLARED = Reach(ahead=6)  # of a codec.json from before it was declared
DIFFUSION = Reach(ahead=4, again=6)


def video_reach(config: Any) -> Reach:
    """Return the reach of a video VAE whose codec declares none."""
    levels = len(config.decoder_block_out_channels)
    return Reach() if config.decoder_causal else Reach(_AHEAD.get(levels, max(_AHEAD.values())))


def described_reach(description: Mapping[str, Any]) -> Reach:
    """Return the reach that a ``codec.json`` declares for its video decoder."""
    # Older ones only say whether the decoder is causal.
    declared = description.get("video_reach")
    if declared is not None:
        return Reach(**declared)
    return Reach() if description["video_decoder_causal"] else _UNDECLARED


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


@dataclass(frozen=True)
class SoundReach:
    """How far a vocoder looks ahead when it is run piece by piece.

    Attributes:
        mel: mel frames (10 ms) after its own that a sample of the vocoder's network needs.
        frames: frames (5 ms) after its own that the bandwidth extender needs, at least 2; 0 for a
            vocoder without one.

    Raises:
        StreamingError: if a value is negative.
    """

    mel: int
    frames: int = 0

    def __post_init__(self) -> None:
        if min(self.mel, self.frames) < 0:
            raise StreamingError(
                "codec.impossible-reach", f"{self} is impossible: no value may be negative"
            )

    @property
    def look_ahead(self) -> int:
        """Mel frames by which the sound comes later."""
        return self.mel + -(-self.frames // 2)


@dataclass(frozen=True)
class BandwidthExtender:
    """What streaming must know of a vocoder's bandwidth extender.

    Attributes:
        reach: frames on either side that its output depends on.
        frame_samples: samples that it makes of a frame.
    """

    reach: int
    frame_samples: int


def bandwidth_extender(config: Any) -> BandwidthExtender | None:
    """Return the bandwidth extender of a vocoder by its config; None if it has none."""
    if "bwe_upsample_factors" not in config:
        return None
    own = {key.removeprefix("bwe_"): value for key, value in config.items() if "bwe_" in key}
    return BandwidthExtender(network_reach(own), prod(config["bwe_upsample_factors"]))


def described_sound_reach(description: Mapping[str, Any]) -> SoundReach | None:
    """Return the reach that a ``codec.json`` declares for its vocoder; older ones declare none."""
    declared = description.get("sound_reach")
    return None if declared is None else SoundReach(**declared)


def sound_reach(config: Any) -> SoundReach:
    """Return the reach of a vocoder whose codec declares none.

    Args:
        config: config of an ``LTX2Vocoder`` or ``LTX2VocoderWithBWE``.

    Raises:
        StreamingError: if its reach is not known.
    """
    extender, full = bandwidth_extender(config), network_reach(config)
    if extender is None:
        return SoundReach(full)
    # What is far has next to no weight in a chain of filtered activations: with half of it the
    # error is float rounding (`python -m benchmarks.sound`, docs/results/decoding.md). An odd
    # number of frames would wait for the same mel frame as the even number above it.
    return SoundReach(-(-full // 2), 2 * -(-extender.reach // 4))


# Inputs on either side that a filtered activation depends on: 12 taps at twice the rate, up and
# down again.
_ACTIVATION = 5


def network_reach(config: Mapping[str, Any]) -> int:
    """Count the frames on either side that a sample of a vocoder network depends on.

    Args:
        config: config of an ``LTX2Vocoder``.

    Raises:
        StreamingError: if its activations are of no released kind.
    """
    plain = config["act_fn"] == "leaky_relu"
    # With leaky ReLU, diffusers nests the filters of one resnet in those of the next.
    known: dict[str, tuple[Any, Any]] = {"antialias": (config["antialias"], False)}
    if not plain:
        known = {
            "act_fn": (config["act_fn"], "snakebeta"),
            "antialias": (config["antialias"], True),
            "antialias_ratio": (config["antialias_ratio"], 2),
            "antialias_kernel_size": (config["antialias_kernel_size"], 12),
        }
    require_settings("vocoder", known)
    activation = 0 if plain else _ACTIVATION
    # Every level runs several resnets side by side; the widest counts. Each dilation is followed by
    # a convolution without one, and an activation goes before either.
    grow = 0
    resnets = zip(config["resnet_kernel_sizes"], config["resnet_dilations"], strict=True)
    for kernel, dilations in resnets:
        reach = sum((kernel // 2) * (dilation + 1) + 2 * activation for dilation in dilations)
        grow = max(grow, reach)
    # From the last layer back to the first, the reach of one sample in units of each layer's input.
    # The last convolution has 7 taps, and so has the first.
    left = right = 3 + activation
    levels = zip(config["upsample_factors"], config["upsample_kernel_sizes"], strict=True)
    for stride, kernel in reversed(list(levels)):
        # Output i of a transposed convolution reads inputs (i + padding - kernel + 1) / stride to
        # (i + padding) / stride; the worst i of a stride counts on either side.
        padding = (kernel - stride) // 2
        left = (left + grow - padding + kernel - 1) // stride
        right = (stride - 1 + right + grow + padding) // stride
    return max(left, right) + 3
