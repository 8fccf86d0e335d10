#!/usr/bin/env bash
# One would guess: an interlaced broadcast in HEVC is decoded as one in H.264 or MPEG-2 is: a frame of both fields, marked as
#   interlaced, which a deinterlacer takes.
# What happens: HEVC codes each field as a picture of its own, and FFmpeg's decoder gives each as a frame of half the height, twice
#   as often, with the mark `interlaced_frame` on all of them. A deinterlacer takes such a field for a frame and mixes its lines
#   into a second field that is not there. PyAV's frames do not tell which lines a field holds; FFmpeg's filter `select`
#   (interlace_type) does, and `weave` joins two.
# Versions: PyAV 18.1.0 (its FFmpeg: libavcodec 62.28.102). Seen 2026-11-29.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet av==18.1.0 numpy==2.4.6
cat > "$folder/try.py" <<'PY'
import io

import av
import numpy as np
from av.filter import Graph

HEIGHT, WIDTH, FRAMES = 128, 192, 12
moments = [np.full((HEIGHT, WIDTH, 3), 40 + 8 * number, np.uint8) for number in range(2 * FRAMES)]
woven = [np.where(np.arange(HEIGHT)[:, None, None] % 2, second, first) for first, second in zip(moments[::2], moments[1::2])]
fields = [moment[number % 2 :: 2] for number, moment in enumerate(moments)]  # upper lines, lower lines, and so on


def coded(codec, pictures, rate, options):
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as out:
        video = out.add_stream(codec, rate=rate, options=options)
        video.height, video.width = pictures[0].shape[:2]
        for picture in pictures:
            out.mux(video.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24")))
        out.mux(video.encode(None))
    return io.BytesIO(file.getvalue())


def decoded(file):
    with av.open(file) as container:
        return list(container.decode(video=0))


def by_filter(frames, name, **options):
    graph = Graph()
    source = graph.add_buffer(width=frames[0].width, height=frames[0].height, format=frames[0].format, time_base=frames[0].time_base)
    graph.link_nodes(source, graph.add(name, **options), graph.add("buffersink")).configure()
    for frame in frames:
        graph.vpush(frame)
    try:
        return graph.vpull()
    except av.error.BlockingIOError:
        return None


print("PyAV", av.__version__, av.library_versions["libavcodec"])
h264 = decoded(coded("libx264", woven, 25, {"x264-params": "tff=1"}))
hevc = decoded(coded("libx265", fields, 50, {"x265-params": "interlace=tff:log-level=none"}))
for name, frames in (("H.264", h264), ("HEVC", hevc)):
    marked = sum(frame.interlaced_frame for frame in frames)
    print(f"{name}: {len(frames)} frames of {frames[0].width}x{frames[0].height}, {marked} marked as interlaced")
tells = [name for name in ("top_field_first", "field_order", "picture_structure") if hasattr(hevc[0], name)]
print("attributes of a frame that tell its lines:", tells)
top = [by_filter([frame], "select", expr="eq(interlace_type,TOPFIRST)") is not None for frame in hevc]
print("upper lines by the filter select:", "".join("TB"[not each] for each in top))
joined = by_filter(hevc[:2], "weave", first_field="top")
print(f"two fields by the filter weave: {joined.width}x{joined.height}")

assert {(len(h264), h264[0].height)} == {(FRAMES, HEIGHT)} and all(frame.interlaced_frame for frame in h264)
assert {(len(hevc), frame.height) for frame in hevc} == {(2 * FRAMES, HEIGHT // 2)}, "this has changed"
assert all(frame.interlaced_frame for frame in hevc) and not tells, "this has changed"
assert top == [True, False] * FRAMES and joined.height == HEIGHT
PY
"$folder/venv/bin/python" "$folder/try.py"
