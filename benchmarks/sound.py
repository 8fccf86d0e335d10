"""Measure how far a 48 kHz vocoder must look ahead: streamed in blocks of 1 s against offline.

`python -m benchmarks.sound --json`. The vocoder has the released layers and kernels of LTX-2.3, a
small width and random weights in fp64. `gain` scales them: fresh weights (1) damp what is far; at
1.73 a convolution keeps the deviation of its input; trained weights are not measured. Columns:

    gain            factor of the fresh weights
    mel, frames     the look-ahead (`codec/reach.py`), in frames of 10 ms and of 5 ms
    late            milliseconds by which the sound comes later
    largest, rms dB error against the offline samples, over their deviation
"""

import argparse
import json
import math
import sys
from collections.abc import Iterator
from typing import Any

import torch

from omniforcing.codec.reach import SoundReach
from omniforcing.codec.vocoder import StreamingVocoder
from omniforcing.core.console import run_command

GAINS = (1.0, 1.73, 2.0)
REACHES = ((40, 26), (30, 20), (20, 14), (16, 10), (12, 8), (8, 6))
FRAMES = 151
# Arguments of a vocoder with the released layers and few kernels, for tests.
SHORT: dict[str, Any] = {
    "resnet_kernel_sizes": [3],
    "resnet_dilations": [[1, 3]],
    "bwe_resnet_kernel_sizes": [3],
    "bwe_resnet_dilations": [[1, 3]],
}


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object and nothing else"
    )
    arguments = parser.parse_args()

    def run() -> None:
        torch.set_num_threads(arguments.threads)
        rows = list(measure())
        print(json.dumps({"rows": rows}) if arguments.json else table(rows))

    sys.exit(run_command(run))


@torch.inference_mode()
def measure() -> Iterator[dict[str, float]]:
    """Yield a row for each gain and look-ahead; see the module for columns."""
    mel = torch.randn(1, 2, FRAMES, 64, generator=torch.Generator().manual_seed(0)).double()
    for gain in GAINS:
        vocoder = random_vocoder({}, gain=gain).double()
        whole = vocoder(mel)[..., : 480 * (FRAMES - 1)]
        for reach in (SoundReach(*pair) for pair in REACHES):
            stream = StreamingVocoder(vocoder, reach)
            pieces = [mel[:, :, :1], *mel[:, :, 1:].split(100, 2)]
            found = torch.cat([*(stream.push(piece) for piece in pieces), stream.flush()], 2)
            error = (found - whole) / whole.std()
            yield {
                "gain": gain,
                "mel": reach.mel,
                "frames": reach.frames,
                "late": 10 * reach.look_ahead,
                "largest": float(error.abs().max()),
                "rms_db": float(20 * torch.log10(error.square().mean().sqrt())),
            }


def random_vocoder(changes: dict[str, Any] = SHORT, hidden: int = 64, gain: float = 1.0) -> Any:
    """An ``LTX2VocoderWithBWE`` with random weights.

    A fresh one's STFT and mel filters are zeros, and the extender would hear a constant.

    Args:
        changes: arguments that differ from LTX-2.3's.
        hidden: channels of its network, which halves them six times.
        gain: factor of the weights: at 1.7 a convolution keeps the deviation of its input.
    """
    from diffusers.pipelines.ltx2.vocoder import LTX2VocoderWithBWE
    from torchaudio.functional import melscale_fbanks

    torch.manual_seed(0)
    vocoder = LTX2VocoderWithBWE(hidden_channels=hidden, bwe_hidden_channels=32, **changes).eval()
    size, bins = vocoder.config.filter_length, vocoder.config.num_mel_channels
    angles = torch.arange(size // 2 + 1)[:, None] * torch.arange(size) * (2 * math.pi / size)
    waves = torch.cat([angles.cos(), -angles.sin()]) * torch.hann_window(size)
    vocoder.mel_stft.stft_fn.forward_basis.copy_(waves[:, None])
    vocoder.mel_stft.stft_fn.inverse_basis.copy_(waves[:, None] / size)
    filters = melscale_fbanks(size // 2 + 1, 0.0, 8000.0, bins, 16000, "slaney", "slaney")
    vocoder.mel_stft.mel_basis.copy_(filters.T)
    vocoder.requires_grad_(False)
    mel = torch.randn(1, 2, 30, bins)
    for network, heard in (("vocoder", mel), ("bwe_generator", mel - 5)):
        _make_audible(getattr(vocoder, network), heard, gain)
    return vocoder


def _make_audible(network: Any, mel: torch.Tensor, gain: float) -> None:
    """Scale a network's last weights until its sound of ``mel`` varies within +-0.4.

    The sound of fresh weights is nearly constant, or far beyond +-1 and clamped to it.
    """
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()
        elif parameter.ndim == 3:
            parameter.sub_(parameter.mean())
            parameter.mul_(gain)
    network.conv_out.weight.sub_(network.conv_out.weight.mean((1, 2), keepdim=True))
    network.conv_out.weight.mul_(0.4 / network(mel).abs().max())


def table(rows: list[dict[str, float]]) -> str:
    """Format the curve as a table."""
    lines = [f"{'gain':>5}{'mel':>5}{'frames':>7}{'late ms':>8}{'largest':>9}{'rms dB':>8}"]
    lines += [
        f"{row['gain']:>5.2f}{row['mel']:>5}{row['frames']:>7}{row['late']:>8}"
        f"{row['largest']:>9.0e}{row['rms_db']:>8.0f}"
        for row in rows
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
