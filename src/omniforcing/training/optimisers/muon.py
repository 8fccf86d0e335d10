"""Muon in batches of matrices, shared out to the processes of a group, and for sharded models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from omniforcing.core import distributed
from omniforcing.training.compat import adjusted_rate

# Most numbers that a process takes at once: 16 MB in fp32, so large matrices go one by one.
_BATCH = 1 << 22


def orthogonalise(updates: Tensor, group: dict[str, Any]) -> Tensor:
    """Newton-Schulz iteration of Muon (Jordan et al. 2024) on matrices ``[N, R, C]``.

    All intermediate matrices are rounded to bf16, as Muon is defined and as torch does it. Few
    CPUs multiply bf16: there the products are of fp32 numbers that bf16 holds exactly, which is
    what a bf16 product computes too, up to the order of its sums.

    Args:
        updates: the matrices.
        group: settings of an optimiser's group.

    Returns:
        The nearly orthogonal matrices ``[N, R, C]``, in bf16 or, on a CPU, in fp32.
    """
    on_cpu = updates.device.type == "cpu"

    def rounded(x: Tensor) -> Tensor:
        half = x.bfloat16()
        return half.float() if on_cpu else half

    (a, b, c), tall = group["ns_coefficients"], updates.shape[1] > updates.shape[2]
    x = rounded(updates.mT if tall else updates)
    x = rounded(x / rounded(x.norm(dim=(1, 2), keepdim=True)).clamp(min=group["eps"]))
    for _ in range(group["ns_steps"]):
        gram = rounded(x @ x.mT)
        polynomial = rounded(torch.baddbmm(gram, gram, gram, beta=b, alpha=c))
        x = rounded(torch.baddbmm(x, polynomial, x, beta=a))
    return x.mT if tall else x


def orthogonalise_together(updates: Tensor, group: dict[str, Any]) -> Tensor:
    """Orthogonalise matrices that every process of a group has; each computes a share of them.

    Args:
        updates: the matrices ``[N, R, C]``, the same in every process.
        group: settings of an optimiser's group.

    Returns:
        All matrices ``[N, R, C]``.
    """
    size, count = distributed.world_size(), len(updates)
    if size == 1 or count == 1:
        return orthogonalise(updates, group)
    share = -(-count // size)
    # The last process may have fewer than a share; zeros stay zeros.
    padded = F.pad(updates, (0, 0, 0, 0, 0, share * size - count))
    own = orthogonalise(padded[distributed.rank() * share :][:share], group).contiguous()
    parts = [torch.empty_like(own) for _ in range(size)]
    dist.all_gather(parts, own)
    return torch.cat(parts)[:count]


def _batches(parameters: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Group matrices by shape, few enough at a time for each process of a group."""
    by_shape: dict[torch.Size, list[Tensor]] = {}
    for parameter in parameters:
        by_shape.setdefault(parameter.shape, []).append(parameter)
    for shape, alike in by_shape.items():
        count = max(1, _BATCH // shape.numel()) * distributed.world_size()
        for start in range(0, len(alike), count):
            yield alike[start : start + count]


class Muon(torch.optim.Muon):
    """Torch's Muon, with matrices of one shape as one batch, on sharded matrices as on whole ones.

    Newton-Schulz on a shard gives another matrix than the shard of the whole result. So each
    sharded update is gathered, one after the other, and every worker computes the whole of it;
    momentum stays in shards. For 19B parameters that takes seconds per step. (Torch's own Muon runs
    on shards to rounding, but hangs on matrices with fewer rows than there are workers.)
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # noqa: ARG002
        """Step on all matrices that have a gradient."""
        for group in self.param_groups:
            trained = [p for p in group["params"] if p.grad is not None]
            for parameters in _batches([p for p in trained if not isinstance(p, DTensor)]):
                self._step_whole(parameters, group)
            for parameter in trained:
                if isinstance(parameter, DTensor):
                    self._step_sharded(parameter, group)
        return None

    def _step_whole(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """Step on matrices of one shape."""
        updates = torch.stack([self._update(parameter, group) for parameter in parameters])
        orthogonalised = orthogonalise_together(updates, group)
        rate, decay = adjusted_rate(group, parameters[0].shape), group["lr"] * group["weight_decay"]
        for parameter, update in zip(parameters, orthogonalised, strict=True):
            parameter.mul_(1 - decay).add_(update, alpha=-rate)

    def _step_sharded(self, parameter: DTensor, group: dict[str, Any]) -> None:
        update = self._update(parameter, group)
        assert isinstance(update, DTensor)
        (whole,) = orthogonalise(update.full_tensor()[None], group)
        part = distribute_tensor(
            whole, parameter.device_mesh, parameter.placements, src_data_rank=None
        )
        local, rate = parameter.to_local(), adjusted_rate(group, parameter.shape)
        local.mul_(1 - group["lr"] * group["weight_decay"]).add_(part.to_local(), alpha=-rate)

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> Tensor:
        """Move a matrix's momentum; return the update to orthogonalise."""
        grad, state, momentum = parameter.grad, self.state[parameter], group["momentum"]
        assert grad is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(grad)
        buffer = state["momentum_buffer"].lerp_(grad, 1 - momentum)
        return grad.lerp(buffer, momentum) if group["nesterov"] else buffer
