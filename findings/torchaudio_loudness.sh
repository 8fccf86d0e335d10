#!/usr/bin/env bash
# One would guess: `torchaudio.functional.loudness`, documented as ITU-R BS.1770-4, gives the value that the standard states for
#   its own reference: a sine of 997 Hz at full scale on one channel is -3.01 LKFS. FFmpeg's ebur128 does, to 0.01.
# What happens: it gives -3.28 at 48 kHz. The standard's two filters are a shelf and a high-pass with given coefficients;
#   torchaudio takes general-purpose filters of about the same corners, and its gain at 997 Hz is 0.27 dB less.
# Versions: torchaudio 2.11.0, torch 2.13.0 (CPU), PyAV 18.1.0. Seen 2026-11-28.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 torchaudio==2.11.0 numpy==2.4.6 av==18.1.0
# The wheel's extension is linked to CUDA; without it torchaudio runs on a CPU-only torch.
rm -f "$folder"/venv/lib/python3*/site-packages/torchaudio/lib/_torchaudio*.so
cat > "$folder/try.py" <<'PY'
from fractions import Fraction

import av
import numpy as np
import torch
import torchaudio

rate = 48_000
sound = np.zeros((2, 2 * rate), np.float32)
sound[0] = np.sin(2 * np.pi * 997 * np.arange(2 * rate) / rate)
theirs = float(torchaudio.functional.loudness(torch.from_numpy(sound), rate))

graph = av.filter.Graph()
source = graph.add_abuffer(sample_rate=rate, format="fltp", layout="stereo", time_base=Fraction(1, rate))
graph.link_nodes(source, graph.add("ebur128", "metadata=1"), graph.add("abuffersink")).configure()
frame = av.AudioFrame.from_ndarray(sound, "fltp", "stereo")
frame.rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
graph.push(frame)
graph.push(None)
last = None
try:
    while True:
        last = float(graph.pull().metadata["lavfi.r128.I"])
except (av.EOFError, av.BlockingIOError):
    pass
print("torchaudio", torchaudio.__version__, f"says {theirs:.2f}, FFmpeg {last:.2f}, the standard -3.01")
assert abs(theirs + 3.28) < 0.02 and abs(last + 3.01) < 0.02, "this has changed"
PY
"$folder/venv/bin/python" "$folder/try.py"
