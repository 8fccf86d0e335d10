"""Speed-ups that only a GPU has: fp8 products, CUDA graphs, two CUDA streams side by side, its fastest attention."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from omniforcing.core.errors import OmniForcingError
from omniforcing.core.latents import Latents, Pair
from omniforcing.model.attention import View
from omniforcing.model.conditioning import Sigma, TextCache

FP8 = torch.float8_e4m3fn
FP8_CAPABILITY = (8, 9)
HOPPER = (9, 0)
# cuDNN's attention may be faster on Hopper, but torch keeps its plans per thread and shape: each stream, with a thread of its
# own, would build a dozen anew in its first seconds. ``benchmarks.gpu`` measures both (row "attention kernels").
BACKENDS = [
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.MATH,
]
T = TypeVar("T")


def attention_backend(device: torch.device) -> AbstractContextManager[None]:
    """Attention in here runs on the backend that suits streams best on the device."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= HOPPER:
        return sdpa_kernel(BACKENDS, set_priority=True)
    return nullcontext()


def to_fp8(x: Tensor) -> tuple[Tensor, Tensor]:
    """``x [N, C]`` as fp8 and the fp32 scale of each row ``[N, 1]`` that brings it back."""
    scale = x.abs().amax(-1, keepdim=True).float().clamp_min_(1e-12) / torch.finfo(FP8).max
    return (x / scale).to(FP8), scale


class Fp8Linear:
    """A linear layer whose weights are kept in fp8, a scale per output, and whose inputs are brought to it row by row.

    Raises:
        OmniForcingError: for a GPU or a width that has no such product.
    """

    def __init__(self, linear: nn.Linear) -> None:
        if linear.in_features % 16 or linear.out_features % 16:
            sizes = f"{linear.in_features} to {linear.out_features}"
            raise OmniForcingError(
                "inference.wrong-width",
                f"speed-up fp8 needs widths that 16 divides, found a layer of {sizes}; switch it off",
            )
        device = linear.weight.device
        if device.type == "cuda" and torch.cuda.get_device_capability(device) < FP8_CAPABILITY:
            name = torch.cuda.get_device_name(device)
            raise OmniForcingError(
                "device.too-old",
                f"speed-up fp8 needs a GPU of compute capability 8.9 on, {name} is older; switch it off",
            )
        weight, scale = to_fp8(linear.weight.detach())
        # The product wants its second factor by columns, which is how the rows of the weight lie.
        self.weight, self.scale = weight.t(), scale.t().contiguous()
        self.bias = None if linear.bias is None else linear.bias.detach().to(torch.bfloat16)

    def __call__(self, x: Tensor) -> Tensor:
        rows, scale = to_fp8(x.flatten(0, -2))
        # Fast accumulation, as is usual for inference: sums are kept in fewer bits, products run at full rate.
        fast, out = x.is_cuda, torch.bfloat16
        mixed = torch._scaled_mm(
            rows, self.weight, scale, self.scale, bias=self.bias, out_dtype=out, use_fast_accum=fast
        )
        return mixed.to(x.dtype).view(*x.shape[:-1], -1)


class Lanes:
    """Video on the current CUDA stream, audio beside it on another; whoever asked goes on when both are done."""

    def __init__(self, device: torch.device) -> None:
        self.side = torch.cuda.Stream(device)

    # Streams are switched outside of what is compiled; what runs on them may be.
    @torch.compiler.disable(recursive=False)
    def both(self, function: Callable[..., T], first: Pair[Any], *others: Pair[Any]) -> Pair[T]:
        """``first.map(function, *others)``.

        What one lane makes and the other reads outlives the call that reads it, so no memory is used again too early.
        """
        current = torch.cuda.current_stream(self.side.device)
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
        recorder: of one prompt's forwards. It runs a function on what lies still, and returns its result's place and what
            fills it again.
    """

    def __init__(
        self, model: Callable[..., Latents], recorder: Callable[[], Record] | None = None
    ) -> None:
        self.model, self.recorder = model, recorder or CudaRecorder
        self._text: TextCache | None = None
        self._forget()

    def _forget(self) -> None:
        self._seen: set[Hashable] = set()
        self._recorded: dict[Hashable, Recording] = {}
        # With its graphs a memory pool is gone for good, so the next ones need another.
        self._record = self.recorder()

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
            self._recorded[kind] = Recording(
                given, *self._record(lambda: self.model(given, sigma, text, view))
            )
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
        # What other threads do meanwhile, such as decoding, is none of this graph's and must not spoil it.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            found = function()
        self._pool = self._pool or graph.pool()
        return found, graph.replay
