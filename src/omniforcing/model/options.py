"""Options that make a stream fast. Blocks stay equal up to rounding; with fp8 they get coarser."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace

import torch

from omniforcing.core.errors import OmniForcingError

# Options that need a GPU.
GPU_ONLY = ("concurrent", "fp8")


@dataclass(frozen=True)
class InferenceOptions:
    """How a stream computes.

    Attributes:
        layers: fast blocks (``inference.fast``): projections joined; norms, adaLN, RoPE and GELU
            in fewer passes.
        conditions: text keys and values, and adaLN parameters, once per prompt and sigma instead
            of in every forward.
        ring: history in static buffers, written in place, instead of concatenated anew for every
            block and step.
        recorded: forwards recorded once and replayed without Python between their operations, on
            a CPU (with layers, conditions and ring; not with compiled).
        merged: a block's refresh and the next block's first step in one forward (needs ring); no
            faster on a CPU.
        compiled: the parts between attentions compiled by ``torch.compile``, and on a GPU whole
            forwards replayed as CUDA graphs (needs layers, conditions and ring; not with merged).
            The first blocks of a process wait for it.
        concurrent: the audio stream beside the video stream between cross-attentions (GPU, needs
            layers).
        fp8: weights and inputs of the linear layers in fp8 (GPU, needs layers).
    """

    layers: bool = True
    conditions: bool = True
    ring: bool = True
    recorded: bool = True
    merged: bool = False
    compiled: bool = False
    concurrent: bool = False
    fp8: bool = False

    def without_each(self) -> dict[str, InferenceOptions]:
        """For each option that is on, the options without it and without those that need it."""
        needed_by = {
            "layers": ("compiled", "concurrent", "fp8"),
            "conditions": ("compiled",),
            "ring": ("compiled", "merged"),
        }
        off = {name: (name, *needed_by.get(name, ())) for name, on in asdict(self).items() if on}
        return {name: replace(self, **dict.fromkeys(names, False)) for name, names in off.items()}

    def check(self, device: torch.device) -> None:
        """Refuse an option that a device does not have, or that lacks another one.

        Raises:
            OmniForcingError: naming the option.
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
                "speed-up compiled needs layers, conditions and ring, and one is off; "
                "switch it on, or compiled off",
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
                "speed-ups concurrent and fp8 need layers, which is off; "
                "switch layers on, or them off",
            )

    @property
    def speed_ups(self) -> tuple[str, ...]:
        """Names of the options that are on and off by default."""
        return tuple(name for name in OPTIONAL if getattr(self, name))


DEFAULT = InferenceOptions()
OPTIONAL = tuple(name for name, on in asdict(DEFAULT).items() if not on)


def with_speed_ups(names: Iterable[str]) -> InferenceOptions:
    """The default options and the named ones of ``OPTIONAL``.

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
