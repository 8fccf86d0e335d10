"""Safetensors files read and written one tensor at a time, so that 43 GB pass through the memory of their largest tensor.

The library's own reader maps a file privately, which a machine with less memory than the file refuses, and its writer needs
every tensor at once. It still checks each header here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

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
        start: of its bytes in the file.
    """

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: str
    start: int

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


def ignore(size: int) -> None:
    """Watch nothing."""


def read_header(file: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    """The tensors of a safetensors file by name, and its metadata; no data are read.

    Raises:
        WeightsError: if the file is missing, truncated or damaged.
    """
    try:
        # As numpy the library maps the file shared, which needs no memory, and checks the header against the file's length.
        with safe_open(file, "np"), file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(length))
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
    metadata = header.pop("__metadata__", {})
    start = 8 + length
    return {
        key: Entry(
            file, key, tuple(value["shape"]), value["dtype"], start + value["data_offsets"][0]
        )
        for key, value in header.items()
    }, metadata


def read_tensor(opened: BinaryIO, entry: Entry) -> Tensor:
    """One tensor, from its opened file.

    Raises:
        WeightsError: if it holds a NaN or an infinity, or the file has become shorter.
    """
    data = torch.empty(math.prod(entry.shape), dtype=DTYPES[entry.dtype])
    opened.seek(entry.start)
    if opened.readinto(data.view(torch.uint8).numpy()) != entry.size:  # type: ignore[attr-defined]
        raise WeightsError(
            "weights.truncated",
            f"{entry.file} ends within {entry.key}; it was changed while it was read: try again",
        )
    # The extremes of a tensor are finite only if all of it is; this is one pass and allocates nothing.
    if entry.size and not all(bool(torch.isfinite(extreme)) for extreme in torch.aminmax(data)):
        raise WeightsError(
            "weights.not-finite",
            f"{entry.file}: tensor {entry.key} holds NaN or infinity; the file is damaged or its training diverged: "
            f"download it again or take an earlier checkpoint",
        )
    return data.view(entry.shape)


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
            file.write(data)
            watch(data.nbytes)
