"""The benchmark of long streams: its figures, on a short one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from benchmarks.streaming import stamp_offset
from omniforcing.media.mux import Muxer
from omniforcing.streaming.artifact import Artifact

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
        with path.open("wb") as file, Muxer(file, 16, 16, 16000) as muxer:
            muxer.write(np.zeros((25, 16, 16, 3), np.uint8), np.zeros((2, 16000), np.float32))
            muxer._audio_start += late
            muxer.write(np.zeros((24, 16, 16, 3), np.uint8), np.zeros((2, 16000), np.float32))
        return stamp_offset(path)

    assert stream(0) == 0
    assert abs(stream(2048) - 0.128) < 0.001
