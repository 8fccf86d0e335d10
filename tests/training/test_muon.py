"""Muon in batches of matrices, which is torch's up to bf16, shared out to processes, and on sharded
ones: bit for bit the step of the whole ones, also where some workers have no row of a matrix.
"""

from typing import Any

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from omniforcing.training.optimisers.muon import Muon
from tests.support.group import run_group

SHAPES = [(48, 48), (192, 48), (48, 192), (2, 24), (3, 20), (1, 32)]
flat = ((4,), [Shard(0)])
hybrid = ((2, 2), [Replicate(), Shard(0)])


def compare() -> None:
    for size, placements in (flat, hybrid):
        mesh = init_device_mesh("cpu", size)
        for shape in SHAPES:
            generator = torch.Generator().manual_seed(0)
            start, *gradients = (torch.randn(shape, generator=generator) for _ in range(4))
            whole = torch.nn.Parameter(start.clone())
            shards = torch.nn.Parameter(distribute_tensor(start.clone(), mesh, placements))
            options: dict[str, Any] = {
                "lr": 0.01,
                "weight_decay": 0.01,
                "adjust_lr_fn": "match_rms_adamw",
            }
            expected, ours = Muon([whole], **options), Muon([shards], **options)
            for gradient in gradients:
                whole.grad, shards.grad = (
                    gradient.clone(),
                    distribute_tensor(gradient, mesh, placements),
                )
                expected.step()
                ours.step()
            assert isinstance(shards.data, DTensor) and not torch.equal(whole, start)
            assert torch.equal(shards.data.full_tensor(), whole), shape


def compare_shares() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [*3 * SHAPES, *SHAPES[:2], (5, 7)]
    starts = [torch.randn(shape, generator=generator) for shape in shapes]
    options: dict[str, Any] = {"lr": 0.01, "weight_decay": 0.01, "adjust_lr_fn": "match_rms_adamw"}
    together, alone = ([torch.nn.Parameter(s.clone()) for s in starts] for _ in range(2))
    # The last matrix is alone of its shape: every process computes it.
    optimisers = [Muon(together, **options), *(Muon([each], **options) for each in alone)]
    for _ in range(3):
        for pair in zip(together, alone, strict=True):
            gradient = torch.randn(pair[0].shape, generator=generator)
            for each in pair:
                each.grad = gradient.clone()
        for optimiser in optimisers:
            optimiser.step()
    for start, ours, theirs in zip(starts, together, alone, strict=True):
        # Rounded to bf16 on the way, sums of another order may differ by a step of it.
        assert (ours - theirs).norm() < 0.01 * (theirs - start).norm()


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_shares_of_several_processes_are_the_steps_of_one(size: int) -> None:
    run_group(compare_shares, size)


@pytest.mark.slow
def test_sharded_matrices_step_as_whole_ones_do() -> None:
    run_group(compare, 4)


def test_matrices_step_together_as_torch_steps_on_each_of_them() -> None:
    options: dict[str, Any] = {"lr": 0.01, "weight_decay": 0.01, "adjust_lr_fn": "match_rms_adamw"}
    generator = torch.Generator().manual_seed(0)
    starts = [torch.randn(shape, generator=generator) for shape in 3 * SHAPES]
    ours = [torch.nn.Parameter(start.clone()) for start in starts]
    theirs = [torch.nn.Parameter(start.clone()) for start in starts]
    idle = torch.nn.Parameter(starts[0].clone())
    optimisers = Muon([*ours, idle], **options), torch.optim.Muon(theirs, **options)
    for _ in range(3):
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = torch.randn(mine.shape, generator=generator)
            other.grad = mine.grad.clone()
        for optimiser in optimisers:
            optimiser.step()
    for start, mine, other in zip(starts, ours, theirs, strict=True):
        # Either rounds the iterations to bf16, which has 8 bits, and may round a sum differently.
        assert (mine - other).norm() < 0.01 * (other - start).norm()
    assert torch.equal(idle, starts[0])
