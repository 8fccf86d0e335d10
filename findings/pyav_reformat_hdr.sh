#!/usr/bin/env bash
# One would guess from its documentation: `dst_color_trc` of PyAV's VideoFrame.reformat "sets frame metadata only; it does not
#   perform a pixel-level transfer function conversion", so that it is quick and leaves pixels alone.
# What happens: it converts the pixels, by a table that libswscale builds at the first frame, which takes many seconds of CPU
#   time for a picture of any size. Signals of 1, 10, 100 and 203 cd/m2 in PQ, stored as 38, 77, 130 and 149, become 28, 73, 191
#   and 254: those of BT.709 with 203 cd/m2 as white.
# Versions: PyAV 18.1.0 (libswscale 9.5.102). Seen 2026-11-28.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet av==18.1.0 numpy==2.4.6
cat > "$folder/try.py" <<'PY'
import time

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, VideoReformatter

def pq(nits):
    y = (nits / 10000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * y) / (1 + 18.6875 * y)) ** 78.84375

levels = [pq(n) for n in (1, 10, 100, 203)]
codes = np.repeat(np.repeat(np.rint(np.array(levels) * 65535).astype(np.uint16)[None, :, None], 16, 0), 16, 1)
frame = av.VideoFrame.from_ndarray(np.repeat(codes, 3, 2), "rgb48le")
frame.color_trc, frame.color_primaries = ColorTrc.SMPTE2084, ColorPrimaries.BT2020
frame.colorspace, frame.color_range = 0, ColorRange.JPEG
began = time.process_time()
out = VideoReformatter().reformat(
    frame, format="rgb24", dst_color_trc=ColorTrc.BT709, dst_color_primaries=ColorPrimaries.BT709, threads=1
).to_ndarray()
took = time.process_time() - began
plain = frame.reformat(format="rgb24").to_ndarray()
print("PyAV", av.__version__, av.library_versions["libswscale"], f"{took:.1f} s of CPU time for 64x16 pixels")
print("PQ of 1, 10, 100, 203 cd/m2 as stored:", plain[8, 8::16, 0].tolist(), "with dst_color_trc=BT709:", out[8, 8::16, 0].tolist())
assert np.abs(out.astype(int) - plain).max() > 20, "pixels are left alone now"
assert took > 1, "it is quick now"
PY
"$folder/venv/bin/python" "$folder/try.py"
