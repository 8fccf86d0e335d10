"""Safetensors files read and written one tensor at a time, so that 43 GB pass through the memory of their largest tensor.

The library reads (with ``pread``: its memory map is refused on a machine with less memory than the
file), but its writer needs every tensor at once: see docs/decisions/0003-writing-weights.md.
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
Watch = Callable[[int], object]


class WeightsError(OmniForcingError):
    """A checkpoint that cannot be used; names the file, the tensor or key, and the remedy."""


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies, and what its file's header says of it.

    Attributes:
        file: the safetensors file.
        key: the tensor's name in it.
        shape: as stored.
        dtype: safetensors' word for it; those of ``DTYPES`` can be read.
    """

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


def ignore(size: int) -> None:
    """Watch nothing."""


def open_file(file: Path) -> safe_open:
    """Open a safetensors file for reading one tensor at a time; the library checks its header."""
    return safe_open(file, "pt", backend="pread")


def read_header(file: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    """The tensors of a safetensors file by name, and its metadata; no data are read.

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
    """One tensor, from its opened file.

    Raises:
        WeightsError: if it holds a NaN or an infinity, or the file has become shorter.
    """
    try:
        # As torch aligns its own tensors: the library does not, and sums may depend on it.
        data: Tensor = opened.get_tensor(entry.key).clone()
    except SafetensorError as error:
        raise WeightsError(
            "weights.truncated",
            f"{entry.file} ends within {entry.key}; it was changed while it was read: try again",
        ) from error
    # The extremes of a tensor are finite only if all of it is; this is one pass and allocates
    # nothing.
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
    """Write a safetensors file tensor by tensor.

    Args:
        path: the file to write.
        layout: shape and dtype of every tensor, in the order of ``tensors``.
        tensors: names and values.
        metadata: goes into the header.
        watch: called with the bytes of every tensor written.
    """
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
