"""Speed-ups that only a GPU has: fp8 products, CUDA graphs, concurrent streams, fast attention."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from omniforcing.core.errors import OmniForcingError
from omniforcing.core.latents import Latents
from omniforcing.core.pair import Pair
from omniforcing.model import compat
from omniforcing.model.attention import View
from omniforcing.model.conditioning import Sigma, TextCache

FP8 = torch.float8_e4m3fn
FP8_CAPABILITY = (8, 9)
HOPPER = (9, 0)
# cuDNN's attention may be faster on Hopper, but torch keeps its plans per thread and shape: each
# stream, with a thread of its own, would build a dozen anew in its first seconds.
# ``benchmarks.gpu`` measures both (row "attention kernels").
BACKENDS = [
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.MATH,
]
T = TypeVar("T")


def attention_backend(device: torch.device) -> AbstractContextManager[None]:
    """Context in which attention runs on the backend that suits streams best on the device."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= HOPPER:
        return sdpa_kernel(BACKENDS, set_priority=True)
    return nullcontext()


def to_fp8(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise ``x [N, C]`` to fp8, with an fp32 scale per row, ``[N, 1]``."""
    scale = x.abs().amax(-1, keepdim=True).float().clamp_min_(1e-12) / torch.finfo(FP8).max
    return (x / scale).to(FP8), scale


class Fp8Linear:
    """A linear layer with weights in fp8, a scale per output; inputs are quantised row by row.

    Args:
        linear: the layer to quantise.

    Raises:
        OmniForcingError: for a GPU or a width that has no such product.
    """

    def __init__(self, linear: nn.Linear) -> None:
        if linear.in_features % 16 or linear.out_features % 16:
            sizes = f"{linear.in_features} to {linear.out_features}"
            raise OmniForcingError(
                "inference.wrong-width",
                f"speed-up fp8 needs widths that 16 divides, found a layer of {sizes}; "
                "switch it off",
            )
        device = linear.weight.device
        if device.type == "cuda" and torch.cuda.get_device_capability(device) < FP8_CAPABILITY:
            name = torch.cuda.get_device_name(device)
            raise OmniForcingError(
                "device.too-old",
                f"speed-up fp8 needs a GPU of compute capability 8.9 on, {name} is older; "
                "switch it off",
            )
        weight, scale = to_fp8(linear.weight.detach())
        # The product takes its second factor in column order: that is the transposed weight.
        self.weight, self.scale = weight.t(), scale.t().contiguous()
        self.bias = None if linear.bias is None else linear.bias.detach().to(torch.bfloat16)

    def __call__(self, x: Tensor) -> Tensor:
        rows, scale = to_fp8(x.flatten(0, -2))
        out = compat.scaled_product(rows, self.weight, scale, self.scale, self.bias)
        return out.to(x.dtype).view(*x.shape[:-1], -1)


class ConcurrentStreams:
    """Runs video on the current CUDA stream and audio on another one beside it.

    Args:
        device: the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.side = torch.cuda.Stream(device)
        # CUDA streams are switched outside of compiled code; what runs on them may be compiled.
        # Not a decorator, which would load the compiler with this module.
        self.map = torch.compiler.disable(self._map, recursive=False)

    def _map(self, function: Callable[..., T], first: Pair[Any], *rest: Pair[Any]) -> Pair[T]:
        """Apply ``function`` to both streams, as ``first.map(function, *rest)``.

        The caller's CUDA stream waits for both. Tensors that one stream makes and the other reads
        must outlive the call, so that their memory is not used again too early.
        """
        current = torch.cuda.current_stream(self.side.device)
        self.side.wait_stream(current)
        with torch.cuda.stream(self.side):
            audio = function(first.audio, *(pair.audio for pair in rest))
        video = function(first.video, *(pair.video for pair in rest))
        current.wait_stream(self.side)
        return Pair(video, audio)


@dataclass(frozen=True)
class RecordedForward:
    """A forward that can be replayed on other numbers.

    Attributes:
        inputs: where its latents lie; copy new ones here before a replay.
        outputs: where its velocity lies after a replay.
        replay: runs it again.
    """

    inputs: Latents
    outputs: Latents
    replay: Callable[[], None]


# Runs a function on tensors that stay in place; returns its result and what computes it again.
Recorder = Callable[[Callable[[], Latents]], tuple[Latents, Callable[[], None]]]


class GraphKey(NamedTuple):
    """What tells recorded forwards apart.

    Attributes:
        view: the view's ``graph_key``.
        sigma: the sigma, a number or one per group.
    """

    view: Hashable
    sigma: Hashable


class CudaGraphRunner:
    """Records a student's forwards as CUDA graphs and replays them.

    A forward is recorded the second time that one of its kind is asked for. Until the ring is
    full every forward is the first of its kind, so the beginning of a stream waits for no
    recording. Callable like the student; all views must be of one cache, whose buffers the
    recordings write to.

    Args:
        model: the student.
        new_recorder: makes the recorder of one prompt's forwards.
    """

    def __init__(
        self,
        model: Callable[..., Latents],
        new_recorder: Callable[[], Recorder] | None = None,
    ) -> None:
        self.model, self.new_recorder = model, new_recorder or CudaGraphRecorder
        self._text: TextCache | None = None
        self._forget()

    def _forget(self) -> None:
        self._seen: set[GraphKey] = set()
        self._recorded: dict[GraphKey, RecordedForward] = {}
        # The memory pool goes with its last graph, so the next graphs need another recorder.
        self._record = self.new_recorder()

    def __call__(self, x: Latents, sigma: Sigma, text: TextCache, view: View) -> Latents:
        """Velocity of latents, as the student gives it."""
        if text is not self._text:
            # Recordings read the old prompt's keys and values where they lie.
            self._forget()
            self._text = text
        key = GraphKey(view.graph_key, sigma)
        if key not in self._recorded:
            if key not in self._seen:
                self._seen.add(key)
                return self.model(x, sigma, text, view)
            inputs = x.map(Tensor.clone)
            outputs, replay = self._record(lambda: self.model(inputs, sigma, text, view))
            self._recorded[key] = RecordedForward(inputs, outputs, replay)
        recorded = self._recorded[key]
        recorded.inputs.map(lambda place, value: place.copy_(value), x)
        recorded.replay()
        # A copy: the next replay overwrites the outputs.
        return recorded.outputs.map(Tensor.clone)


class CudaGraphRecorder:
    """Records CUDA graphs that share one memory pool.

    Their outputs stay alive, so that they can be replayed in any order.
    """

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, function: Callable[[], Latents]) -> tuple[Latents, Callable[[], None]]:
        graph = torch.cuda.CUDAGraph()
        # Other threads, which decode for example, must neither enter nor spoil the recording.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            outputs = function()
        self._pool = self._pool or graph.pool()
        return outputs, graph.replay
