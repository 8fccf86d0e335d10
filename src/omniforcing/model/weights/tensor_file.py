"""Read and write safetensors files one tensor at a time.

A file of 43 GB then needs no more memory than its largest tensor. The safetensors library reads
with its ``pread`` backend, because memory mapping fails on a machine with less memory than the
file. The library's writer needs all tensors at once, so this module has its own: see
docs/decisions/0003-writing-weights.md.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from omniforcing.core.errors import OmniForcingError

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
BYTES = "U8"  # of files that lie in a weights file as tensors
_ITEMS = {**DTYPES, BYTES: torch.uint8}
Watch = Callable[[int], object]


class WeightsError(OmniForcingError):
    """Weights that cannot be used; the message names file, tensor or key, and remedy."""


@dataclass(frozen=True)
class Entry:
    """Location, shape and dtype of a stored tensor, from its file's header.

    Attributes:
        file: the safetensors file.
        key: the tensor's name in the file.
        shape: the stored shape.
        dtype: safetensors' name of the dtype. Only those in ``DTYPES`` can be read; fp8 and integer
            dtypes are those of quantised weights.
        quantised: the dtype in the file, where ``dtype`` is that of the values read from it.
        scale: what those are multiplied by, a tensor of the same file; None for 1.
        rows: the first of its rows that are meant, and the one after the last; None for all.
    """

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: str
    quantised: str | None = None
    scale: Entry | None = None
    rows: tuple[int, int] | None = None

    @property
    def size(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * _ITEMS[self.dtype].itemsize


def ignore(size: int) -> None:
    """Do nothing; the default of ``Watch`` arguments."""


def open_file(file: Path) -> safe_open:
    """Open a safetensors file for reading one tensor at a time; the library checks its header."""
    return safe_open(file, "pt", backend="pread")


def read_header(file: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    """Read a safetensors file's header, and no tensor.

    Returns:
        Entries by the file's own keys, and the file's metadata.

    Raises:
        WeightsError: if the file is missing, truncated or damaged.
    """
    try:
        with open_file(file) as opened:
            slices = {key: opened.get_slice(key) for key in opened.keys()}  # noqa: SIM118
            entries = {
                key: Entry(file, key, tuple(found.get_shape()), found.get_dtype())
                for key, found in slices.items()
            }
            return entries, opened.metadata() or {}
    except FileNotFoundError as error:
        raise WeightsError(
            "file.missing", f"{file} does not exist; name the place where the weights were saved to"
        ) from error
    except (SafetensorError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise WeightsError(
            "weights.truncated",
            f"{file} is truncated or damaged ({reason}); copy or download it again",
        ) from error


def read_tensor(opened: safe_open, entry: Entry) -> Tensor:
    """Read one tensor, in its stored dtype; a quantised one dequantised.

    Args:
        opened: the file of ``entry``, from ``open_file``.
        entry: the tensor.

    Raises:
        WeightsError: if the tensor holds NaN or infinity, or the file has become shorter.
    """
    try:
        # The library's buffer may be unaligned, and kernels may then sum in another order. A clone
        # is aligned like any tensor of torch.
        data: Tensor = opened.get_tensor(entry.key).clone()
        if entry.quantised is not None:
            data = data.float()
            if entry.scale is not None:
                scale = opened.get_tensor(entry.scale.key).float()
                # One for the tensor, or one per row.
                data *= scale if scale.numel() == 1 else scale.view(-1, *[1] * (data.ndim - 1))
            data = data.to(DTYPES[entry.dtype])
        if entry.rows is not None:
            data = data[slice(*entry.rows)].clone()
    except SafetensorError as error:
        raise WeightsError(
            "weights.truncated",
            f"{entry.file} ends within {entry.key}; it was changed while it was read: try again",
        ) from error
    # Minimum and maximum are finite only if every value is (NaN propagates): one pass, no mask.
    if entry.size and not all(bool(torch.isfinite(extreme)) for extreme in torch.aminmax(data)):
        raise WeightsError(
            "weights.not-finite",
            f"{entry.file}: tensor {entry.key} holds NaN or infinity; the file is damaged or its "
            "training diverged: download it again or take an earlier checkpoint",
        )
    return data


def write_safetensors(
    path: Path,
    layout: Mapping[str, Entry],
    tensors: Iterable[tuple[str, Tensor]],
    metadata: dict[str, str],
    watch: Watch = ignore,
) -> None:
    """Write a safetensors file one tensor at a time.

    Args:
        path: the file.
        layout: shape and dtype of every tensor by name, in the order of ``tensors``.
        tensors: names and values, on the CPU.
        metadata: strings for the header's ``__metadata__``.
        watch: called after each tensor with its size in bytes.
    """
    # The header comes first and holds every tensor's offsets, so they are computed from the layout.
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, entry in layout.items():
        start, end = end, end + entry.size
        header[name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [start, end],
        }
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)  # the format aligns the data to 8 bytes
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for _, tensor in tensors:
            data = tensor.contiguous().view(-1).view(torch.uint8).numpy()
            file.write(data.data)
            watch(data.nbytes)
