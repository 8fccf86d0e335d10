"""LoRAs over the student of a stream: scales that change between blocks, states, refusals."""

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from omniforcing.cli.streaming import stream as stream_command
from omniforcing.model.weights.checkpoint import open_checkpoint
from omniforcing.model.weights.lora import merged, write_lora
from omniforcing.model.weights.writing import write_diffusers
from omniforcing.serving.protocol.messages import Limits
from omniforcing.serving.service import Service
from omniforcing.serving.session import Session
from omniforcing.streaming.artifact import Artifact
from omniforcing.streaming.engine import Engine
from omniforcing.streaming.live import Chunk
from omniforcing.streaming.state import StreamState
from tests.support.refusals import refuses
from tests.support.streams import PROMPT, media_of
from tests.support.tiny_loras import tiny_lora

pytestmark = pytest.mark.extended


@pytest.fixture(scope="module")
def lora(artifact: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lora") / "style.safetensors"
    core = open_checkpoint(artifact.folder).core()
    write_lora(tiny_lora(core, ["to_q", "to_v", "to_out.0", "net.2"]), path, "lightricks")
    return path


@pytest.fixture(scope="module")
def styled(artifact: Artifact, lora: Path) -> Engine:
    return Engine(artifact, loras=[f"{lora}:0.5"])


def equal(a: Chunk, b: Chunk) -> bool:
    return np.array_equal(a.frames, b.frames) and np.array_equal(a.samples, b.samples)


def test_a_styled_stream_is_that_of_the_merged_student(
    styled: Engine, own_artifact: Path, tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(own_artifact)
    assert styled.overlay is not None
    write_diffusers(merged(checkpoint, [(styled.overlay.loras[0], 0.5)]), tmp_path)
    for file in (tmp_path / "transformer").iterdir():
        file.replace(own_artifact / "transformer" / file.name)
    expected = list(Engine(Artifact.open(own_artifact, verify=False)).stream(PROMPT, 2))
    ours, theirs = media_of(list(styled.stream(PROMPT, 2))), media_of(expected)
    assert np.abs(ours[0].astype(int) - theirs[0].astype(int)).max() <= 1
    assert np.abs(ours[1] - theirs[1]).max() < 1e-3


def test_a_scale_changes_at_its_block_and_of_its_stream_alone(
    engine: Engine, styled: Engine
) -> None:
    plain, half = (list(e.stream(PROMPT, 3)) for e in (engine, styled))
    with styled.stream(PROMPT, 3) as stream, styled.stream(PROMPT, 3) as beside:
        applied = stream.set_scales([0.0], at=2)
        changed = [*zip(stream, beside, strict=True)]
    assert applied.result().block == 2
    assert all(equal(c, h) for (_, c), h in zip(changed, half, strict=True))
    assert [equal(c, h) for (c, _), h in zip(changed, half, strict=True)][:2] == [True, True]
    assert not equal(changed[3][0], half[3])
    with styled.stream(PROMPT, 3) as stream:
        stream.set_scales([0.0])
        none = list(stream)
    for ours, own in zip(none, plain, strict=True):
        assert np.abs(ours.frames.astype(int) - own.frames.astype(int)).max() <= 1


def test_a_saved_stream_keeps_its_scales_and_belongs_to_its_loras(
    engine: Engine, styled: Engine, tmp_path: Path
) -> None:
    with styled.stream(PROMPT, 3) as stream:
        stream.set_scales([-0.25], at=1)
        saved = stream.snapshot(at=2)
        whole = list(stream)
    saved.result().save(tmp_path / "s.state")
    state = StreamState.load(tmp_path / "s.state", styled.digest)
    rest = list(styled.resume(state, 2))
    assert all(equal(a, b) for a, b in zip(rest[:2], whole[2:4], strict=True))
    with refuses("streaming.other-artifact", "s.state"):
        StreamState.load(tmp_path / "s.state", engine.digest)


class Viewer:
    """The least of a WebSocket that a session needs, which hears what the server says."""

    def __init__(self, *messages: dict[str, Any]) -> None:
        self.messages = [{"type": "websocket.receive", "text": json.dumps(m)} for m in messages]
        self.heard: list[dict[str, Any]] = []

    async def receive(self) -> dict[str, Any]:
        if not self.messages:
            await asyncio.Event().wait()
        return self.messages.pop(0)

    async def send_text(self, text: str) -> None:
        self.heard.append(json.loads(text))

    async def send_bytes(self, data: bytes) -> None:
        pass

    async def close(self, code: int) -> None:
        pass


def test_a_viewer_changes_the_scales_of_a_running_stream(styled: Engine) -> None:
    async def run() -> list[dict[str, Any]]:
        service = Service(styled, Limits(), [])
        viewer = Viewer(
            {"type": "start", "prompt": PROMPT, "seconds": 4, "paced": False},
            {"type": "scales", "id": 5, "scales": [0.0, 1.0]},
            {"type": "scales", "id": 6, "scales": [0.0]},
        )
        await Session(viewer, service).run()  # type: ignore[arg-type]
        service.close()
        return viewer.heard

    heard = asyncio.run(run())
    (error,) = [m for m in heard if m["type"] == "error"]
    assert error["code"] == "streaming.bad-scales" and not error["fatal"]
    answers = [m for m in heard if m.get("id") == 6]
    assert [m["type"] for m in answers] in (["received", "applied"], ["received", "dropped"])
    assert not [m for m in heard if m.get("id") == 5]


def test_bad_scales_and_loras_are_one_sentence(
    artifact: Artifact, engine: Engine, styled: Engine, lora: Path, tmp_path: Path
) -> None:
    with styled.stream(PROMPT, 1) as stream:
        for scales in ([], [1.0, 1.0], [float("nan")]):
            with refuses("streaming.bad-scales"):
                stream.set_scales(scales)
    with engine.stream(PROMPT, 1) as stream, refuses("streaming.bad-scales"):
        stream.set_scales([1.0])
    with refuses("adapter.bad-scale", "style.safetensors"):
        Engine(artifact, loras=[f"{lora}:nan"])
    core = open_checkpoint(artifact.folder).core()
    other = tiny_lora(core, ["attn1.to_q"])
    other.layers["transformer_blocks.7.attn1.to_q"] = other.layers.popitem()[1]
    write_lora(other, tmp_path / "other.safetensors")
    with refuses("adapter.unknown-layer", "other.safetensors", "blocks.7"):
        Engine(artifact, loras=[str(tmp_path / "other.safetensors")])


def test_the_command_lays_loras_over_the_student(
    artifact: Artifact, lora: Path, tmp_path: Path
) -> None:
    out = tmp_path / "clip.mp4"
    arguments = ["--artifact", str(artifact.folder), "--prompt", PROMPT, "--seconds", "2"]
    arguments += ["--out", str(out), "--json", "--lora", f"{lora}:0.8", "--lora-scale", "1"]
    done = CliRunner().invoke(stream_command, [*arguments, "0"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout.splitlines()[-1])["out"] == str(out) and out.is_file()
    wrong = CliRunner().invoke(stream_command, [*arguments, "loud"])
    assert wrong.exit_code == 2 and "a scale is a number" in wrong.output
