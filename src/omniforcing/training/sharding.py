"""Models in shards (FSDP2), filled from safetensors and written back one tensor at a time.

No worker ever holds a whole model: it is built without memory and gets its shards. A block's
weights are gathered around each call that uses them (``run_gathered``), the weights outside of the
blocks around ``forward`` and ``project_text``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
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

from omniforcing.core.pair import Pair
from omniforcing.model.conditioning import AdaLNParams, StreamAdaLN, TimestepEmbedding
from omniforcing.model.stabiliser import save_added
from omniforcing.model.transformer import DualStream
from omniforcing.model.weights.checkpoint import SINKS_FILE, Checkpoint
from omniforcing.model.weights.tensor_file import DTYPES, Entry
from omniforcing.model.weights.writing import planned, write_diffusers
from omniforcing.training.compat import register_dataclass

# FSDP looks for tensors in what a block takes and gives.
for _kind in (Pair, TimestepEmbedding, AdaLNParams, StreamAdaLN):
    register_dataclass(_kind)


@dataclass(frozen=True)
class Sharding:
    """How models are sharded.

    Attributes:
        group: number of workers that hold one model together; further workers hold copies of it.
            None for all workers.
        compute: precision of gathered weights; None for their own. Shards and gradients keep
            their own precision.
    """

    group: int | None = None
    compute: torch.dtype | None = None

    def mesh(self, device: torch.device) -> DeviceMesh:
        """Arrange the workers for FSDP: one dimension of shards, or replicas times shards."""
        size = dist.get_world_size()
        group = self.group or size
        if group == size:
            return init_device_mesh(device.type, (size,))
        names = ("replicate", "shard")
        return init_device_mesh(device.type, (size // group, group), mesh_dim_names=names)

    def apply(self, models: Iterable[DualStream], device: torch.device) -> None:
        """Shard models and give them their weights."""
        mesh = self.mesh(device)
        policy = MixedPrecisionPolicy(self.compute, torch.float32, cast_forward_inputs=False)
        for model in models:
            # A base first, and once, however many models share its weights.
            for part in (model.base, model):
                if part is not None and not is_sharded(part):
                    _shard(part, mesh, policy, device)


def is_sharded(model: nn.Module) -> bool:
    """Whether a model is in shards."""
    return isinstance(model, FSDPModule)


def _run_gathered(_block: nn.Module, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function; FSDP wraps this method of a block and gathers its weights around it."""
    return function(*arguments)


def _shard(
    model: DualStream, mesh: DeviceMesh, policy: MixedPrecisionPolicy, device: torch.device
) -> None:
    source = model.take_weights()
    # Sinks and stabiliser are small and have their values already, which ``to_empty`` would lose.
    added = {n: p.detach().clone() for n, p in model.named_parameters(recurse=False)}
    for block in model.units():
        # FSDP wraps methods of the module that it shards, and our block calls its sub-layers one
        # by one: the module gets a method that runs any function.
        block.run_gathered = MethodType(_run_gathered, block)  # type: ignore[assignment]
        fully_shard(block, mesh=mesh, reshard_after_forward=True, mp_policy=policy)
        register_fsdp_forward_method(block, "run_gathered")
    # Models that share these weights run within a call of this method.
    model.run_gathered = MethodType(_run_gathered, model)  # type: ignore
    # FSDP cannot shard a parameter without elements, such as the sinks of a teacher.
    empty = {parameter for parameter in model.parameters() if not parameter.numel()}
    fully_shard(
        model, mesh=mesh, reshard_after_forward=True, mp_policy=policy, ignored_params=empty
    )
    # Not ``cache_text``: FSDP gathers weights for a backward pass that begins in tensors which a
    # method returns, and it finds none in a ``TextCache``.
    for method in ("project_text", "run_gathered"):
        register_fsdp_forward_method(model, method)
    if source is not None:
        model.to_empty(device=device)
        fill(model, source())
        fill(model, added.items())


@torch.no_grad()
def fill(model: nn.Module, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Copy whole tensors, by name, into a sharded model, which keeps its shards of them."""
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
    """Gather a whole tensor on the CPU; all workers call it together."""
    whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return whole.detach().cpu()


def own_part(tensor: Tensor) -> Tensor:
    """This worker's shard of a tensor, or the tensor itself if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def global_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Joint Euclidean norm of tensors, over all workers if they are sharded (all alike)."""
    norm = torch.nn.utils.get_total_norm([own_part(tensor) for tensor in tensors])
    if not tensors or not isinstance(tensors[0], DTensor):
        return norm
    placements = tensors[0].placements
    summed = [Partial() if placement.is_shard() else placement for placement in placements]
    return DTensor.from_local(norm.square(), tensors[0].device_mesh, summed).full_tensor().sqrt()


@dataclass(frozen=True)
class _Live(Checkpoint):
    """A sharded model as a checkpoint that is read one tensor at a time.

    Attributes:
        parameters: the model's parameters by diffusers name.
    """

    parameters: dict[str, nn.Parameter] = field(default_factory=dict)

    def tensors(self, names: Iterable[str] | None = None) -> Iterator[tuple[str, Tensor]]:
        """Gather tensors one after the other."""
        for name in self.names() if names is None else names:
            yield name, gathered(self.parameters[name])


def save_sharded(model: DualStream, folder: Path) -> None:
    """Write a sharded model as ``save_model`` does; all workers call it, the first one writes."""
    words = {dtype: word for word, dtype in DTYPES.items()}
    parameters = dict(model.core.named_parameters())
    entries = {}
    for name, parameter in parameters.items():
        entries[name] = Entry(Path(), name, tuple(parameter.shape), words[parameter.dtype])
    config = dict(model.core.config)
    live = _Live(folder, "diffusers", config, entries, parameters=parameters)
    added = {name: gathered(p) for name, p in model.named_parameters(recurse=False)}
    if dist.get_rank() == 0:
        write_diffusers(live, folder)
        save_added(added, model.stabiliser, folder / SINKS_FILE)
    else:
        # Gathering needs every worker, in the order in which the first one writes.
        for names in planned(live).filename_to_tensors.values():
            for _ in live.tensors(names):
                pass
