"""``omniforcing stream``: a playable clip, its figures, and one sentence for whatever is wrong."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from omniforcing.cli import main
from omniforcing.evaluation.speed import BlockTiming, stream_speed
from omniforcing.streaming.artifact import Artifact
from tests.support.refusals import refused

pytestmark = pytest.mark.extended


def stream(*options: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(["stream", *options])
    assert isinstance(end.value.code, int)
    return end.value.code


def options_for(folder: Path, out: Path, **changes: str) -> list[str]:
    values = {
        "artifact": str(folder),
        "prompt": "a red ball bounces",
        "seconds": "2",
        "seed": "1",
        "out": str(out),
        **changes,
    }
    return [f"--{name}={value}" for name, value in values.items()]


def test_clip_is_whole_and_repeatable(
    artifact: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one.mp4", "two.mp4"):
        assert stream(*options_for(artifact.folder, tmp_path / name)) == 0
    assert (tmp_path / "one.mp4").read_bytes() == (tmp_path / "two.mp4").read_bytes()
    with av.open(str(tmp_path / "one.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 49
    shown = capsys.readouterr()
    assert "real-time factor" in shown.out and "64x64, 2 steps, window 2" in shown.out
    assert "streaming" in shown.err, "no progress was shown"


def test_figures_as_json(
    artifact: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        stream(*options_for(artifact.folder, tmp_path / "clip.mp4"), "--json", "--no-verify") == 0
    )
    values = json.loads(capsys.readouterr().out)
    assert values["media_s"] == 2 and values["steps"] == 2 and values["threads"] >= 1
    assert 0 < values["block_p50_s"] <= values["block_p95_s"]
    assert values["ttfc_s"] > 0


@pytest.mark.parametrize("lacks", ["a compiler", "a folder to write"])
def test_where_nothing_can_be_compiled_the_plain_path_streams_and_a_sentence_says_why(
    artifact: Artifact, tmp_path: Path, lacks: str
) -> None:
    file = tmp_path / "file"
    file.touch()
    changes = {
        "a compiler": {"PATH": str(tmp_path), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")},
        "a folder to write": {"TORCHINDUCTOR_CACHE_DIR": str(file / "cache")},
    }[lacks]
    words = [*options_for(artifact.folder, tmp_path / "clip.mp4"), "--speed-ups", "compiled"]
    answer = subprocess.run(
        [sys.executable, "-m", "omniforcing", "stream", *words, "--json"],
        env={name: value for name, value in os.environ.items() if name != "CXX"} | changes,
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stderr.count("speed-up compiled is left out") == 1
    assert json.loads(answer.stdout)["speed_ups"] == []


def test_a_part_that_cannot_be_compiled_runs_plain_and_a_sentence_says_why(
    artifact: Artifact, tmp_path: Path
) -> None:
    """As with a cache that was altered after the compiler was found to work."""
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, torch\n"
        "def backend(graph, inputs):\n"
        "    if len(graph.graph.nodes) > 5: raise RuntimeError('altered')\n"
        "    return graph.forward\n"
        "torch.compiler.set_default_backend(backend)\n"
        "from omniforcing.cli import main\n"
        "main(['stream', *sys.argv[1:]])\n"
    )
    told = []
    for name, switches in (("plain.mp4", []), ("failing.mp4", ["--speed-ups", "compiled"])):
        words = [*options_for(artifact.folder, tmp_path / name), *switches]
        answer = subprocess.run(
            [sys.executable, str(script), *words], capture_output=True, text=True
        )
        assert answer.returncode == 0, answer.stderr
        told.append(answer.stderr.count("a part of the student runs uncompiled"))
        assert "Traceback" not in answer.stderr
    assert told == [0, 1]
    clips = [(tmp_path / name).read_bytes() for name in ("plain.mp4", "failing.mp4")]
    assert len(clips[0]) == pytest.approx(len(clips[1]), rel=0.01)


@pytest.mark.slow
def test_a_compiled_student_streams_the_same_clip(
    artifact: Artifact,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    import torch
    from torch._dynamo.utils import counters

    # What is compiled is the same, and nobody waits for C++.
    torch.compiler.set_default_backend("eager")
    request.addfinalizer(lambda: torch.compiler.set_default_backend(None))
    counters.clear()
    clips = []
    for name, switches in (("plain.mp4", []), ("compiled.mp4", ["--speed-ups", "compiled"])):
        assert not counters["stats"]  # nothing is compiled that was not asked for
        assert stream(*options_for(artifact.folder, tmp_path / name), "--json", *switches) == 0
        with av.open(str(tmp_path / name)) as container:
            clips.append(
                np.stack(
                    [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
                ).astype(int)
            )
    assert counters["stats"]["unique_graphs"] > 0
    assert np.abs(clips[0] - clips[1]).mean() < 1
    told = [json.loads(line)["speed_ups"] for line in capsys.readouterr().out.splitlines()]
    assert told == [[], ["compiled"]]


@pytest.mark.parametrize(
    ("changes", "code", "named"),
    [
        ({"prompt": " "}, "streaming.no-prompt", "' '"),
        ({"prompt": "red " * 31 + "ball"}, "codec.prompt-too-long", "33 tokens"),
        ({"seconds": "-2"}, "streaming.no-time", "-2.0 seconds"),
        ({"seconds": "nan"}, "streaming.no-time", "nan seconds"),
        ({"seconds": "0"}, "streaming.no-time", "0.0 seconds"),
        ({"seed": "-1"}, "streaming.bad-seed", "-1"),
        ({"artifact": "nowhere"}, "streaming.not-an-artifact", "nowhere"),
        ({"out": "clip.avi"}, "option.malformed", "clip.avi"),
        ({"out": "no/such/clip.mp4"}, "file.no-folder", "no/such"),
        ({"threads": "0"}, "option.out-of-range", "--threads is 0"),
        ({"device": "cuda:99"}, "device.unusable", "--device cuda:99"),
        ({"device": "toaster"}, "device.unusable", "--device toaster"),
        ({"speed-ups": "fp8"}, "device.no-cuda", "fp8"),
        ({"speed-ups": "concurrent"}, "device.no-cuda", "concurrent"),
        (
            {"speed-ups": "warp"},
            "option.unknown-name",
            "'warp' to switch on; known: merged, compiled, concurrent, fp8",
        ),
    ],
)
def test_bad_value_is_one_sentence(
    artifact: Artifact,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, str],
    code: str,
    named: str,
) -> None:
    out = Path(changes.pop("out", str(tmp_path / "clip.mp4")))
    assert stream(*options_for(artifact.folder, out, **changes)) == 2
    error = capsys.readouterr().err
    refused(error, code, named)
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_folder_as_target_is_refused(
    artifact: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "clip.mp4").mkdir()
    assert stream(*options_for(artifact.folder, tmp_path / "clip.mp4")) == 2
    refused(capsys.readouterr().err, "file.is-a-folder", tmp_path / "clip.mp4")


def test_altered_artifact_is_one_sentence(
    own_artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (own_artifact / "sinks.safetensors").write_bytes(b"other")
    assert stream(*options_for(own_artifact, tmp_path / "clip.mp4")) == 2
    refused(capsys.readouterr().err, "file.altered", "sinks.safetensors")


def test_streaming_runs_where_the_training_side_is_not_installed(
    artifact: Artifact, tmp_path: Path
) -> None:
    barred = (
        "ray",
        "mlflow",
        "dvc",
        "lightning",
        "webdataset",
        "torchaudio",
        "decord",
        "matplotlib",
        "pandas",
        "scipy",
    )
    words = ["stream", *options_for(artifact.folder, tmp_path / "clip.mp4", seconds="1")]
    script = (
        f"import sys; sys.modules.update(dict.fromkeys({barred!r})); "
        f"from omniforcing.cli import main; main({words!r})"
    )
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert (tmp_path / "clip.mp4").is_file()


def pictures(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def same(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two decoded pictures are the same but for x264, which knows different pictures before
    them.
    """
    return bool(np.abs(one.astype(int) - other).mean() < 6)


def test_a_saved_stream_is_resumed(artifact: Artifact, tmp_path: Path) -> None:
    whole, first, second, state = (
        tmp_path / name for name in ("whole.mp4", "first.mp4", "second.mp4", "state")
    )
    assert stream(*options_for(artifact.folder, whole, seconds="4")) == 0
    assert stream(*options_for(artifact.folder, first, seconds="2"), "--save", str(state)) == 0
    assert (
        stream(
            "--artifact",
            str(artifact.folder),
            "--resume",
            str(state),
            "--seconds",
            "2",
            "--out",
            str(second),
        )
        == 0
    )
    expected, got = pictures(whole), pictures(first) + pictures(second)
    assert len(got) == len(expected) == 97
    assert all(map(same, expected, got))
    with av.open(str(second)) as container:
        assert container.streams.video[0].start_time == container.streams.audio[0].start_time == 0
        heard = sum(frame.samples for frame in container.decode(audio=0))
    assert 0 <= heard - (2 * 16000 - round(16000 / 24)) < 1024


def test_prompts_change_on_the_way(artifact: Artifact, tmp_path: Path) -> None:
    for name, extra in (
        ("plain.mp4", []),
        ("changed.mp4", ["--then", "2", "a blue ball rolls", "--rewrite"]),
    ):
        assert stream(*options_for(artifact.folder, tmp_path / name, seconds="3"), *extra) == 0
    plain, changed = pictures(tmp_path / "plain.mp4"), pictures(tmp_path / "changed.mp4")
    # To the bit: neither encoder knows of the change before it comes.
    alike = [np.array_equal(a, b) for a, b in zip(plain, changed, strict=True)]
    assert all(alike[:49]) and not any(alike[49:])


def test_words_that_the_text_encoder_never_saw_are_told(
    artifact: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "clip.mp4"
    later = ["--then", "1", "a blue heron"]
    assert stream(*options_for(artifact.folder, out, prompt="a red zebra"), *later) == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert ["zebra" in line for line in warnings] == [True, False]
    assert ["heron" in line for line in warnings] == [False, True]


def test_a_stream_begins_with_an_image_or_a_clip(artifact: Artifact, tmp_path: Path) -> None:
    Image.new("RGB", (80, 60), "red").save(tmp_path / "red.png")
    clip, more = tmp_path / "clip.mp4", tmp_path / "more.mp4"
    assert stream(*options_for(artifact.folder, clip), "--image", str(tmp_path / "red.png")) == 0
    assert stream(*options_for(artifact.folder, more, seconds="3"), "--continue", str(clip)) == 0
    assert len(pictures(more)) == 73


def run_stream(*options: str, **how: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "omniforcing", "stream", *options], stderr=subprocess.PIPE, **how
    )


def test_standard_output_plays_while_it_grows(artifact: Artifact) -> None:
    with run_stream(
        *options_for(artifact.folder, Path("-"), seconds="2"), "--json", stdout=subprocess.PIPE
    ) as process:
        data, shown = process.communicate(timeout=120)
    assert process.returncode == 0, shown
    with av.open(io.BytesIO(data)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 49
    assert json.loads(shown.splitlines()[-1])["media_s"] == 2


@pytest.mark.parametrize("read", [0, 2000])
def test_a_player_that_is_closed_ends_the_stream_quietly(artifact: Artifact, read: int) -> None:
    with run_stream(
        *options_for(artifact.folder, Path("-")), "--endless", stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.read(read)
        process.stdout.close()
        shown = process.stderr.read()
        assert process.wait(60) == 0, shown
    assert b"Traceback" not in shown and b"Error" not in shown


def test_ctrl_c_ends_an_endless_clip_properly(artifact: Artifact, tmp_path: Path) -> None:
    out = tmp_path / "clip.mp4"
    with run_stream(
        *options_for(artifact.folder, out), "--endless", stdout=subprocess.DEVNULL
    ) as process:
        assert process.stderr is not None
        while b"block=4" not in (line := process.stderr.read(80)) and line:
            pass
        process.send_signal(signal.SIGINT)
        shown = process.stderr.read()
        assert process.wait(60) == 0, shown
    count = len(pictures(out))
    assert count >= 97 and count % 24 == 1


@pytest.mark.parametrize(
    ("extra", "code", "named"),
    [
        (["--then", "soon", "a blue ball"], "option.malformed", "'soon'"),
        (["--then", "1", " "], "streaming.no-prompt", "' '"),
        (["--then", "1", "red " * 31 + "ball"], "codec.prompt-too-long", "would lose 'ball'"),
        (["--then", "nan", "a blue ball"], "streaming.no-moment", "second nan"),
        (["--then", "inf", "a blue ball", "--endless"], "streaming.no-moment", "second inf"),
        (["--then", "-1", "a blue ball"], "streaming.no-moment", "second -1"),
        (["--then", "9", "a blue ball"], "streaming.no-moment", "second 9"),
        (["--then", "1.9", "a blue ball"], "streaming.no-moment", "second 1.9"),
        (["--image", "nowhere.png"], "file.unreadable", "nowhere.png"),
        (["--continue", "nowhere.mp4"], "streaming.unreadable-clip", "nowhere.mp4"),
        (["--resume", "nowhere"], "file.missing", "nowhere"),
        (["--resume", "a", "--image", "b"], "option.conflict", "--resume"),
        (["--save", "state", "--endless"], "option.conflict", "--endless"),
    ],
)
def test_bad_beginning_is_one_sentence(
    artifact: Artifact,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    extra: list[str],
    code: str,
    named: str,
) -> None:
    assert stream(*options_for(artifact.folder, tmp_path / "clip.mp4"), *extra) == 2
    refused(capsys.readouterr().err, code, named)
    assert list(tmp_path.iterdir()) == []


def test_speed_counts_the_first_moving_chunk_and_leaves_the_first_block_out() -> None:
    timings = [
        BlockTiming(1, 5.0, 1.0, 7.0),
        BlockTiming(24, 1.0, 1.0, 9.0),
        BlockTiming(24, 1.0, 3.0, 13.0),
    ]
    speed = stream_speed(timings)
    assert speed.ttfc_s == 9.0
    assert speed.block_p50_s == 3.0
    assert speed.media_s == 2.0
    assert speed.real_time_factor == pytest.approx(2 / 13)
    assert speed.fps == pytest.approx(49 / 13)


def test_speed_of_a_merged_first_block_counts_from_its_own_chunk() -> None:
    speed = stream_speed([BlockTiming(25, 1.0, 1.0, 2.5)])
    assert speed.ttfc_s == 2.5 and speed.block_p50_s == 2.5 and speed.media_s == 1.0
