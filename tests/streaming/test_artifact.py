"""The artifact folder: complete, deterministic, verified, readable by diffusers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from omniforcing.core.files import read_json, tree_digest, write_json, write_manifest
from omniforcing.core.layout import FPS
from omniforcing.model.weights.student import load_model
from omniforcing.pipeline.config import load_config
from omniforcing.streaming.artifact import Artifact, StreamSettings, write_artifact
from omniforcing.streaming.engine import Engine
from tests.support.refusals import refuses
from tests.support.tiny_artifact import METRICS, make_settings


def test_artifact_holds_what_the_design_names(artifact: Artifact) -> None:
    names = {p.name for p in artifact.folder.iterdir()}
    assert names == {
        "transformer",
        "sinks.safetensors",
        "codec",
        "text",
        "streaming.json",
        "README.md",
        "manifest.json",
    }
    assert {p.name for p in (artifact.folder / "codec").iterdir()} == {
        "video_vae",
        "audio_vae",
        "vocoder",
        "codec.json",
    }


def test_transformer_opens_with_diffusers(artifact: Artifact) -> None:
    from diffusers import LTX2VideoTransformer3DModel

    core = LTX2VideoTransformer3DModel.from_pretrained(artifact.folder / "transformer")
    ours = dict(load_model(artifact.folder).core.named_parameters())
    assert all(torch.equal(value, ours[name]) for name, value in core.named_parameters())


def test_settings_survive_the_folder(artifact: Artifact) -> None:
    assert Artifact.open(artifact.folder).settings == make_settings()


def test_export_is_deterministic(parts: tuple[Path, Path], tmp_path: Path) -> None:
    digests = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_artifact(tmp_path / name, *parts, make_settings(), METRICS)
        digests.append(tree_digest(tmp_path / name))
    assert digests[0] == digests[1]


def test_settings_of_the_presets_follow_their_config() -> None:
    for preset in ("smoke", "pocket", "ltx2"):
        config = load_config(preset=preset)
        codec = {
            "height": config.clips.height,
            "width": config.clips.width,
            "grid": [2, 3],
            "vocoder_look_ahead_mel": 14,
        }
        codec |= {
            "sample_rate": 24000,
            "video_decoder_causal": False,
            "video_reach": {"ahead": 2, "again": 1, "blend": 0},
        }
        settings = StreamSettings.from_config(
            config.preset, config.student, config.clips.latent_counts, codec
        )
        assert settings.trained_seconds == config.clips.seconds
        assert (settings.sample_rate, settings.video_look_ahead, settings.look_ahead) == (
            24000,
            2,
            14,
        )
        assert settings.rollout.horizon == settings.horizon
        assert (
            settings.rollout.table.block(settings.horizon).frames.stop
            == 1 + FPS * config.clips.seconds
        )


def test_card_tells_the_figures(artifact: Artifact) -> None:
    card = (artifact.folder / "README.md").read_text()
    assert "|  | self_forcing | shuffled |" in card
    assert "| sync_f1 | 0.5 | 0.25 |" in card
    assert "| sync_margin | 0.25 | - |" in card
    assert "ttfc_s: 0.125" in card
    assert "64x64" in card and "2 denoising steps" in card
    assert (
        "16000 Hz" in card and "waits 0 ms (0 video latents) and the sound 250 ms\n(25 mel" in card
    )


def test_card_and_settings_declare_how_far_a_decoder_looks_ahead(
    parts: tuple[Path, Path], tmp_path: Path
) -> None:
    write_artifact(tmp_path, *parts, make_settings(video_look_ahead=6), {})
    assert "The picture waits 2000 ms (6 video latents)" in (tmp_path / "README.md").read_text()
    assert read_json(tmp_path / "streaming.json")["video_look_ahead"] == 6
    with refuses("streaming.mixed-artifact", "video look-ahead of streaming.json: 6", "0"):
        Engine(tmp_path)


def test_card_without_an_evaluation_says_so(parts: tuple[Path, Path], tmp_path: Path) -> None:
    write_artifact(tmp_path, *parts, make_settings(), {})
    assert "exported without an evaluation" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(
    "name", ["sinks.safetensors", "codec/vocoder/config.json", "text/tokenizer/tokenizer.json"]
)
def test_missing_file_is_named(own_artifact: Path, name: str) -> None:
    (own_artifact / name).unlink()
    with refuses("file.missing", name):
        Artifact.open(own_artifact)


def test_altered_file_is_named(own_artifact: Path) -> None:
    path = own_artifact / "transformer" / "diffusion_pytorch_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with refuses("file.altered", "diffusion_pytorch_model.safetensors"):
        Artifact.open(own_artifact)
    assert Artifact.open(own_artifact, verify=False).settings == make_settings()


@pytest.mark.parametrize(
    ("change", "code", "named"),
    [
        ({"schema": 2}, "file.unknown-schema", "schema 2"),
        ({"schema": None}, "file.unknown-schema", "schema None"),
        ({"layout": "halves"}, "streaming.unknown-setting", "'halves'"),
        ({"fps": 25}, "streaming.unknown-setting", "25 fps"),
        ({"sample_rate": 22050}, "streaming.unknown-setting", "22050 Hz"),
        ({"colour": 1}, "streaming.damaged-settings", "'colour'"),
        ({"window": 99}, "streaming.damaged-settings", "window of 99"),
    ],
)
def test_settings_that_cannot_be_run_are_refused(
    own_artifact: Path, change: dict[str, object], code: str, named: str
) -> None:
    path = own_artifact / "streaming.json"
    write_json(path, {**read_json(path), **change})
    write_manifest(own_artifact)
    with refuses(code, named):
        Artifact.open(own_artifact)


def test_settings_that_lack_a_key_or_are_no_json_are_refused(own_artifact: Path) -> None:
    path = own_artifact / "streaming.json"
    values = read_json(path)
    del values["sigmas"]
    write_json(path, values)
    with refuses("streaming.damaged-settings", "streaming.json", "'sigmas'"):
        Artifact.open(own_artifact, verify=False)
    path.write_text("{")
    with refuses("file.unreadable", "streaming.json"):
        Artifact.open(own_artifact, verify=False)


@pytest.mark.parametrize("place", ["nowhere", "."])
def test_folder_that_is_no_artifact_is_refused(tmp_path: Path, place: str) -> None:
    with refuses("streaming.not-an-artifact", tmp_path):
        Artifact.open(tmp_path / place)


def test_missing_part_of_a_stage_is_named(parts: tuple[Path, Path], tmp_path: Path) -> None:
    with refuses("file.missing", "transformer"):
        write_artifact(tmp_path, parts[1], parts[1], make_settings(), {})
