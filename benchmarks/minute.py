"""Stream a minute of sound at 48 kHz in blocks of 1 s, and look for what a border would leave.

`python -m benchmarks.minute --plot minute.png`. Audio VAE and vocoder of LTX-2.3 (2.5 has the same)
have random weights, the vocoder its released layers and kernels in a small width. Two sounds are
encoded and streamed: a tone of 400 Hz, which has the same mel frame throughout, so that only
borders can differ; and a rising tone over clicks and noise, of which the spectrogram is drawn.
Printed for each:

    samples        that came out, and that 60 s have
    error dB       of the streamed sound against the one decoded whole, over its deviation
    border steps   largest difference of neighbouring samples where pieces meet, over the largest
                   of all
    1 Hz lines dB  energy of the tone at multiples of 1 Hz that are not its own, over all energy
"""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.sound import SHORT, random_vocoder
from omniforcing.codec.config import AudioCodecConfig
from omniforcing.codec.networks import build_audio_vae
from omniforcing.codec.streaming import StreamingMelDecoder
from omniforcing.codec.vocoder import StreamingVocoder
from omniforcing.core.console import run_command
from omniforcing.core.layout import SAMPLE_RATE
from omniforcing.media.mel import log_mel

RATE, BLOCK = 48_000, 25  # samples a second; audio latents of a block
OWN = 25  # hertz: the tone's period divides 1 / OWN s


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=int, default=60, help="length (default: 60)")
    parser.add_argument("--short", action="store_true", help="few kernels: faster")
    parser.add_argument("--plot", type=Path, help="also draw the spectrogram into this PNG")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()

    def run() -> None:
        torch.set_num_threads(1)
        changes = SHORT if arguments.short else {}
        figures, sound = measure(arguments.seconds, changes)
        if arguments.plot:
            draw(sound, arguments.plot)
        print(json.dumps(figures) if arguments.json else table(figures))

    sys.exit(run_command(run))


@torch.inference_mode()
def measure(seconds: int, changes: dict[str, Any]) -> tuple[dict[str, dict[str, float]], Tensor]:
    """Stream both sounds.

    Args:
        seconds: their length.
        changes: arguments in which the vocoder differs from LTX-2.3's.

    Returns:
        Figures by sound (see the module), and the rising tone as streamed ``[N]``.
    """
    torch.manual_seed(1)
    vae = build_audio_vae(AudioCodecConfig(channel_multipliers=[1, 1, 2])).eval()
    vocoder = random_vocoder(changes)
    figures, sound = {}, torch.zeros(0)
    for name, mel in (("tone", steady_mel(seconds)), ("rising", log_mel(rising(seconds)))):
        z = vae.encode(mel).latent_dist.mode()
        pieces = streamed(vae, vocoder, z)
        sound = torch.cat(pieces, 2)[0, 0]
        whole = vocoder(vae.decode(z).sample)[0, 0, : seconds * RATE]
        steps = sound.diff().abs()
        lengths = torch.tensor([piece.shape[2] for piece in pieces if piece.shape[2]])
        meet = lengths.cumsum(0)[:-1] - 1
        error = (sound - whole).square().mean().sqrt() / whole.std()
        figures[name] = {
            "samples": len(sound),
            "needed": seconds * RATE,
            "error_db": float(20 * torch.log10(error.clamp(min=1e-12))),
            "border_steps": float(steps[meet].max() / steps.max()),
        }
        if name == "tone":
            kept = sound[2 * RATE : (seconds - 1) * RATE]
            lines = lines_at_the_block_rate(kept, len(kept) // RATE, OWN)
            figures[name]["lines_db"] = lines
    return figures, sound


def streamed(vae: Any, vocoder: Any, z: Tensor) -> list[Tensor]:
    """Decode audio latents ``[1, c, T, f]`` block by block to pieces of sound."""
    mel, sound = StreamingMelDecoder(vae), StreamingVocoder(vocoder)
    blocks = [z[:, :, :1], *z[:, :, 1:].split(BLOCK, 2)]
    return [*(sound.push(mel.push(block)) for block in blocks), sound.flush()]


def steady_mel(seconds: int) -> Tensor:
    """Log-mel of a tone of 400 Hz, ``[1, 2, 1 + 100 seconds, 64]``, each frame the same."""
    # One frame for all: those of a longer tone differ by the rounding of its silent bands.
    tone = 0.5 * torch.sin(2 * math.pi * 400 * torch.arange(8000) / SAMPLE_RATE)
    return log_mel(tone.expand(1, 2, -1))[:, :, 25:26].expand(-1, -1, 1 + 100 * seconds, -1)


def rising(seconds: int) -> Tensor:
    """A tone from 100 to 7000 Hz with a click every .7 s and soft noise, ``[1, 2, N]``."""
    times = torch.arange(seconds * SAMPLE_RATE) / SAMPLE_RATE
    hertz = 100 * 70 ** (times / seconds)
    tone = 0.3 * torch.sin(2 * math.pi * torch.cumsum(hertz.double(), 0) / SAMPLE_RATE).float()
    clicks = 0.3 * torch.exp(-200 * (times % 0.7))
    noise = 0.01 * torch.randn(len(times), generator=torch.Generator().manual_seed(0))
    return torch.stack([tone + clicks + noise, tone + noise])[None]


def lines_at_the_block_rate(sound: Tensor, blocks: int, own: int) -> float:
    """Energy at multiples of 1 Hz that are none of ``own`` Hz, over all energy, in dB.

    Args:
        sound: ``[N]``, a whole number of seconds whose own period divides 1 / ``own`` s.
        blocks: seconds in it.
        own: the sound's own frequency.
    """
    power = torch.fft.rfft(sound.double()).abs().square()
    power[0] = 0
    hertz = torch.arange(len(power)) / blocks
    border = (hertz % 1 == 0) & (hertz % own != 0)
    return float(10 * torch.log10(power[border].sum() / power.sum()))


def table(figures: dict[str, dict[str, float]]) -> str:
    """Format the figures as a table."""
    heads = ("samples", "needed", "error dB", "border steps", "1 Hz lines dB")
    lines = [f"{'sound':<8}" + "".join(f"{head:>15}" for head in heads)]
    for name, row in figures.items():
        tone = f"{row['lines_db']:>15.0f}" if "lines_db" in row else ""
        lines.append(
            f"{name:<8}{row['samples']:>15}{row['needed']:>15}{row['error_db']:>15.0f}"
            f"{row['border_steps']:>15.3f}{tone}"
        )
    return "\n".join(lines)


def draw(sound: Tensor, path: Path) -> None:
    """Draw the spectrogram of a sound ``[N]``: all of it, and two seconds around a border."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 1, figsize=(8, 6))
    middle = len(sound) // RATE // 2
    near = sound[(middle - 1) * RATE : (middle + 1) * RATE]
    for axis, part, size, start in ((axes[0], sound, 2048, 0), (axes[1], near, 512, middle - 1)):
        extent = (start, start + len(part) / RATE)
        window, step = torch.hann_window(size), size // 4
        power = torch.stft(part, size, step, window=window, return_complex=True).abs().square()
        levels = 10 * torch.log10(power.clamp(min=1e-12))
        axis.imshow(
            levels.numpy(),
            origin="lower",
            aspect="auto",
            extent=(*extent, 0, RATE / 2000),
            vmin=float(levels.max()) - 90,
        )
        axis.set_ylabel("kHz")
    axes[1].set_xlabel("seconds; blocks meet at whole seconds, less the look-ahead")
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
