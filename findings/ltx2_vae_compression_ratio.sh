#!/usr/bin/env bash
# One would guess: `spatial_compression_ratio` and `temporal_compression_ratio` of diffusers' AutoencoderKLLTX2Video are what
#   the model compresses by. Pipelines size their latents by them.
# What happens: where the config leaves them out (the constructor's default), they are computed from the number of levels alone,
#   as if every level halved both the picture and the time. The default levels halve the picture three times and the time three
#   times, on patches of 4: encode() compresses 32 and 8 times, the properties say 64 and 16. Nothing warns.
# Versions: diffusers 0.42.1, torch 2.13.0 (CPU). Seen 2026-11-28.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 diffusers==0.42.1 transformers==5.23.0
cat > "$folder/try.py" <<'PY'
import diffusers
import torch

vae = diffusers.AutoencoderKLLTX2Video(
    latent_channels=8, block_out_channels=(8, 16, 32, 64), decoder_block_out_channels=(8, 16, 32),
    layers_per_block=(1, 1, 1, 1, 1), decoder_layers_per_block=(1, 1, 1, 1),
).eval()  # widths and depths alone differ from the defaults
print("diffusers", diffusers.__version__, "halves:", vae.config.downsample_type, "patch", vae.config.patch_size)
said = vae.spatial_compression_ratio, vae.temporal_compression_ratio
with torch.no_grad():
    latents = vae.encode(torch.zeros(1, 3, 17, 128, 128)).latent_dist.mode()
done = 128 // latents.shape[-1], (17 - 1) // (latents.shape[2] - 1)
print(f"says {said[0]} and {said[1]}; 17 frames of 128x128 became {tuple(latents.shape[2:])}: {done[0]} and {done[1]}")
assert said == (64, 16) and done == (32, 8), "this has changed"
PY
"$folder/venv/bin/python" "$folder/try.py"
