"""The benchmark of long streams: its figures, on a short one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from benchmarks.streaming import stamp_offset
from omniforcing.media.mux import Muxer
from omniforcing.streaming.artifact import Artifact

pytestmark = pytest.mark.extended

KEYS = {"ttfc_s", "realtime_factor", "block_p95_ratio", "memory_ratio", "av_offset_ms", "stalls"}
KEYS |= {"sync_f1_first", "sync_f1_last"}


def test_it_prints_one_object_of_exactly_these_figures(artifact: Artifact) -> None:
    words = [
        "-m",
        "benchmarks.streaming",
        "--artifact",
        str(artifact.folder),
        "--seconds",
        "20",
        "--json",
    ]
    root = Path(__file__).parents[2]
    answer = subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=root)
    assert answer.returncode == 0, answer.stderr
    figures = json.loads(answer.stdout)
    assert set(figures) == KEYS
    assert (
        figures["av_offset_ms"] <= 64
        and 0.5 < figures["memory_ratio"] < 2
        and figures["ttfc_s"] > 0
    )


def test_sound_stamped_late_shows_as_offset(tmp_path: Path) -> None:
    def stream(late: int) -> float:
        path = tmp_path / f"{late}.mp4"
        with av.open(str(whole)) as source, av.open(str(path), "w") as out:
            tracks = [out.add_stream_from_template(stream) for stream in source.streams]
            for packet in source.demux():
                if packet.dts is None:
                    continue
                if packet.stream.type == "audio" and packet.pts > 12000:
                    packet.pts, packet.dts = packet.pts + late, packet.dts + late
                packet.stream = tracks[packet.stream.index]
                out.mux(packet)
        return stamp_offset(path)

    whole = tmp_path / "whole.mp4"
    with whole.open("wb") as file, Muxer(file, 16, 16, 16000) as muxer:
        muxer.write(np.zeros((49, 16, 16, 3), np.uint8), np.zeros((2, 32000), np.float32))

    assert stream(0) == 0
    assert abs(stream(2048) - 0.128) < 0.001
