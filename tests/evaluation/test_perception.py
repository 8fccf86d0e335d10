"""PE-AV: tiny random weights in the published format, loaded by the real code.

Its tower is one of timm, which `make env` leaves out: it needs torchvision, which every process
would import. The slow test fetches both into a folder and runs the others there.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from omniforcing.core.files import sha256_file
from omniforcing.core.pair import Pair
from omniforcing.evaluation.measures.clips import Clip
from omniforcing.evaluation.measures.encoders.perception import NEEDED, PerceptionEncoder
from omniforcing.evaluation.measures.encoders.weights import Entry, Weights
from tests.support.tiny_encoders import coloured, measure, tiny_pe_av, value

ROOT = Path(__file__).parents[2]
NAMES = ("pe_audio_video", "javis_pe", "pe_text_video", "pe_text_audio")
pytestmark = pytest.mark.extended
with_timm = pytest.mark.skipif(find_spec("timm") is None, reason="needs the extra measures")


def named(folder: Path) -> Weights:
    return Weights({"pe_av": Entry(folder, sha256_file(folder / "model.safetensors"))})


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    folder = tmp_path_factory.mktemp("pe_av")
    tiny_pe_av(folder)
    return named(folder)


@pytest.mark.skipif(find_spec("timm") is not None, reason="timm is there")
def test_without_timm_each_of_its_measures_is_a_row_that_says_what_to_install(
    tmp_path: Path,
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "pe_audio_video"}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    rows = measure(named(tmp_path), [coloured(0)], *NAMES).rows
    assert [row.measure.name for row in rows] == list(NAMES)
    for row in rows:
        assert row.figure is None
        assert "needs timm" in row.why and "omniforcing[measures]" in row.why


@with_timm
def test_all_its_measures_have_figures_and_the_weights_in_their_protocol(weights: Weights) -> None:
    found = measure(weights, [coloured(0), coloured(1)], *NAMES)
    for name in NAMES:
        assert -1 <= value(found, name) <= 1
    digest = weights.entries["pe_av"].sha256[:12]
    assert all(digest in row.measure.protocol for row in found.rows)
    silent = [Clip(clip.name, clip.media) for clip in (coloured(0), coloured(1))]
    rows = {row.measure.name: row for row in measure(weights, silent, *NAMES).rows}
    assert rows["pe_text_video"].figure is None and "found 0" in rows["pe_text_video"].why
    assert rows["pe_audio_video"].figure is not None


@with_timm
def test_features_are_those_of_the_whole_model(weights: Weights) -> None:
    encoder, clip = PerceptionEncoder(weights), coloured(0)
    tokens = encoder.tokenizer([clip.caption], return_tensors="pt")
    wave = np.repeat(clip.media.audio.mean(0), 3)
    inputs = encoder.of_sound(wave, sampling_rate=48000, return_tensors="pt")
    video = torch.as_tensor(clip.media.video).permute(0, 3, 1, 2)
    pixels = encoder.of_video([video], return_tensors="pt").pixel_values_videos
    with torch.no_grad():
        whole = encoder.model(
            tokens.input_ids, pixels, attention_mask=tokens.attention_mask, **inputs
        )
    pairs = [
        (encoder.picture(clip), whole.video_embeds),
        (encoder.video_text(clip.caption or ""), whole.text_video_embeds),
        (encoder.sound_text(clip.caption or ""), whole.text_audio_embeds),
    ]
    for mine, theirs in pairs:
        unit = torch.nn.functional.normalize(theirs[0], dim=-1).numpy()
        assert mine == pytest.approx(unit, abs=1e-5)


@with_timm
def test_the_sound_and_the_frames_of_a_clip_depend_on_what_is_in_them(weights: Weights) -> None:
    encoder, clip = PerceptionEncoder(weights), coloured(0)
    pieces = np.stack([clip.media.audio[0, :16000], np.zeros(16000, np.float32)])
    first, second = encoder.sound(pieces)
    assert np.linalg.norm(first) == pytest.approx(1, abs=1e-5)
    assert abs(first - second).max() > 1e-3
    changed = np.concatenate([clip.media.video[:20], coloured(2).media.video[:29]])
    frames = encoder.frames(Clip("changed", Pair(changed, clip.media.audio)))
    assert frames.shape[0] == 49 and frames[0] == pytest.approx(frames[19], abs=1e-5)
    assert abs(frames[0] - frames[30]).max() > 1e-4


@pytest.mark.slow
def test_pe_av_runs_with_the_pinned_packages_of_the_extra(tmp_path: Path) -> None:
    if find_spec("timm") is not None:
        pytest.skip("timm is installed: the tests above ran")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
    fetched = subprocess.run(
        [*pip, str(tmp_path), "-c", "constraints.txt", *NEEDED],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if fetched.returncode:
        pytest.skip(f"timm and torchvision cannot be fetched: {fetched.stderr[-300:]}")
    paths = os.pathsep.join([str(tmp_path), str(ROOT / "src"), str(ROOT)])
    plugin = ["-p", "tests.support.torchvision_ops", "-p", "no:cacheprovider"]
    tests = subprocess.run(
        [sys.executable, "-m", "pytest", *plugin, "-m", "extended and not slow", "-rA", __file__],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert tests.returncode == 0, tests.stdout[-3000:] + tests.stderr[-1000:]
    assert "3 passed, 1 skipped" in tests.stdout
