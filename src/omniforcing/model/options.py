"""What makes a stream fast, as switches; every one leaves the blocks equal up to rounding, but fp8, which is coarser."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace

import torch

from omniforcing.core.errors import OmniForcingError

# Those that are made of what only a GPU has.
GPU_ONLY = ("concurrent", "fp8")


@dataclass(frozen=True)
class Speed:
    """Speed-ups of a stream.

    Attributes:
        layers: joined projections, and norms, adaLN, RoPE and GELU in fewer passes (``FastStudent``).
        conditions: text keys and values, and adaLN rows, once per prompt and sigma instead of per forward.
        ring: history in static buffers, written in place, instead of joined anew for every block and step.
        merged: a block's refresh and the next one's first step as one forward (with ring); on a CPU no faster.
        compiled: what lies between attentions compiled by ``torch.compile``, and on a GPU whole forwards replayed as CUDA
            graphs (with layers, conditions and ring, without merged); the first blocks of a process wait for it.
        concurrent: the audio stream beside the video stream between cross-attentions (GPU, with layers).
        fp8: weights and inputs of the linear layers in fp8 (GPU, with layers).
    """

    layers: bool = True
    conditions: bool = True
    ring: bool = True
    merged: bool = False
    compiled: bool = False
    concurrent: bool = False
    fp8: bool = False

    def without_each(self) -> dict[str, Speed]:
        """For each speed-up that is on, the others alone, and without those that need it."""
        needed_by = {
            "layers": ("compiled", "concurrent", "fp8"),
            "conditions": ("compiled",),
            "ring": ("compiled", "merged"),
        }
        off = {name: (name, *needed_by.get(name, ())) for name, on in asdict(self).items() if on}
        return {name: replace(self, **dict.fromkeys(names, False)) for name, names in off.items()}

    def check(self, device: torch.device) -> None:
        """Refuse what cannot be done on a device, or not without another speed-up.

        Raises:
            OmniForcingError: naming the switch.
        """
        for name in GPU_ONLY:
            if getattr(self, name) and device.type != "cuda":
                raise OmniForcingError(
                    "device.no-cuda",
                    f"speed-up {name} needs a CUDA device, found {device.type}; switch it off",
                )
        if self.compiled and not (self.layers and self.conditions and self.ring):
            raise OmniForcingError(
                "model.speed-ups-conflict",
                "speed-up compiled needs layers, conditions and ring, and one is off; switch it on, or compiled off",
            )
        if self.compiled and self.merged:
            raise OmniForcingError(
                "model.speed-ups-conflict",
                "speed-ups merged and compiled exclude each other; switch one of them off",
            )
        if self.merged and not self.ring:
            raise OmniForcingError(
                "model.speed-ups-conflict",
                "speed-up merged needs ring, which is off; switch ring on, or merged off",
            )
        if (self.concurrent or self.fp8) and not self.layers:
            raise OmniForcingError(
                "model.speed-ups-conflict",
                "speed-ups concurrent and fp8 need layers, which is off; switch layers on, or them off",
            )


DEFAULT = Speed()
OPTIONAL = tuple(name for name, on in asdict(DEFAULT).items() if not on)


def with_speed_ups(names: Iterable[str]) -> Speed:
    """The usual speed-ups and those of ``OPTIONAL`` that are named.

    Raises:
        OmniForcingError: for another name.
    """
    for name in names:
        if name not in OPTIONAL:
            raise OmniForcingError(
                "option.unknown-name",
                f"there is no speed-up {name!r} to switch on; known: {', '.join(OPTIONAL)}",
            )
    return replace(DEFAULT, **dict.fromkeys(names, True))
