"""Muon on sharded matrices: bit for bit the step of the whole ones, also where some workers have no
row of a matrix.
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
            expected, ours = torch.optim.Muon([whole], **options), Muon([shards], **options)
            for gradient in gradients:
                whole.grad, shards.grad = (
                    gradient.clone(),
                    distribute_tensor(gradient, mesh, placements),
                )
                expected.step()
                ours.step()
            assert isinstance(shards.data, DTensor) and not torch.equal(whole, start)
            assert torch.equal(shards.data.full_tensor(), whole), shape


@pytest.mark.slow
def test_sharded_matrices_step_as_whole_ones_do() -> None:
    run_group(compare, 4)
