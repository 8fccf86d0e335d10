#!/usr/bin/env bash
# One would guess: within `streaming()` an AudioSeal generator that is given a sound chunk by chunk makes the watermark of the whole
#   sound, for its layers are causal and have states to carry on.
# What happens: each chunk gets just the watermark that it would get alone, outside of `streaming()`, which differs from the whole's
#   about as much as the watermark is strong, without a word. The context starts the state of the encoder's outermost module only:
#   its layers stand in a plain Sequential, which passes nothing on, and the decoder is left out (upstream issue 105, open). With
#   the states of all layers started by hand, the chunks' watermark is the whole's.
# Versions: audioseal 0.2.0, torch 2.13.0. Seen 2026-11-29.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet audioseal==0.2.0 torch==2.13.0 numpy==2.4.6 omegaconf==2.3.1 einops==0.8.2
cat > "$folder/try.py" <<'PY'
import contextlib
import io
import warnings

import audioseal
import torch
from audioseal.builder import AudioSealWMConfig, DecoderConfig, SEANetConfig, create_generator

CHUNK, CHUNKS = 1600, 10  # samples; the model's hop is 8 * 5 * 4 * 2 = 320, of which a chunk is a multiple
torch.manual_seed(0)
torch.set_num_threads(1)
layers = {"channels": 1, "dimension": 32, "n_filters": 8, "n_residual_layers": 1, "ratios": [8, 5, 4, 2], "lstm": 2, "compress": 2}
layers |= {"kernel_size": 7, "last_kernel_size": 7, "residual_kernel_size": 3, "dilation_base": 2, "causal": True, "true_skip": True}
layers |= {"activation": "ELU", "activation_params": {"alpha": 1.0}, "pad_mode": "constant"}
layers |= {"norm": "none", "norm_params": {}, "disable_norm_outer_blocks": 0}  # as the package loads its own weights
model = create_generator(AudioSealWMConfig(16, SEANetConfig(**layers), DecoderConfig(None, None, 1.0))).eval()
for name, values in model.named_parameters():
    if "bias" in name:  # untrained, they would add a constant far greater than the rest
        torch.nn.init.zeros_(values)
sound = 0.1 * torch.randn(1, 1, CHUNK * CHUNKS)
message = torch.randint(0, 2, (1, 16))


def watermark(*parts):
    return torch.cat([model.get_watermark(part, message=message) for part in parts], dim=-1)


def largest(first, second):
    return (first - second).abs().max().item()


def running():
    return sum(layer.is_streaming() for layer in states)


chunks = sound.split(CHUNK, dim=-1)
states = [layer for layer in model.modules() if hasattr(layer, "is_streaming")]
said = io.StringIO()
with torch.inference_mode():
    whole = watermark(sound)
    alone = watermark(*chunks)
    with warnings.catch_warnings(action="always"), contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        with model.streaming(batch_size=1):
            started = running()
            streamed = watermark(*chunks)
    for layer in states:
        layer._start_streaming(1)
    by_hand, by_hand_started = watermark(*chunks), running()

strength = whole.abs().mean().item()
difference = (streamed - whole)[..., CHUNK:].abs().mean().item()
print("audioseal", audioseal.__version__, "torch", torch.__version__)
print(f"watermark of the whole: {strength:.4f} on average (absolute), at most {whole.abs().max():.4f}")
print(f"streaming(): {started} of {len(states)} states started, said {said.getvalue()!r}")
print(f"  difference to the whole after the first chunk: {difference:.4f} on average, at most {largest(streamed, whole):.4f}")
print(f"  largest difference to each chunk alone, outside of streaming(): {largest(streamed, alone):.1e}")
print(f"by hand: {by_hand_started} of {len(states)} states started, largest difference to the whole: {largest(by_hand, whole):.1e}")
assert largest(by_hand, whole) < 1e-5 and by_hand_started == len(states)
assert started == 1 and not said.getvalue(), "this has changed"
assert largest(streamed, alone) < 1e-6 and difference > strength / 2, "this has changed"
PY
NO_TORCH_COMPILE=1 "$folder/venv/bin/python" "$folder/try.py"
