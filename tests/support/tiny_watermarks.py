"""Small watermark programs in TorchScript, with random weights, and how they are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from omniforcing.core.files import sha256_file

HOP = 320  # samples of a frame, as AudioSeal has it


def saved(module: nn.Module, path: Path) -> str:
    """Script a module into a file, and name it as ``--watermark`` takes it: ``FILE:SHA256``."""
    script: Any = torch.jit.script(module)
    script.save(path)
    return f"{path}:{sha256_file(path)}"


def seeded(kind: type[nn.Module]) -> nn.Module:
    """A module with weights of its own, always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind().eval()


class Recurrent(nn.Module):
    """Causal like AudioSeal's: frames of 20 ms, a convolution over them, an LSTM, and back."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Conv1d(1, 16, HOP, HOP)
        self.conv = nn.Conv1d(16, 16, 3)
        self.lstm = nn.LSTM(16, 16, batch_first=True)
        bias: Any = self.lstm.bias_ih_l0
        bias.data[16:32] += 1.5  # forgets slowly
        self.decoder = nn.ConvTranspose1d(16, 1, HOP, HOP)

    def forward(self, samples: Tensor) -> Tensor:
        frames = nn.functional.pad(8 * self.encoder(samples), (2, 0))
        hidden, _ = self.lstm(self.conv(frames).tanh().transpose(1, 2))
        return 0.1 * self.decoder(hidden.transpose(1, 2)).tanh()


class Causal(nn.Module):
    """Sees 0.1 s of before and nothing that follows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 1600, bias=False)

    def forward(self, samples: Tensor) -> Tensor:
        return 0.1 * self.conv(nn.functional.pad(samples, (1599, 0))).tanh()


class Centred(nn.Module):
    """Sees as much of what follows as of before, which no stream has."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 1601, padding=800, bias=False)

    def forward(self, samples: Tensor) -> Tensor:
        return 0.1 * self.conv(samples).tanh()


class Loudness(nn.Module):
    """A detector that takes for a watermark whatever is louder than this."""

    def __init__(self, level: float, rows: int = 1) -> None:
        super().__init__()
        self.level, self.rows = level, rows

    def forward(self, samples: Tensor) -> Tensor:
        found = (samples.abs() > self.level).float()
        return found[:, 0] if self.rows == 1 else torch.cat([1 - found, found], 1)
