"""Measure how far a decoder must look ahead: a streamed decode against decoding the whole clip.

`python -m benchmarks.lookahead --codec data/pocket/causal_decoder/non_causal
--latents data/pocket/latents --json`. Latents come block by block (1, then 3). Columns:

    ahead, again, blend  the look-ahead, latents decoded again, latents blended (`codec/reach.py`)
    PSNR dB, largest     error of the picture against the whole decode, pixels in [-1, 1]
    at seams             root mean square error of the change between frames where pieces meet
    cost                 CPU time over that of the whole decode

Without `--codec`: the decoder of `--release` 2.0, or 2.3 (2.5's is the same), or LTX-2.5's
diffusion decoder (one latent in space), in its real depth and a small width with random weights,
which is pessimistic, as trained ones depend less on distant latents. `--plot FILE` draws the
curves. The defaults of `codec/reach.py` are the least look-ahead within `--enough` dB of the whole
decode (45: less than 8 bits round).
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.networks import DECODERS
from omniforcing.codec.codec import Codec
from omniforcing.codec.diffusion import StreamingDiffusionDecoder, decode_with_noise
from omniforcing.codec.reach import Reach, SoundReach, network_reach
from omniforcing.codec.streaming import StreamingVideoDecoder
from omniforcing.codec.vocoder import StreamingVocoder
from omniforcing.core.console import run_command
from omniforcing.core.files import MANIFEST, read_json
from omniforcing.core.layout import clip_latents
from omniforcing.core.pair import Pair
from omniforcing.data.sources import HELDOUT
from omniforcing.data.tensors import TensorShards
from omniforcing.networks.autoencoder import Decoded
from omniforcing.networks.diffusion_decoder import LTX2VideoDiffusionDecoderModel

BLOCK = 3  # video latents
SECONDS = 4
AHEAD = range(10)
DIFFUSION = "2.5-diffusion"
# Latents after and before a piece that a diffusion decoder is tried with; it does not blend.
AROUND = [(2, 6), (3, 3), (3, 6), (4, 6)]
BLENDS = (0, 4, 8)
# Arguments in which the video VAEs of the releases differ.
RELEASES: dict[str, dict[str, Any]] = {
    "2.0": {"block_out_channels": (8, 16, 32, 64), "decoder_block_out_channels": (8, 16, 32)},
    "2.3": {
        **DECODERS["2.3"],
        "block_out_channels": (8, 16, 32, 32),
        "layers_per_block": (4, 6, 4, 2, 2),
        "decoder_block_out_channels": (8, 16, 16, 32),
    },
}


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--codec", type=Path, help="folder of a codec whose video decoder is not causal"
    )
    parser.add_argument(
        "--release",
        choices=[*RELEASES, DIFFUSION],
        default="2.0",
        help="of the random decoder",
    )
    parser.add_argument(
        "--latents", type=Path, help="folder of the latents stage; without, latents are random"
    )
    parser.add_argument("--clips", type=int, default=8, help="held-out clips of it (default: 8)")
    parser.add_argument(
        "--enough",
        type=float,
        default=45.0,
        help="dB to the whole's picture that are enough (default: 45)",
    )
    parser.add_argument("--plot", type=Path, help="also draw the curves into this PNG")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object and nothing else"
    )
    arguments = parser.parse_args()

    def run() -> None:
        torch.set_num_threads(arguments.threads)
        codec, latents = arguments.codec, arguments.latents
        figures = measure(codec, latents, arguments.clips, arguments.enough, arguments.release)
        if arguments.plot:
            draw(figures, arguments.plot)
        print(json.dumps(figures) if arguments.json else table(figures))

    sys.exit(run_command(run))


@torch.inference_mode()
def measure(
    folder: Path | None, latents: Path | None, clips: int, enough: float, release: str = "2.0"
) -> dict[str, Any]:
    """Measure the curves of picture and sound, and find the least look-ahead that is enough."""
    codec = None if folder is None else Codec.load(folder)
    random = random_diffusion() if release == DIFFUSION else random_ltx2(release)
    vae = random if codec is None else codec.video_vae
    z = [latents_of(vae, index) for index in range(clips)]
    # Pictures of random weights have no fixed range: two deviations stand for 1.
    scale = (lambda _: 1.0) if codec is not None else (lambda whole: 2 * whole.std())
    sounds: list[Tensor] = []
    if codec is not None and latents is not None:
        kept = [
            codec.denormalise(pair, shards_grid(latents)) for pair in islice(stored(latents), clips)
        ]
        z = [pair.video for pair in kept]
        sounds = [codec.audio_vae.decode(pair.audio).sample for pair in kept]
    pairs = AROUND if isinstance(vae, Diffusion) else None
    picture = list(picture_curve(vae, z, scale, pairs))
    most = max(row["again"] for row in picture)
    again = [row for row in picture if row["again"] == most or not row["ahead"]]
    least = next((row["ahead"] for row in again if row["psnr_db"] >= enough), None)
    tried = [] if least is None or pairs else [blend for blend in BLENDS if blend <= 8 * least]
    return {
        "decoder": f"LTX-{release}'s depth, random" if folder is None else str(folder),
        "clips": clips,
        "enough_db": enough,
        "least_ahead": least,
        "picture": picture,
        "blended": [
            picture_row(vae, z, Reach(int(least or 0), BLOCK, blend), scale) for blend in tried
        ],
        "sound": list(sound_curve(codec, sounds)) if codec is not None and sounds else [],
    }


def random_ltx2(release: str) -> Any:
    """Build a release's video VAE, not causal, at 1/32 of its width with random weights."""
    from diffusers import AutoencoderKLLTX2Video

    torch.manual_seed(0)
    vae = AutoencoderKLLTX2Video(latent_channels=16, decoder_causal=False, **RELEASES[release])
    return vae.eval().to(memory_format=torch.channels_last_3d)


class Diffusion:
    """LTX-2.5's diffusion decoder, to be asked like a VAE.

    Args:
        network: the network.
    """

    def __init__(self, network: Any) -> None:
        self.network, self.config = network, network.config

    def decode(self, z: Tensor) -> Decoded:
        """Decode a clip."""
        return Decoded(decode_with_noise(self.network, z, 0, 0))


def random_diffusion() -> Diffusion:
    """Build the diffusion decoder with its released layers and its windows in time, and narrow."""
    torch.manual_seed(0)
    network = LTX2VideoDiffusionDecoderModel(
        latent_channels=8,
        decoder_head_dim=16,
        decoder_stage_channels=(64, 32, 16, 16, 16),
        decoder_upsample_channel_reductions=(2, 2, 1, 1),
        decoder_stage_kernels=((3, 1, 1),) * 4,
        decoder_stage5_kernel=(11, 1, 1),
        decoder_t_emb_dim=16,
    )
    for parameter in network.parameters():
        wide = parameter.ndim > 1
        scale = 0.3 / parameter.shape[-1] ** 0.5 if wide else 0.1
        parameter.add_(scale * torch.randn(parameter.shape))
    return Diffusion(network.eval())


def latents_of(vae: Any, seed: int) -> Tensor:
    """Draw latents of a clip ``[1, C, F, 2, 3]``, for a decoder with random weights."""
    grid = (1, 1) if isinstance(vae, Diffusion) else (2, 3)
    shape = (1, vae.config.latent_channels, clip_latents(2 * SECONDS).video, *grid)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).contiguous(
        memory_format=torch.channels_last_3d
    )


def stored(folder: Path) -> Iterator[Pair[Tensor]]:
    """Read latents of held-out clips, one at a time."""
    length = clip_latents(SECONDS)
    for _, latents, _, _ in TensorShards(folder, HELDOUT, length).samples():
        yield latents.map(lambda x: x[None])


def shards_grid(folder: Path) -> tuple[int, int]:
    """Read the token grid (H, W) of stored latents."""
    rows, columns = read_json(folder / MANIFEST)["grid"]
    return rows, columns


def picture_curve(
    vae: Any,
    z: list[Tensor],
    scale: Callable[[Tensor], Any],
    pairs: Sequence[tuple[int, int]] | None = None,
) -> Iterator[dict[str, float]]:
    """Yield a row for each look-ahead, with a block decoded again and without, or of ``pairs``."""
    plain = [(ahead, again) for ahead in AHEAD for again in ((0, BLOCK) if ahead else (0,))]
    for ahead, again in pairs or plain:
        yield picture_row(vae, z, Reach(ahead, again), scale)


def stream_of(vae: Any, reach: Reach) -> StreamingVideoDecoder | StreamingDiffusionDecoder:
    """Begin a stream of a decoder."""
    if isinstance(vae, Diffusion):
        return StreamingDiffusionDecoder(vae.network, reach, 0)
    return StreamingVideoDecoder(vae, reach)


def picture_row(
    vae: Any, z: list[Tensor], reach: Reach, scale: Callable[[Tensor], Any]
) -> dict[str, float]:
    """Decode clips in pieces and compare them with the whole decode; see the module for columns.

    Args:
        vae: video VAE.
        z: latents of each clip ``[1, C, F, H, W]``.
        reach: look-ahead, latents decoded again and blended.
        scale: what counts as 1 in a whole picture.
    """
    squares, largest, seams, spent, whole_spent = [], [], [], 0.0, 0.0
    for clip in z:
        began = time.process_time()
        whole = vae.decode(clip).sample
        between = time.process_time()
        stream = stream_of(vae, reach)
        pieces = [*(stream.push(piece) for piece in blocks(clip, BLOCK)), stream.flush()]
        whole_spent += between - began
        spent += time.process_time() - between
        error = (torch.cat(pieces, 2) - whole) / scale(whole)
        meet = torch.tensor([piece.shape[2] for piece in pieces if piece.shape[2]]).cumsum(0)[:-1]
        squares.append(error.square().mean())
        largest.append(error.abs().max())
        seams.append((error[:, :, meet] - error[:, :, meet - 1]).square().mean())
    mean = torch.stack(squares).mean().clamp(min=1e-12)
    return {
        "ahead": reach.ahead,
        "again": reach.again,
        "blend": reach.blend,
        "psnr_db": float(-10 * torch.log10(mean / 4)),
        "largest": float(torch.stack(largest).max()),
        "seam_rms": float(torch.stack(seams).mean().sqrt()),
        "cost": spent / whole_spent,
    }


def sound_curve(codec: Codec, mels: list[Tensor]) -> Iterator[dict[str, float]]:
    """Yield the samples' largest error for look-aheads of the vocoder, in mel frames."""
    full = network_reach(codec.vocoder.config)
    for reach in sorted({0, 2, 4, 8, 12, 16, 20, full}):
        errors = []
        for mel in mels:
            stream = StreamingVocoder(codec.vocoder, SoundReach(reach))
            pieces = [*(stream.push(piece) for piece in blocks(mel, 100)), stream.flush()]
            streamed = torch.cat(pieces, 2)
            whole = codec.vocoder(mel)[..., : streamed.shape[2]]
            errors.append((streamed - whole).abs().max() / whole.abs().max())
        yield {"ahead_mel": reach, "largest": float(torch.stack(errors).max())}


def blocks(x: Tensor, size: int) -> list[Tensor]:
    """Split dimension 2 into its first element and pieces of ``size``."""
    return [x[:, :, :1], *x[:, :, 1:].split(size, 2)]


def table(figures: dict[str, Any]) -> str:
    """Format the curves as a table."""
    lines = [
        f"{figures['decoder']}, {figures['clips']} clips: "
        f"least look-ahead for {figures['enough_db']} dB: {figures['least_ahead']}"
    ]
    lines.append(
        f"{'ahead':>6}{'again':>6}{'blend':>6}"
        f"{'PSNR dB':>9}{'largest':>9}{'at seams':>9}{'cost':>6}"
    )
    for row in figures["picture"] + figures["blended"]:
        lines.append(
            f"{row['ahead']:>6}{row['again']:>6}{row['blend']:>6}{row['psnr_db']:>9.1f}"
            f"{row['largest']:>9.4f}{row['seam_rms']:>9.4f}{row['cost']:>6.2f}"
        )
    lines += [
        f"sound, {row['ahead_mel']} mel frames ahead: {row['largest']:.1e}"
        for row in figures["sound"]
    ]
    return "\n".join(lines)


def draw(figures: dict[str, Any], path: Path) -> None:
    """Plot PSNR over look-ahead into a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6, 4))
    for again, label in ((0, "nothing decoded again"), (BLOCK, "one block decoded again")):
        rows = [row for row in figures["picture"] if row["again"] == again]
        axis.plot(
            [row["ahead"] for row in rows],
            [row["psnr_db"] for row in rows],
            marker="o",
            label=label,
        )
    axis.axhline(figures["enough_db"], color="grey", linewidth=0.8, linestyle="--")
    axis.set_xlabel("look-ahead, video latents (3 a second)")
    axis.set_ylabel("streamed against whole decode, dB")
    axis.set_title(figures["decoder"], fontsize=9)
    axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
