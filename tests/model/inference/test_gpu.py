"""What runs on a GPU alone, as far as a machine without one can hold it to account: tensors of
CUDA's rules without data.
"""

from collections.abc import Iterator
from typing import Any, TypeVar

import pytest
import torch
from diffusers import LTX2VideoTransformer3DModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from benchmarks.student.cases import ltx2
from omniforcing.core.latents import Latents
from omniforcing.core.layout import Counts
from omniforcing.core.pair import Pair
from omniforcing.model.cache import RingCache
from omniforcing.model.inference.fast import accelerate
from omniforcing.model.inference.gpu import Fp8Linear
from omniforcing.model.options import InferenceOptions
from omniforcing.model.rollout import new_cache
from omniforcing.model.transformer import DualStream
from tests.support.refusals import refuses

pytestmark = pytest.mark.extended

Model = TypeVar("Model", bound=nn.Module)


class Indexing(TorchFunctionMode):
    """Indexing by slices as operations of their own: Python's asks for a device guard that a CPU
    build of torch lacks.
    """

    def __torch_function__(
        self, function: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        if function is Tensor.__getitem__:
            return part(*arguments)
        if function is Tensor.__setitem__:
            place, value = part(*arguments[:2]), arguments[2]
            assert value.device == place.device and value.expand(place.shape).dtype == place.dtype
            return None
        return function(*arguments, **(options or {}))


def part(x: Tensor, index: Any) -> Tensor:
    """``x[index]`` for numbers, slices, None and an ellipsis."""
    parts = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in parts:
        at, given = parts.index(Ellipsis), sum(p is not None for p in parts) - 1
        parts[at : at + 1] = [slice(None)] * (x.ndim - given)
    dim = 0
    for p in parts:
        if isinstance(p, int):
            x = x.select(dim, p)
            continue
        x = (
            x.unsqueeze(dim)
            if p is None
            else torch.ops.aten.slice(x, dim, p.start, p.stop, p.step or 1)
        )
        dim += 1
    return x


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A GPU of compute capability 9.0 whose tensors have device, type, shape and strides, and no
    data.
    """
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    with FakeTensorMode(), torch.no_grad(), Indexing():
        yield


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("fp8", [False, True])
def test_the_19b_student_streams_on_a_gpu_without_a_tensor_elsewhere(fp8: bool) -> None:
    """Two of its 48 layers in their real width, past the window and the horizon.

    A tensor of the CPU would be refused.
    """
    case = ltx2()
    with torch.device("meta"):
        student = DualStream(
            LTX2VideoTransformer3DModel(**{**case.core, "num_layers": 2}), sinks=16
        )
    fast = accelerate(on_gpu(student), InferenceOptions(fp8=fp8))
    prompt = torch.empty(
        1, case.text_tokens, case.core["caption_channels"], device="cuda", dtype=case.dtype
    )
    text = fast.cache_text(Pair(prompt, prompt))
    text.prepare(case.rollout.sigmas, batch=1)
    cache = new_cache(fast, case.rollout, static=True)
    assert isinstance(cache, RingCache)
    for index in range(9):
        x = noise(case.rollout.table.counts(index), case.rollout.grid)
        v = fast(x, case.rollout.sigmas[0], text, cache.view(index, write=True))
        assert [(a.shape, a.device.type) for a in v] == [(b.shape, "cuda") for b in x]
    for buffers in cache.buffers.values():
        assert {(t.device.type, t.dtype) for t in buffers} == {("cuda", torch.bfloat16)}


def on_gpu(model: Model) -> Model:
    """The model with weights in bf16 on the GPU.

    Moving them is one more thing that a CPU build of torch cannot.
    """
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            there = torch.empty(parameter.shape, device="cuda", dtype=torch.bfloat16)
            setattr(module, name, nn.Parameter(there, requires_grad=False))
    return model


def noise(counts: Counts, grid: tuple[int, int]) -> Latents:
    video = torch.empty(1, counts.video, grid[0] * grid[1], 128, device="cuda")
    return Pair(video, torch.empty(1, counts.audio, 128, device="cuda"))


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("tokens", [1, 26, 1152])
def test_an_fp8_product_is_laid_out_as_the_gpus_kernel_demands(tokens: int) -> None:
    """Torch's own rules of the kernel: weights by columns, a contiguous fp32 scale per row of
    either side, bf16 out.
    """
    linear = on_gpu(nn.Linear(3840, 4096, device="meta"))
    out = Fp8Linear(linear)(torch.empty(1, tokens, 3840, device="cuda", dtype=torch.bfloat16))
    assert (out.shape, out.dtype, out.device.type) == ((1, tokens, 4096), torch.bfloat16, "cuda")


@pytest.mark.parametrize(("inputs", "outputs"), [(24, 32), (32, 24)])
def test_widths_without_an_fp8_product_are_refused_in_a_sentence(inputs: int, outputs: int) -> None:
    with refuses("inference.wrong-width", f"{inputs} to {outputs}"):
        Fp8Linear(nn.Linear(inputs, outputs))


def test_a_gpu_before_fp8_is_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA A100")
    with (
        FakeTensorMode(),
        refuses("device.too-old", "8.9", "NVIDIA A100"),
    ):
        Fp8Linear(on_gpu(nn.Linear(32, 32, device="meta")))
