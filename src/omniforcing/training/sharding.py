"""Models in shards (FSDP2): built without memory, filled from safetensors one tensor at a time, written back the same way.

No worker ever holds a whole model. A layer's weights are gathered around what uses them (``Layer.within``), those outside the
layers around ``forward`` and ``cache_text``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import MethodType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, Partial, distribute_tensor
from torch.utils._pytree import register_pytree_node

from omniforcing.core.latents import Pair
from omniforcing.model.conditioning import Embedded, Modulation, Row
from omniforcing.model.stabiliser import save_added
from omniforcing.model.transformer import DualStream
from omniforcing.model.weights.checkpoint import SINKS_FILE, Checkpoint
from omniforcing.model.weights.tensor_file import DTYPES, Entry
from omniforcing.model.weights.writing import planned, write_diffusers


def _register(kind: type[Any]) -> None:
    names = [field.name for field in fields(kind)]
    register_pytree_node(
        kind, lambda x: ([getattr(x, n) for n in names], None), lambda values, _: kind(*values)
    )


# FSDP looks for tensors in what a layer takes and gives.
for _kind in (Pair, Embedded, Row, Modulation):
    _register(_kind)


@dataclass(frozen=True)
class Sharding:
    """How models are sharded.

    Attributes:
        group: workers that hold one model together; beyond them it is held again. None: all workers.
        compute: precision of gathered weights; None is their own. Shards and gradients keep theirs.
    """

    group: int | None = None
    compute: torch.dtype | None = None

    def mesh(self, device: torch.device) -> DeviceMesh:
        """The workers as FSDP wants them: shards, or copies of shards."""
        size = dist.get_world_size()
        group = self.group or size
        if group == size:
            return init_device_mesh(device.type, (size,))
        return init_device_mesh(
            device.type, (size // group, group), mesh_dim_names=("replicate", "shard")
        )

    def apply(self, models: Iterable[DualStream], device: torch.device) -> None:
        """Shard models and give them their weights."""
        mesh = self.mesh(device)
        policy = MixedPrecisionPolicy(self.compute, torch.float32, cast_forward_inputs=False)
        for model in models:
            _shard(model, mesh, policy, device)


def is_sharded(model: nn.Module) -> bool:
    """Whether a model is in shards."""
    return isinstance(model, FSDPModule)


def _within(_block: nn.Module, function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


def _shard(
    model: DualStream, mesh: DeviceMesh, policy: MixedPrecisionPolicy, device: torch.device
) -> None:
    pending, own = (
        model.weights,
        {n: p.detach().clone() for n, p in model.named_parameters(recurse=False)},
    )
    for block in model.core.transformer_blocks:
        block.within = MethodType(_within, block)
        fully_shard(block, mesh=mesh, reshard_after_forward=True, mp_policy=policy)
        register_fsdp_forward_method(block, "within")
    empty = {parameter for parameter in model.parameters() if not parameter.numel()}
    fully_shard(
        model, mesh=mesh, reshard_after_forward=True, mp_policy=policy, ignored_params=empty
    )
    register_fsdp_forward_method(model, "cache_text")
    if pending is not None:
        model.to_empty(device=device)
        fill(model, pending())
        fill(model, own.items())
        model.weights = None


@torch.no_grad()
def fill(model: nn.Module, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Give a sharded model whole tensors by name, of which it keeps its shards."""
    own = dict(model.named_parameters())
    for name, whole in tensors:
        parameter = own[name]
        if isinstance(parameter, DTensor):
            whole = whole.to(parameter.device, parameter.dtype)
            part = distribute_tensor(
                whole, parameter.device_mesh, parameter.placements, src_data_rank=None
            )
            parameter.to_local().copy_(part.to_local())
        else:
            parameter.copy_(whole)


def gathered(tensor: Tensor) -> Tensor:
    """A tensor whole, on the CPU; all workers ask together."""
    whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return whole.detach().cpu()


def own_part(tensor: Tensor) -> Tensor:
    """What this worker has of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def global_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Euclidean norm of tensors together, over all workers if they are sharded; then they are all sharded alike."""
    norm = torch.nn.utils.get_total_norm([own_part(tensor) for tensor in tensors])
    if not tensors or not isinstance(tensors[0], DTensor):
        return norm
    summed = [
        Partial() if placement.is_shard() else placement for placement in tensors[0].placements
    ]
    return DTensor.from_local(norm.square(), tensors[0].device_mesh, summed).full_tensor().sqrt()


class _Live(Checkpoint):
    """A sharded model as a checkpoint that is read one tensor at a time."""

    def of(self, parameters: dict[str, nn.Parameter]) -> _Live:
        object.__setattr__(self, "_parameters", parameters)
        return self

    def tensors(self, names: Iterable[str] | None = None) -> Iterator[tuple[str, Tensor]]:
        """Gather tensors one after the other."""
        for name in self.names() if names is None else names:
            yield name, gathered(self._parameters[name])  # type: ignore[attr-defined]


def save_sharded(model: DualStream, folder: Path) -> None:
    """What ``save_model`` writes, of a sharded model; all workers call it, the first one writes."""
    words = {dtype: word for word, dtype in DTYPES.items()}
    parameters = dict(model.core.named_parameters())
    entries = {
        name: Entry(Path(), name, tuple(p.shape), words[p.dtype], 0)
        for name, p in parameters.items()
    }
    live = _Live(folder, "diffusers", dict(model.core.config), entries).of(parameters)
    added = {name: gathered(p) for name, p in model.named_parameters(recurse=False)}
    if dist.get_rank() == 0:
        write_diffusers(live, folder)
        save_added(added, model.stabiliser, folder / SINKS_FILE)
    else:
        for names in planned(live).filename_to_tensors.values():
            for _ in live.tensors(names):
                pass
