#!/usr/bin/env bash
# One would guess: FFmpeg plays a trimmed mp4 in sync. Its edit list says to the tick where picture and sound begin, and the
#   demuxer applies edit lists by default.
# What happens: where the edit begins within a frame, as a trim without encoding mostly does, the demuxer hides that frame and
#   stamps the next one with the time at which the edit begins. The sound is cut to the sample. So the picture runs ahead of the
#   sound by what was left of the hidden frame, up to a whole frame, all along the file, and nothing warns. With the demuxer's
#   option ignore_editlist the stamps show where the frames belong.
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

whole, trimmed = sys.argv[1] + "/whole.mp4", sys.argv[1] + "/trimmed.mp4"
with av.open(whole, "w") as out:
    video = out.add_stream("libx264", rate=24, options={"g": "48", "bf": "0"})
    audio = out.add_stream("flac", rate=16000, layout="mono")
    video.width = video.height = 64
    for number in range(72):
        frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 3 * number, np.uint8), "rgb24")
        frame.pts, frame.time_base = number, Fraction(1, 24)
        out.mux(video.encode(frame))
    ramp = np.arange(48000, dtype=np.int16)[None] // 2  # every second sample counts one up
    sound = av.AudioFrame.from_ndarray(ramp, "s16", "mono")
    sound.rate, sound.pts, sound.time_base = 16000, 0, Fraction(1, 16000)
    out.mux(audio.encode(sound))
    for stream in (video, audio):
        out.mux(stream.encode(None))

CUT = 1.05  # 25.2 frames: the edit begins within frame 25
with av.open(whole) as old, av.open(trimmed, "w") as new:
    streams = {s.index: new.add_stream_from_template(s) for s in old.streams}
    for packet in old.demux():
        if packet.size:
            by = round(CUT / packet.time_base)
            packet.pts, packet.dts = packet.pts - by, packet.dts - by
            packet.stream = streams[packet.stream.index]
            new.mux(packet)

with av.open(trimmed) as file:
    frame = next(file.decode(video=0))
number, at = round(frame.to_ndarray(format="gray").mean() / 3), frame.time
with av.open(trimmed, options={"ignore_editlist": "1"}) as file:
    stored = [packet.pts * packet.time_base for packet in file.demux(video=0) if packet.size]
due = number / 24 - CUT
print("PyAV", av.__version__, av.library_versions["libavformat"])
print(f"first frame shown: number {number}, stamped {at:.4f} s; it belongs at {due:.4f} s: {1000 * (due - at):.1f} ms early")
print(f"without the edit list it is stamped {float(stored[number] - stored[0]):.4f} s")
assert number == 26 and abs(at) < 1e-3 and abs(due - 0.0333) < 1e-3, "this has changed"
PY
"$folder/venv/bin/python" "$folder/try.py" "$folder"
