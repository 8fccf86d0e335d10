"""A value for video and one for audio; what both need is written once and mapped over them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:  # media is read and written without torch, which takes seconds to import
    import torch
    from torch import Tensor

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True)
class Pair(Generic[T]):
    """One value for video and one for audio."""

    video: T
    audio: T

    def __iter__(self) -> Iterator[T]:
        yield self.video
        yield self.audio

    def map(self, function: Callable[..., U], *others: Pair[Any]) -> Pair[U]:
        """Apply a function to each modality; values of ``others`` are its further arguments."""
        return Pair(
            function(self.video, *(other.video for other in others)),
            function(self.audio, *(other.audio for other in others)),
        )

    def to(self: Pair[Tensor], device: str | torch.device) -> Pair[Tensor]:
        """Move both tensors to a device."""
        return self.map(lambda x: x.to(device))

    def items(self) -> Iterator[tuple[str, T]]:
        """Yield ``("video", value)`` and ``("audio", value)``, for logging and files."""
        yield "video", self.video
        yield "audio", self.audio


# Frames uint8 ``[..., T, H, W, 3]`` and samples float32 ``[..., 2, N]``, as arrays or tensors.
Media = Pair[Any]
