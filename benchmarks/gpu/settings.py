"""What every part is told: device, size, time, and the figures of earlier rows."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from benchmarks.gpu.rows import Figures

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class PartSettings:
    """Settings of one part, sent to its process as JSON.

    Attributes:
        device: ``cuda`` or ``cpu``.
        small: tiny sizes everywhere, to try that the parts run.
        deadline: seconds since the epoch at which the part's time is up.
        earlier: figures of earlier rows, by part and name.
    """

    device: str
    small: bool
    deadline: float
    earlier: dict[str, dict[str, Figures]] = field(default_factory=dict)

    @classmethod
    def from_json(cls, text: str) -> PartSettings:
        """Read settings that ``to_json`` wrote."""
        return cls(**json.loads(text))

    def to_json(self) -> str:
        """Write the settings as one line of JSON."""
        return json.dumps(asdict(self))

    @property
    def left(self) -> float:
        """Seconds until the part's time is up."""
        return self.deadline - time.time()

    @property
    def cuda(self) -> bool:
        """Whether the part runs on a GPU."""
        return self.device == "cuda"

    @property
    def torch_device(self) -> torch.device:
        """The device with its index, as tensors on it report theirs."""
        import torch

        if self.cuda:
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("cpu")

    def figure(self, part: str, row: str, name: str) -> Any:
        """Return a figure of an earlier row, or None."""
        return self.earlier.get(part, {}).get(row, {}).get(name)
