"""Speed-ups that only a GPU has: fp8 products, forwards replayed as CUDA graphs, and two CUDA streams side by side."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from omniforcing.latents import Latents, Pair
from omniforcing.model.attention import View
from omniforcing.model.conditioning import Sigma, TextCache

FP8 = torch.float8_e4m3fn
T = TypeVar("T")


def to_fp8(x: Tensor) -> tuple[Tensor, Tensor]:
    """``x [N, C]`` as fp8 and the fp32 scale of each row ``[N, 1]`` that brings it back."""
    scale = x.abs().amax(-1, keepdim=True).float().clamp_min_(1e-12) / torch.finfo(FP8).max
    return (x / scale).to(FP8), scale


class Fp8Linear:
    """A linear layer whose weights are kept in fp8, a scale per output, and whose inputs are brought to it row by row."""

    def __init__(self, linear: nn.Linear) -> None:
        weight, scale = to_fp8(linear.weight.detach())
        # The product wants its second factor by columns, which is how the rows of the weight lie.
        self.weight, self.scale = weight.t(), scale.t().contiguous()
        self.bias = None if linear.bias is None else linear.bias.detach().to(torch.bfloat16)

    def __call__(self, x: Tensor) -> Tensor:
        rows, scale = to_fp8(x.flatten(0, -2))
        out = torch._scaled_mm(rows, self.weight, scale, self.scale, bias=self.bias, out_dtype=torch.bfloat16)
        return out.to(x.dtype).view(*x.shape[:-1], -1)


class Lanes:
    """Video on the current CUDA stream, audio beside it on another; whoever asked goes on when both are done."""

    def __init__(self) -> None:
        self.side = torch.cuda.Stream()

    def both(self, function: Callable[..., T], first: Pair[Any], *others: Pair[Any]) -> Pair[T]:
        """``first.map(function, *others)``.

        What one lane makes and the other reads outlives the call that reads it, so no memory is used again too early.
        """
        current = torch.cuda.current_stream()
        self.side.wait_stream(current)
        with torch.cuda.stream(self.side):
            audio = function(first.audio, *(other.audio for other in others))
        video = function(first.video, *(other.video for other in others))
        current.wait_stream(self.side)
        return Pair(video, audio)


@dataclass(frozen=True)
class Recording:
    """A forward that can be replayed: put latents into ``given``, call ``replay``, find the velocity in ``found``."""

    given: Latents
    found: Latents
    replay: Callable[[], None]


Record = Callable[[Callable[[], Latents]], tuple[Latents, Callable[[], None]]]


class Graphs:
    """A student's forwards, each recorded the second time that one of its kind is asked for and replayed from then on.

    Until the ring is full every forward is the first of its kind, so a stream's beginning waits for no recording. Callable
    like the student; views must be of one cache, whose buffers recordings write to.

    Args:
        model: the student.
        record: runs a function on what lies still; returns its result's place and what fills it again. CUDA's by default.
    """

    def __init__(self, model: Callable[..., Latents], record: Record | None = None) -> None:
        self.model, self.record = model, record or CudaRecorder()
        self._text: TextCache | None = None
        self._forget()

    def _forget(self) -> None:
        self._seen: set[Hashable] = set()
        self._recorded: dict[Hashable, Recording] = {}

    def __call__(self, x: Latents, sigma: Sigma, text: TextCache, view: View) -> Latents:
        """Velocity of latents, as the student gives it."""
        if text is not self._text:
            self._forget()
            self._text = text
        kind = (view.kind, sigma)
        if kind not in self._recorded:
            if kind not in self._seen:
                self._seen.add(kind)
                return self.model(x, sigma, text, view)
            given = x.map(Tensor.clone)
            self._recorded[kind] = Recording(given, *self.record(lambda: self.model(given, sigma, text, view)))
        recording = self._recorded[kind]
        recording.given.map(lambda place, value: place.copy_(value), x)
        recording.replay()
        return recording.found.map(Tensor.clone)


class CudaRecorder:
    """Records into CUDA graphs that share one memory pool; their results stay alive, so any order of replays is safe."""

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, function: Callable[[], Latents]) -> tuple[Latents, Callable[[], None]]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            found = function()
        self._pool = self._pool or graph.pool()
        return found, graph.replay
