"""The second wire, played by a client that was written from its published messages alone."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from imageio_ffmpeg import get_ffmpeg_exe
from websockets.exceptions import ConnectionClosed, InvalidStatus

from omniforcing.serving.protocol.messages import Limits
from omniforcing.serving.realtime import RealtimeWire
from omniforcing.serving.realtime_messages import SERVER
from omniforcing.serving.service import Service
from omniforcing.serving.session import Session
from omniforcing.streaming.artifact import Artifact
from omniforcing.streaming.engine import Engine
from tests.support.realtime_client import RealtimeClient
from tests.support.refusals import check
from tests.support.serving import Server, play, server
from tests.support.streams import OTHER_PROMPT, PROMPT, image_file, media_of, settled

pytestmark = pytest.mark.extended

# What the published example client sends, in its own order, for a server of this shape.
PUBLISHED_START = {
    "model": "smoke",
    "prompt": PROMPT,
    "width": 64,
    "height": 64,
    "fps": 24,
    "num_frames": 73,
    "num_inference_steps": 50,
    "guidance_scale": 1.0,
    "seed": 42,
    "extra_params": {"is_enable_stage2": True, "pyramid_num_inference_steps_list": [1, 1, 1]},
}
AUDIO_FRAME = 1024


@pytest.fixture(scope="module")
def serving(artifact: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    options = ("--max-sessions", "3", "--max-seconds", "600", "--max-idle-seconds", "5")
    with server(artifact.folder, tmp_path_factory.mktemp("server"), *options) as running:
        yield running


def client(serving: Server, **options: Any) -> RealtimeClient:
    return RealtimeClient(serving.address, **options)


def pictures_and_times(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Decoded pictures, and the second at which each is shown."""
    with av.open(io.BytesIO(data)) as container:
        frames = [(f.to_ndarray(format="rgb24"), f.time) for f in container.decode(video=0)]
    return np.stack([f for f, _ in frames]), np.array([t for _, t in frames])


def sound(data: bytes) -> tuple[np.ndarray, float]:
    """Decoded samples of the left channel, and the second at which the first is heard."""
    with av.open(io.BytesIO(data)) as container:
        frames = [(f.to_ndarray()[0], f.time) for f in container.decode(audio=0)]
    return np.concatenate([samples for samples, _ in frames]), float(frames[0][1])


# --- a stream -------------------------------------------------------------------------------------


def test_the_published_start_plays_a_whole_stream(serving: Server) -> None:
    with client(serving) as viewer:
        viewer.play(**PUBLISHED_START)
        with pytest.raises(ConnectionClosed):
            viewer.socket.recv(timeout=10)
        assert viewer.socket.close_code == 1000
    kinds = [message["type"] for message in viewer.heard]
    assert kinds == ["video.start", *["video.chunk_metadata"] * 5, "session.done"]
    start, *chunks, done = viewer.heard
    assert start["format"] == "m4s" and {m.get("request_id") for m in viewer.heard} == {
        start["request_id"]
    }
    asked = {name: PUBLISHED_START[name] for name in start["config"].keys() & PUBLISHED_START}
    assert asked.items() <= start["config"].items() and len(asked) == 7
    assert [chunk["kind"] for chunk in chunks] == [*["media"] * 4, "trailer"]
    assert [chunk["generation_chunk_index"] for chunk in chunks] == [0, 1, 2, 3, None]
    assert sum(chunk["num_frames"] for chunk in chunks) == 73
    assert sum(chunk["num_audio_samples"] for chunk in chunks) == 3 * 16000
    assert (done["chunks"], done["stopped"]) == (5, False)
    # An initialisation segment once, in the first piece, and whole fragments from then on.
    assert viewer.pieces[0][4:8] == b"ftyp" and b"moof" in viewer.pieces[0]
    assert {piece[4:8] for piece in viewer.pieces[1:]} == {b"moof"}


def test_messages_have_the_fields_that_the_reference_page_lists(serving: Server) -> None:
    optional = {"warnings", "request_id", "event_id"}
    with client(serving) as viewer:
        viewer.say("session.start", prompt="a red zebra", num_frames=49)
        viewer.interact("one", OTHER_PROMPT)
        viewer.interact("one", OTHER_PROMPT)
        viewer.say("session.ping")
        while viewer.next()["type"] != "session.done":
            pass
    assert {message["type"] for message in viewer.heard} == SERVER.keys()
    for message in viewer.heard:
        fields, declared = message.keys() - {"type"}, SERVER[message["type"]].fields.keys()
        assert fields <= declared and declared - fields <= optional, message
    assert "'zebra'" in viewer.of("video.start")[0]["warnings"][0]


def test_both_wires_carry_the_same_bytes(serving: Server) -> None:
    with serving.connect() as own:
        media, _ = play(own, 3, seed=42)
    with client(serving) as viewer:
        assert viewer.play(**PUBLISHED_START) == media


def test_picture_and_sound_are_in_sync_to_one_audio_frame(serving: Server, engine: Engine) -> None:
    """Each is compared with what the engine made: at its time, and nowhere else."""
    with client(serving) as viewer:
        data = viewer.play(**PUBLISHED_START)
    with engine.stream(PROMPT, 3, 42) as stream:
        frames, samples = media_of(list(stream))
    shown, times = pictures_and_times(data)
    far = np.abs(shown[:, None].astype(np.int16) - frames[None]).mean((2, 3, 4))
    picture_late = times - far.argmin(1) / 24
    heard, first = sound(data)
    assert len(shown) == 73 and np.ptp(picture_late) < 1e-4
    made = samples[0]
    heard = heard[: len(made)]
    likeness = np.fft.irfft(
        np.fft.rfft(heard, 2 * len(made)) * np.fft.rfft(made, 2 * len(made)).conj()
    )
    lag = int(likeness.argmax())
    lag -= 2 * len(made) * (lag > len(made))
    sound_late = first + lag / 16000
    print(f"picture late by {picture_late[0]:.6f} s, sound by {sound_late:.6f} s")
    assert abs(sound_late - picture_late[0]) < AUDIO_FRAME / 16000
    assert abs(sound_late) < 0.001 and abs(picture_late[0]) < 0.001


@pytest.mark.parametrize("by", ["field", "query"])
def test_a_player_that_expects_video_alone_asks_for_it(serving: Server, by: str) -> None:
    with client(serving) as viewer:
        whole = viewer.play(**PUBLISHED_START)
    options = {"query": "?generate_sound=false"} if by == "query" else {}
    with client(serving, **options) as viewer:
        more = {"generate_sound": False} if by == "field" else {}
        data = viewer.play(**PUBLISHED_START, **more)
    start, *chunks, done = viewer.heard
    assert start["config"]["generate_sound"] is False and "mp4a" not in start["mime"]
    assert {chunk["num_audio_samples"] for chunk in chunks} == {0}
    assert [chunk["kind"] for chunk in chunks] == ["media"] * 4 and done["chunks"] == 4
    with av.open(io.BytesIO(data)) as container:
        assert [stream.type for stream in container.streams] == ["video"]
    for one, other in zip(pictures_and_times(data), pictures_and_times(whole), strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("generate_sound", [True, False])
def test_ffmpeg_finds_nothing_wrong(serving: Server, tmp_path: Path, generate_sound: bool) -> None:
    with client(serving) as viewer:
        data = viewer.play(**PUBLISHED_START, generate_sound=generate_sound)
    (tmp_path / "stream.mp4").write_bytes(data)
    words = [get_ffmpeg_exe(), "-v", "warning", "-i", str(tmp_path / "stream.mp4")]
    done = subprocess.run(
        [*words, "-fps_mode", "passthrough", "-f", "framehash", "-"], capture_output=True, text=True
    )
    pictures = [line for line in done.stdout.splitlines() if line.startswith("0,")]
    assert done.stderr == "" and len(pictures) == 73


def test_a_first_frame_comes_as_a_data_url(serving: Server) -> None:
    url = "data:image/png;base64," + base64.b64encode(image_file()).decode()
    with client(serving) as viewer:
        plain = viewer.play(prompt=PROMPT, num_frames=25)
    with client(serving) as viewer:
        opened = viewer.play(prompt=PROMPT, num_frames=25, image_reference={"image_url": url})
    assert len(pictures_and_times(opened)[0]) == 25 and opened != plain


# --- while it runs --------------------------------------------------------------------------------


def test_an_interaction_changes_the_prompt_where_the_metadata_says(serving: Server) -> None:
    start = {"prompt": PROMPT, "seconds": "8", "seed": 3}
    with client(serving) as viewer:
        plain = pictures_and_times(viewer.play(**start))[0]
    with client(serving) as viewer:
        # Kept to its player, which stands at 0: blocks 0 to 2 and no more.
        viewer.say("session.start", **start, streaming_buffer_seconds=1.25)
        while viewer.until("video.chunk_metadata")["generation_chunk_index"] != 2:
            pass
        viewer.interact("turn", OTHER_PROMPT, transition_chunks=3)
        assert viewer.until("session.interaction.queued")["event_id"] == "turn"
        viewer.say("session.playback", position_seconds=60.0)
        viewer.until("session.done")
        steered = pictures_and_times(b"".join(viewer.pieces))[0]
    began = [chunk for chunk in viewer.of("video.chunk_metadata") if chunk["started_event_ids"]]
    assert [chunk["generation_chunk_index"] for chunk in began] == [3]
    for name in ("started_event_ids", "active_event_ids", "completed_event_ids"):
        assert began[0][name] == ["turn"]
    before = 1 + 2 * 24
    assert np.array_equal(steered[: before - 1], plain[: before - 1])
    assert not np.array_equal(steered[before:], plain[before:])


def test_a_stream_with_a_buffer_goes_no_further_than_its_player(serving: Server) -> None:
    with client(serving) as viewer:
        viewer.say("session.start", prompt=PROMPT, streaming_buffer_seconds=1.25)
        with pytest.raises(TimeoutError):
            while True:
                viewer.next(1.5)
        media = viewer.of("video.chunk_metadata")
        assert [chunk["generation_chunk_index"] for chunk in media] == [0, 1, 2]
        viewer.say("session.playback", position_seconds=1.0)
        assert viewer.until("video.chunk_metadata")["generation_chunk_index"] == 3


def test_an_event_without_a_name_gets_one_and_a_name_is_used_once(serving: Server) -> None:
    with client(serving) as viewer:
        viewer.say("session.start", prompt=PROMPT, streaming_buffer_seconds=1)
        viewer.until("video.start")
        viewer.interact(None, OTHER_PROMPT)
        assert viewer.until("session.interaction.queued")["event_id"]
        viewer.interact("a", "")
        while (error := viewer.next())["type"] != "error":
            pass
        assert (error["code"], error["event_id"]) == ("streaming.no-prompt", "a")
        viewer.interact("a", OTHER_PROMPT)  # its name is free again
        assert viewer.until("session.interaction.queued")["event_id"] == "a"
        viewer.interact("a", PROMPT)
        while (error := viewer.next())["type"] != "error":
            pass
        assert (error["code"], error["event_id"]) == ("event_id_conflict", "a")
        camera = {"camera": {"mode": "velocity", "data": {"translation": [0, 0, 1]}}}
        event = {"event_id": "b", "event": {"multi_modal_data": camera}}
        viewer.say("session.interaction", interaction=event)
        while (error := viewer.next())["type"] != "error":
            pass
        assert (error["code"], error["event_id"]) == ("interaction_failed", "b")
        viewer.say("session.stop")
        viewer.until("session.done")


def test_stop_ends_a_stream_behind_a_whole_piece(serving: Server) -> None:
    with client(serving) as viewer:
        viewer.say("session.start", prompt=PROMPT)
        viewer.until("video.chunk_metadata")
        viewer.say("session.stop")
        done = viewer.until("session.done")
    assert done["stopped"] and done["reason"] == "stopped" and done["chunks"] == len(viewer.pieces)
    shown = pictures_and_times(b"".join(viewer.pieces))[0]
    assert len(shown) == sum(m["num_frames"] for m in viewer.of("video.chunk_metadata"))


def test_two_sessions_play_at_once_beside_our_own_wire(serving: Server) -> None:
    starts = [{"prompt": p, "num_frames": 97, "seed": 6} for p in (PROMPT, OTHER_PROMPT)]
    alone = []
    for start in starts:
        with client(serving) as viewer:
            alone.append(viewer.play(**start))
    with client(serving) as one, client(serving) as other, serving.connect() as own:
        for viewer, start in ((one, starts[0]), (other, starts[1])):
            viewer.say("session.start", **start)
        media, _ = play(own, 4, seed=6)
        for viewer in (other, one):
            viewer.until("session.done")
    assert [b"".join(viewer.pieces) for viewer in (one, other)] == alone
    assert media == alone[0] != alone[1]


def test_a_client_that_goes_away_leaves_its_session(serving: Server) -> None:
    with client(serving) as viewer:
        viewer.say("session.start", prompt=PROMPT)
        viewer.until("video.chunk_metadata")
        linger = b"\1\0\0\0\0\0\0\0"  # a reset, not a farewell
        viewer.socket.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        viewer.socket.socket.shutdown(socket.SHUT_RDWR)
    assert settled(lambda: serving.figure("omniforcing_sessions") == 0)


class _Slow:
    """The least of a WebSocket: it takes long over the first metadata, and stops meanwhile."""

    def __init__(self) -> None:
        self.took: list[str] = []
        self._texts = [json.dumps({"type": "session.start", "prompt": PROMPT, "seconds": "9"})]
        self._waits = asyncio.Event()

    async def receive(self) -> dict[str, Any]:
        if not self._texts:
            await self._waits.wait()
            self._texts.append(json.dumps({"type": "session.stop"}))
            self._waits.clear()
        return {"type": "websocket.receive", "text": self._texts.pop(0)}

    async def send_text(self, text: str) -> None:
        self.took.append(json.loads(text)["type"])
        if self.took[-1] == "video.chunk_metadata":
            self._waits.set()
            await asyncio.sleep(0.3)

    async def send_bytes(self, _: bytes) -> None:
        self.took.append("piece")

    async def close(self, code: int) -> None:
        pass


def test_a_piece_follows_its_metadata_also_where_the_stream_is_stopped_in_between(
    engine: Engine,
) -> None:
    async def run() -> list[str]:
        service, slow = Service(engine, Limits(), []), _Slow()
        await Session(slow, service, RealtimeWire(service)).run()  # type: ignore[arg-type]
        service.close()
        return slow.took

    assert asyncio.run(run()) == ["video.start", "video.chunk_metadata", "piece", "session.done"]


# --- who may connect ------------------------------------------------------------------------------


def test_a_full_server_and_a_foreign_page_are_refused(serving: Server) -> None:
    assert settled(lambda: serving.figure("omniforcing_sessions") == 0)
    with client(serving), client(serving), serving.connect(), pytest.raises(InvalidStatus) as full:
        client(serving)
    assert full.value.response.status_code == 503
    assert json.loads(full.value.response.body)["code"] == "serving.busy"
    with pytest.raises(InvalidStatus) as foreign:
        client(serving, origin="http://evil.example")
    assert foreign.value.response.status_code == 403


def test_a_token_is_wanted_where_there_is_one_and_a_server_that_stops_says_so(
    artifact: Artifact, tmp_path: Path
) -> None:
    token, options = "a-token-for-tests", ("--drain-seconds", "2")
    with server(artifact.folder, tmp_path, *options, OMNIFORCING_TOKEN=token) as running:
        with pytest.raises(InvalidStatus) as refused:
            client(running)
        assert refused.value.response.status_code == 401
        client(running, subprotocols=[f"bearer.{token}"]).socket.close()  # as a browser does
        shown = {"Authorization": f"Bearer {token}"}
        with client(running, additional_headers=shown) as viewer:
            viewer.say("session.start", prompt=PROMPT)
            viewer.until("video.chunk_metadata")
            running.process.send_signal(signal.SIGTERM)
            done = viewer.until("session.done")
        assert (done["stopped"], done["reason"]) == (True, "draining")


# --- what is wrong --------------------------------------------------------------------------------


def start(**values: Any) -> str:
    return json.dumps({"type": "session.start", "prompt": PROMPT, **values})


BAD_STARTS = [
    ("\x00", "serving.malformed-message", "json"),
    (json.dumps({"type": "dance"}), "serving.unknown-message", "'dance'"),
    (json.dumps({"type": "session.ping"}), "serving.not-begun", "session.start"),
    (json.dumps({"type": "session.stop"}), "serving.not-begun", "session.start"),
    (json.dumps({"type": "session.start"}), "serving.missing-field", "'prompt'"),
    (start(prompt=""), "streaming.no-prompt", "''"),
    (start(prompt="x" * 2000), "serving.prompt-too-long", "2,000 characters"),
    (start(prompt="ball " * 40), "codec.prompt-too-long", "41 tokens"),
    (start(model="BestWishYsh/Helios-Distilled"), "serving.other-shape", "the model smoke"),
    (start(size="640x384"), "serving.other-shape", "64x64 pixels"),
    (start(size="large"), "serving.bad-field", "WIDTHxHEIGHT"),
    (start(video_params={"fps": 16}), "serving.other-shape", "24 frames a second"),
    (start(format="webm"), "serving.bad-field", "m4s"),
    (start(num_frames=1), "serving.bad-field", "2 or more"),
    (start(num_frames=10**6), "serving.stream-too-long", "600"),
    (start(seconds="601"), "serving.stream-too-long", "600"),
    (start(seconds=4), "serving.bad-field", "'seconds' is int"),
    (start(seconds="9" * 5000), "serving.bad-field", "'seconds'"),
    (start(seed=-1), "streaming.bad-seed", "-1"),
    (start(seed=10**600), "serving.bad-field", "'seed'"),
    (start(sampling_params={"seed": "7"}), "serving.bad-field", "'seed' is str"),
    (start(sampling_params=7), "serving.bad-field", "'sampling_params' is int"),
    (start(negative_prompt="blur"), "serving.unsupported-field", "'negative_prompt'"),
    (start(lora={"name": "style"}), "serving.unsupported-field", "'lora'"),
    (start(streaming_buffer_seconds=0), "serving.bad-field", "more than 0"),
    (start(streaming_buffer_seconds=float("nan")), "serving.bad-field", "nan"),
    (start(image_reference={"image_url": "http://127.0.0.1/"}), "serving.bad-field", "127.0.0.1"),
    (start(image_reference={"file_id": "f"}), "serving.bad-field", "image_url"),
    (start(image_reference=[]), "serving.bad-field", "list"),
    (
        start(image_reference={"image_url": "data:image/png;base64,R0lG~"}),
        "serving.bad-field",
        "base64",
    ),
    (
        start(image_reference={"image_url": "data:image/png;base64,R0lGODlh"}),
        "streaming.unreadable-image",
        "PNG",
    ),
    (b"GIF89a", "serving.unexpected-binary", "6 bytes"),
]


@pytest.mark.parametrize(("data", "code", "named"), BAD_STARTS)
def test_a_bad_start_is_one_error_and_the_end(
    serving: Server, data: str | bytes, code: str, named: str
) -> None:
    with client(serving) as viewer:
        viewer.socket.send(data)
        error = viewer.next()
        assert error.keys() == {"type", "message", "code"}
        check(error["code"], error["message"], code, named)
        assert len(error["message"]) <= 300
        with pytest.raises(ConnectionClosed):
            viewer.socket.recv(timeout=10)


def test_bad_messages_while_streaming_are_errors_and_it_plays_on(serving: Server) -> None:
    def interaction(**values: Any) -> str:
        return json.dumps({"type": "session.interaction", "interaction": values})

    event = {"prompt": OTHER_PROMPT}
    wrong: list[tuple[str | bytes, str]] = [
        (start(generate_sound=False), "serving.begun-already"),
        (json.dumps({"type": "session.interaction"}), "serving.missing-field"),
        (interaction(event_id="x" * 300, event=event), "serving.bad-field"),
        (interaction(event_id="a", event=event, transition_chunks=1.5), "serving.bad-field"),
        (interaction(event_id="a", event=event, transition_chunks=1e999), "serving.bad-field"),
        (interaction(event_id="a", event={"prompt": 3}), "serving.bad-field"),
        (interaction(event_id="a", event={"prompt": "ball " * 40}), "codec.prompt-too-long"),
        (json.dumps({"type": "session.playback", "position_seconds": -1}), "serving.bad-field"),
        (b"\0", "serving.unexpected-binary"),
    ]
    with client(serving) as viewer:
        viewer.say("session.start", prompt=PROMPT, num_frames=121, streaming_buffer_seconds=1)
        viewer.until("video.chunk_metadata")
        for data, code in wrong:
            viewer.socket.send(data)
            while (error := viewer.next())["type"] != "error":
                pass
            assert error["code"] == code and error["request_id"], error
        viewer.say("session.ping")
        viewer.until("session.pong")
        viewer.say("session.playback", position_seconds=60)
        assert not viewer.until("session.done")["stopped"]
    shown, _ = pictures_and_times(b"".join(viewer.pieces))
    assert len(shown) == 121 and len(sound(b"".join(viewer.pieces))[0])


def test_a_client_that_sends_nothing_but_mistakes_is_let_go(serving: Server) -> None:
    with client(serving) as viewer:
        viewer.say("session.start", prompt=PROMPT, streaming_buffer_seconds=1)
        viewer.until("video.start")
        for _ in range(10):
            viewer.socket.send("nonsense")
        while viewer.next()["type"] != "session.done":
            pass
        assert len(viewer.of("error")) == 10 and viewer.heard[-1]["reason"] == "mistakes"


def test_a_client_that_never_starts_hears_why_it_is_let_go(serving: Server) -> None:
    with client(serving) as viewer:
        assert viewer.next(20)["code"] == "serving.idle"
        with pytest.raises(ConnectionClosed):
            viewer.socket.recv(timeout=10)


class _Waiting:
    """The least of a WebSocket: a client that starts a paced stream, and pings so many times."""

    def __init__(self, pings: int) -> None:
        self._messages = [start(streaming_buffer_seconds=1.0)]
        self._messages += [json.dumps({"type": "session.ping"})] * pings
        self.heard: list[dict[str, Any]] = []

    async def receive(self) -> dict[str, Any]:
        if not self._messages:
            await asyncio.Event().wait()
        text = self._messages.pop(0)
        if "ping" in text:
            await asyncio.sleep(0.5)
        return {"type": "websocket.receive", "text": text}

    async def send_text(self, text: str) -> None:
        self.heard.append(json.loads(text))

    async def send_bytes(self, data: bytes) -> None:
        pass

    async def close(self, code: int) -> None:
        pass


@pytest.mark.parametrize("pings", [0, 4])
def test_pings_keep_a_player_that_stands_still(engine: Engine, pings: int) -> None:
    async def run() -> tuple[list[dict[str, Any]], float]:
        service = Service(engine, Limits(paused_seconds=1.0), [])
        waiting = _Waiting(pings)
        began = asyncio.get_running_loop().time()
        await Session(waiting, service, RealtimeWire(service)).run()  # type: ignore[arg-type]
        service.close()
        return waiting.heard, asyncio.get_running_loop().time() - began

    heard, seconds = asyncio.run(run())
    assert [m["type"] for m in heard].count("session.pong") == pings
    assert seconds >= 1.0 + 0.5 * pings
    assert [m["type"] for m in heard[-2:]] == ["error", "session.done"]
    assert heard[-2]["code"] == "serving.idle" and heard[-1]["stopped"]
