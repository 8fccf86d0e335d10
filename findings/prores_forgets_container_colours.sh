#!/usr/bin/env bash
# One would guess: a MOV whose `colr` box says BT.709 gives frames that say BT.709: where the bitstream leaves colours unspecified, what
#   the container states holds. It does for H.264.
# What happens: for ProRes the decoder writes its frame header's "unspecified" over what the container stated, in the frames and in the
#   codec context alike, once the first frame is decoded. Matrix, primaries and transfer are gone, and a conversion to RGB falls back
#   to BT.601: this green is off by 25 levels. Read the container's tags before decoding, and keep them.
# Versions: PyAV 18.1.0 (the FFmpeg of its wheels), numpy 2.4.6. Seen 2026-11-28.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet av==18.1.0 numpy==2.4.6
cat > "$folder/try.py" <<'PY'
import io

import av
import numpy as np

BT709, UNSPECIFIED = 1, 2
NAMES = ("colorspace", "color_primaries", "color_trc")
GREEN = np.broadcast_to(np.array([30, 200, 60], np.uint8), (64, 64, 3)).copy()


def write(codec, pixels):
    """A MOV of one colour, converted by BT.709, whose container says so and whose frames do not."""
    file = io.BytesIO()
    with av.open(file, "w", format="mov") as container:
        stream = container.add_stream(codec, rate=24)
        stream.width = stream.height = 64
        stream.pix_fmt = pixels
        for name in NAMES:
            setattr(stream.codec_context, name, BT709)
        frame = av.VideoFrame.from_ndarray(GREEN, "rgb24").reformat(format=pixels, dst_colorspace="itu709")
        for name in NAMES:
            setattr(frame, name, UNSPECIFIED)
        frame.pts = 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


seen = {}
for codec, pixels in (("libx264", "yuv420p"), ("prores_ks", "yuv422p10le")):
    with av.open(io.BytesIO(write(codec, pixels))) as container:
        stream = container.streams.video[0]
        stated = [int(getattr(stream.codec_context, name)) for name in NAMES]
        frame = next(container.decode(stream))
        after = [int(getattr(frame, name)) for name in NAMES]
        off = np.abs(frame.to_ndarray(format="rgb24").astype(int) - GREEN).max()
    seen[codec] = stated, after, off
    print(f"{codec}: container {stated}, first frame {after}, colours off by {off} of 255")
assert seen["libx264"][:2] == ([BT709] * 3, [BT709] * 3) and seen["libx264"][2] <= 4, "this has changed"
assert seen["prores_ks"][:2] == ([BT709] * 3, [UNSPECIFIED] * 3) and seen["prores_ks"][2] >= 15, "this has changed"
PY
"$folder/venv/bin/python" "$folder/try.py"
