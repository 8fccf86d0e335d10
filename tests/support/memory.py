"""What tensors of this process hold."""

import gc

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor


def storages(kind: type[Tensor]) -> dict[int, int]:
    """Bytes of every storage that a tensor of ``kind`` holds, by address."""
    gc.collect()
    alive = [thing for thing in gc.get_objects() if isinstance(thing, kind)]
    alive = [tensor for tensor in alive if tensor.layout is torch.strided]  # others have none
    alive = [tensor for tensor in alive if not isinstance(tensor, FakeTensor)]  # of a compiler
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in alive}
