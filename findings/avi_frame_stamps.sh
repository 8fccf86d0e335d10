#!/usr/bin/env bash
# One would guess: PyAV decodes H.264 with B-frames out of an AVI with rising time stamps, as the frames come out in the order
#   in which they are shown. AVI has a constant rate, so frame n is at n / rate.
# What happens: AVI stores no presentation times. libavformat stamps the packets with guesses in the order in which they are
#   stored, so decoded frames carry stamps that run back and forth and begin one frame late. A loop that drops frames whose
#   stamp is not later than the last one's loses a good part of the video. Frame by frame, the sorted decoding times are right.
# Versions: PyAV 18.1.0 (libavformat 62.12.102). Seen 2026-11-28.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet av==18.1.0 numpy==2.4.6
cat > "$folder/try.py" <<'PY'
import sys
from fractions import Fraction

import av
import numpy as np

path = sys.argv[1] + "/b.avi"
with av.open(path, "w") as out:
    video = out.add_stream("libx264", rate=24, options={"bf": "3", "b-adapt": "0", "crf": "4"})
    video.width = video.height = 64
    for number in range(48):
        frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 5 * number, np.uint8), "rgb24")
        frame.pts, frame.time_base = number, Fraction(1, 24)
        out.mux(video.encode(frame))
    out.mux(video.encode(None))
with av.open(path) as file:
    frames = list(file.decode(video=0))
numbers = [round(frame.to_ndarray(format="gray").mean() / 5) for frame in frames]
stamps = [frame.pts for frame in frames]
with av.open(path) as file:
    decoding = sorted(packet.dts for packet in file.demux(video=0) if packet.size)
back = sum(later <= earlier for earlier, later in zip(stamps, stamps[1:]))
print("PyAV", av.__version__, av.library_versions["libavformat"])
print("frames come out in order:", numbers == sorted(numbers), "with stamps", stamps[:12], "...", back, "of 47 run back")
print("sorted decoding times:", decoding[:12], "...")
assert numbers == list(range(48)) and decoding == list(range(48)), "this has changed"
assert back > 5, "stamps rise now"
PY
"$folder/venv/bin/python" "$folder/try.py" "$folder"
