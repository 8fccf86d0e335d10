"""``omniforcing measure ARTIFACT``: clips are made for captions, and measured like any others."""

import json
from pathlib import Path

import pytest

from omniforcing.cli import main
from omniforcing.evaluation.measures.clips import Clip
from omniforcing.pipeline.experiments.generated import captions_for, generated_clips
from omniforcing.streaming.artifact import Artifact
from tests.support.refusals import refuses

pytestmark = pytest.mark.extended
CAPTIONS = ["a red ball bounces", "a blue ball bounces"]


def test_an_artifact_is_measured_on_captions(
    artifact: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    captions, out = tmp_path / "captions.txt", tmp_path / "figures.json"
    captions.write_text("\n".join([*CAPTIONS, "", "a green ball bounces"]))
    arguments = ["measure", str(artifact.folder), "--captions", str(captions), "--clips", "2"]
    with pytest.raises(SystemExit) as end:
        main([*arguments, "--seconds", "2", "--json", str(out), "--measures", "motion,loudness"])
    assert end.value.code == 0
    assert f"{artifact.folder}: 2 clips" in capsys.readouterr().out
    content = json.loads(out.read_text())["source"]
    assert [row["caption"] for row in content["clips"]] == CAPTIONS
    assert [row["seconds"] for row in content["clips"]] == [2, 2]
    assert content["figures"]["motion"]["n"] == 2


def test_the_same_seed_makes_the_same_clips(artifact: Artifact) -> None:
    first, again, other = (
        next(generated_clips(artifact.folder, CAPTIONS, 1, seed, "cpu")) for seed in (0, 0, 1)
    )
    assert isinstance(first, Clip) and isinstance(again, Clip) and isinstance(other, Clip)
    assert first.media.video.shape == (25, 64, 64, 3) and first.media.audio.shape == (2, 16000)
    assert (first.media.video == again.media.video).all()
    assert (first.media.video != other.media.video).any()


def test_without_captions_it_says_where_to_get_them(tmp_path: Path) -> None:
    with refuses("pipeline.no-captions", "--captions", "--against"):
        captions_for(None, tmp_path, None)
    (tmp_path / "captions.txt").write_bytes(b"\xff\xfe\x00")
    with refuses("file.unreadable", "captions.txt"):
        captions_for(tmp_path / "captions.txt", None, None)
