"""The server: ten clients at once of every kind, and one clear answer for whatever is wrong, while
others play on.
"""

from __future__ import annotations

import asyncio
import gc
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.websockets import WebSocketDisconnect
from websockets.client import ClientProtocol
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.protocol import State
from websockets.sync.client import ClientConnection
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

from omniforcing.codec.streaming import StreamingDecoder
from omniforcing.media.mux import Muxer
from omniforcing.serving.protocol.messages import SUBPROTOCOL, Limits
from omniforcing.serving.service import Service
from omniforcing.serving.session import Session
from omniforcing.streaming.artifact import Artifact
from omniforcing.streaming.engine import Engine
from omniforcing.streaming.live import Stream
from tests.support.refusals import check, refused, refuses
from tests.support.serving import Server, frames_in, hear, play, say, server, take
from tests.support.streams import PROMPT, image_file, settled

pytestmark = pytest.mark.extended

TOKEN = "a-token-for-tests"


@pytest.fixture(scope="module")
def serving(artifact: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    options = ("--max-sessions", "10", "--max-seconds", "600", "--max-idle-seconds", "5")
    # One pool of memory: glibc's, one for each of many threads, grow for hours on a busy machine.
    pools, folder = {"MALLOC_ARENA_MAX": "1"}, tmp_path_factory.mktemp("server")
    with server(artifact.folder, folder, *options, **pools) as running:
        running.get("/health")
        running.idle_threads = running.threads()
        yield running


# --- a stream -------------------------------------------------------------------------------------


def test_a_stream_is_whole_and_tells_its_figures(serving: Server) -> None:
    with serving.connect() as client:
        media, messages = play(client, 3, seed=4)
        with pytest.raises(ConnectionClosed):
            client.recv(timeout=10)
        assert client.close_code == 1000
    assert frames_in(media) == 73
    kinds = [message["type"] for message in messages]
    assert kinds == ["started", *["block"] * 4, "ended"]
    assert messages[0]["mime"].startswith('video/mp4; codecs="avc1.') and messages[0]["seed"] == 4
    assert messages[-1] == {"type": "ended", "reason": "ended", "frames": 73, "seconds": 3.0}
    assert [message["block"] for message in messages[1:-1]] == [0, 1, 2, 3]


def test_the_same_seed_gives_the_same_bytes_to_every_client(serving: Server) -> None:
    received = []
    for _ in range(2):
        with serving.connect() as client:
            received.append(play(client, 2, seed=5)[0])
    assert received[0] == received[1]


def test_prompts_are_acknowledged_twice_and_shown_where_they_say(serving: Server) -> None:
    with serving.connect() as client:
        hear(client, "hello")
        say(client, "start", prompt=PROMPT, seconds=600)
        hear(client, "block")
        say(client, "prompt", id=3, prompt="a blue ball rolls", rewrite=True)
        hear(client, "received")
        say(client, "position", seconds=4)
        applied = hear(client, "applied")
        assert applied["id"] == 3 and applied["seconds"] == (1 + 24 * (applied["block"] - 1)) / 24
        block = hear(client, "block")
        while block["block"] < applied["block"]:
            assert block["prompt"] == PROMPT
            block = hear(client, "block")
        assert (block["block"], block["prompt"]) == (applied["block"], "a blue ball rolls")
        say(client, "stop")
        assert hear(client, "ended")["reason"] == "stopped"


def test_a_stream_goes_no_further_than_its_player_allows(serving: Server) -> None:
    with serving.connect() as client:
        hear(client, "hello")
        say(client, "start", prompt=PROMPT, seconds=600)
        blocks = []
        with pytest.raises(TimeoutError):
            while True:
                if (
                    isinstance(data := client.recv(timeout=1.5), str)
                    and json.loads(data)["type"] == "block"
                ):
                    blocks.append(json.loads(data)["block"])
        assert blocks == [0, 1, 2, 3]  # three seconds of lead: block 3 begins at 2.04 s
        say(client, "position", seconds=1)
        assert hear(client, "block")["block"] == 4


def test_pause_and_resume(serving: Server) -> None:
    with serving.connect() as client:
        hear(client, "hello")
        say(client, "start", prompt=PROMPT, seconds=30, paced=False)
        hear(client, "block")
        say(client, "pause")
        hear(client, "paused")
        with pytest.raises(TimeoutError):
            while True:
                client.recv(timeout=1.5)
        say(client, "resume")
        hear(client, "resumed")
        hear(client, "block")


def test_a_stream_begins_with_an_image(serving: Server) -> None:
    with serving.connect() as client:
        hear(client, "hello")
        client.send(image_file())
        say(client, "start", prompt=PROMPT, seconds=1, image=True, paced=False)
        assert frames_in(take(client)[0]) == 25


# --- ten clients ----------------------------------------------------------------------------------


def test_ten_clients_of_every_kind(serving: Server) -> None:
    """Three vanish, three read slowly, one sends garbage.

    The others play on, and nothing is left behind.
    """
    crowd(serving)
    files, sizes = serving.files(), [serving.memory()]
    # What is made once, such as buffers for each computing thread, and what the allocator keeps is
    # there after some crowds, whoever of them came first; the next test counts what sessions leave.
    while len(sizes) < 2 or (sizes[-1] > 1.1 * sizes[-2] and len(sizes) < 4):
        crowd(serving)
        sizes.append(serving.memory())
    assert settled(lambda: serving.threads() <= serving.idle_threads + 3 * 10), (
        "more is left than the server's own workers"
    )
    assert settled(lambda: serving.files() <= files), "sockets are left"
    assert sizes[-1] < 1.1 * sizes[-2], sizes


class _Client:
    """The least of a WebSocket that a session needs: it says what it is told to, then takes
    whatever comes.
    """

    def __init__(self, *messages: dict[str, Any]) -> None:
        self._messages = [
            {"type": "websocket.receive", "text": json.dumps(message)} for message in messages
        ]
        self.ended = ""

    async def receive(self) -> dict[str, Any]:
        if not self._messages:
            await asyncio.Event().wait()
        return self._messages.pop(0)

    async def send_text(self, text: str) -> None:
        self.ended = json.loads(text).get("reason", self.ended)

    async def send_bytes(self, data: bytes) -> None:
        if data and self.ended == "vanish":
            raise WebSocketDisconnect

    async def close(self, code: int) -> None:
        pass


@pytest.mark.parametrize("end", ["ended", "stopped", "vanish"])
def test_a_session_that_is_over_is_freed_at_once(engine: Engine, end: str) -> None:
    """Not by the garbage collector, for caches on a GPU would wait for its oldest generation."""

    async def run() -> str:
        service = Service(engine, Limits(), [])
        start = {
            "type": "start",
            "prompt": PROMPT,
            "seconds": 1 if end == "ended" else 600,
            "paced": False,
        }
        client = _Client(start, *([{"type": "stop"}] if end == "stopped" else []))
        client.ended = end if end == "vanish" else ""
        await Session(client, service).run()  # type: ignore[arg-type]
        service.close()
        return client.ended

    gc.collect()
    gc.disable()
    try:
        assert asyncio.run(run()) == end
        kinds = (Session, Stream, StreamingDecoder, Muxer)
        assert settled(lambda: not [thing for thing in gc.get_objects() if type(thing) in kinds], 5)
    finally:
        gc.enable()


def crowd(serving: Server) -> None:
    """Ten clients at once, until all are gone."""
    gone = settled(lambda: serving.figure("omniforcing_sessions") == 0, 60)
    assert gone, "sessions of earlier tests are still open"
    clients = [serving.connect() for _ in range(10)]
    assert settled(lambda: serving.get("/ready")[0] == 503), "ten of ten sessions are taken"
    assert "all 10 sessions are taken" in serving.get("/ready")[1]
    with pytest.raises(InvalidStatus) as refused:
        serving.connect()
    assert refused.value.response.status_code == 503
    whole: dict[int, int] = {}
    good = [
        threading.Thread(target=lambda n=n: whole.update({n: frames_in(play(clients[n], 8)[0])}))
        for n in (0, 1, 2)
    ]
    slow = [
        threading.Thread(target=lambda n=n: whole.update({n: slowly(clients[n])}))
        for n in (3, 4, 5)
    ]
    vanishing = [threading.Thread(target=vanish, args=(clients[n],)) for n in (6, 7, 8)]
    everybody = [*good, *slow, *vanishing, threading.Thread(target=babble, args=(clients[9],))]
    for thread in everybody:
        thread.start()
    while any(thread.is_alive() for thread in everybody):
        assert serving.get("/health")[0] == 200
        status, body = serving.get("/ready")
        assert (status == 200) == json.loads(body)["ready"]
        time.sleep(0.2)
    assert whole == {0: 193, 1: 193, 2: 193, 3: 97, 4: 97, 5: 97}
    for client in clients:
        client.close()
    assert settled(lambda: serving.figure("omniforcing_sessions") == 0)
    assert serving.get("/ready")[0] == 200


def slowly(client: ClientConnection) -> int:
    """A player at a quarter of the pace of the others."""
    hear(client, "hello")
    say(client, "start", prompt=PROMPT, seconds=4)
    media, position = b"", 0.0
    while True:
        try:
            data = client.recv(timeout=0.4)
        except TimeoutError:
            position += 0.5
            say(client, "position", seconds=position)
            continue
        if isinstance(data, bytes):
            media += data
            time.sleep(0.3)
        elif json.loads(data)["type"] == "ended":
            return frames_in(media)


def vanish(client: ClientConnection) -> None:
    """Begin, take something, and be gone without a word."""
    hear(client, "hello")
    say(client, "start", prompt=PROMPT, seconds=600, paced=False)
    hear(client, "block")
    client.socket.setsockopt(
        socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0"
    )  # a reset, not a farewell
    client.socket.shutdown(socket.SHUT_RDWR)


def babble(client: ClientConnection) -> None:
    """Nothing but nonsense, until the server has enough."""
    hear(client, "hello")
    for number in range(12):
        try:
            client.send(b"\x00\xff" * 40 if number % 2 else "nonsense")
        except ConnectionClosed:
            break
    _, messages = take(client)
    assert [message["type"] for message in messages] == [*["error"] * 10, "ended"] and messages[-1][
        "reason"
    ] == "mistakes"


# --- what is wrong is one answer, and others play on ----------------------------------------------


@pytest.fixture
def neighbour(serving: Server) -> Iterator[None]:
    """Somebody whose stream must not be touched by what the test does."""
    with serving.connect() as client:
        hear(client, "hello")
        say(client, "start", prompt=PROMPT, seconds=5)
        yield
        say(client, "position", seconds=600)
        end = take(client)[1][-1]
        assert end["reason"] == "ended" and end["frames"] == 121


@pytest.mark.parametrize(
    ("data", "code", "named"),
    [
        (
            json.dumps({"type": "start", "prompt": "x" * 1_000_000}),
            "serving.prompt-too-long",
            "1,000,000 characters",
        ),
        (json.dumps({"type": "start", "prompt": ""}), "streaming.no-prompt", "''"),
        (
            json.dumps({"type": "start", "prompt": "ball " * 40}),
            "codec.prompt-too-long",
            "41 tokens where the text encoder takes 32",
        ),
        (
            json.dumps({"type": "start", "prompt": PROMPT, "seconds": 1e6}),
            "serving.stream-too-long",
            "600",
        ),
        (
            json.dumps({"type": "start", "prompt": PROMPT, "image": True}),
            "serving.late-image",
            "image",
        ),
        (json.dumps({"type": "dance"}), "serving.unknown-message", "'dance'"),
        (json.dumps({"type": "pause"}), "serving.not-begun", "start"),
        (b"GIF89a" + bytes(100), "streaming.unreadable-image", "PNG"),
        (bytes(10_000_001), "streaming.image-too-large", "10,000,000"),
        ("\x00", "serving.malformed-message", "json"),
    ],
    ids=[
        "1 MB prompt",
        "empty prompt",
        "cut prompt",
        "too long",
        "no image",
        "unknown",
        "too early",
        "no picture",
        "large image",
        "no json",
    ],
)
@pytest.mark.usefixtures("neighbour")
def test_a_bad_message_is_one_error_and_the_session_goes_on(
    serving: Server, data: str | bytes, code: str, named: str
) -> None:
    with serving.connect() as client:
        hear(client, "hello")
        client.send(data)
        answer = json.loads(client.recv(timeout=20))
        assert answer["type"] == "error" and not answer["fatal"]
        check(answer["code"], answer["message"], code, named)
        say(client, "start", prompt=PROMPT, seconds=0.5, paced=False)
        assert frames_in(take(client)[0]) == 13


def test_words_that_the_text_encoder_never_saw_are_told_and_streamed(serving: Server) -> None:
    with serving.connect() as client:
        hear(client, "hello")
        say(client, "start", prompt="a red zebra", seconds=0.5, paced=False)
        warning = json.loads(client.recv(timeout=20))
        assert warning["type"] == "warning" and warning["code"] == "codec.unknown-words"
        assert "'zebra'" in warning["message"]
        assert frames_in(take(client)[0]) == 13


@pytest.mark.usefixtures("neighbour")
def test_a_bad_message_while_streaming_is_one_error(serving: Server) -> None:
    with serving.connect() as client:
        hear(client, "hello")
        say(client, "start", prompt=PROMPT, seconds=600)
        hear(client, "block")
        again, empty = (
            {"type": "start", "prompt": PROMPT},
            {"type": "prompt", "id": 1, "prompt": ""},
        )
        cut = {"type": "prompt", "id": 2, "prompt": "ball " * 40}
        for data, code in (
            (json.dumps(again), "serving.begun-already"),
            (bytes(10), "serving.late-image"),
            (json.dumps(empty), "streaming.no-prompt"),
            (json.dumps(cut), "codec.prompt-too-long"),
        ):
            client.send(data)
            with pytest.raises(AssertionError, match=code):
                hear(client, "nothing")
        say(client, "stop")
        hear(client, "ended")


@pytest.mark.usefixtures("neighbour")
def test_a_message_of_100_mb_closes_its_connection_alone(serving: Server) -> None:
    with serving.connect() as client:
        hear(client, "hello")
        with pytest.raises(ConnectionClosed):
            client.send(bytes(100_000_000))
            client.recv(timeout=20)
        assert client.close_code in (1009, 1006)


@pytest.mark.usefixtures("neighbour")
@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://127.0.0.1.evil.example", "https://127.0.0.1"]
)
def test_pages_of_other_origins_are_refused(serving: Server, origin: str) -> None:
    with pytest.raises(InvalidStatus) as refused:
        serving.connect(origin=origin)
    assert refused.value.response.status_code == 403
    assert f"pages of {origin} may not connect" in json.loads(refused.value.response.body)["error"]


def test_the_own_page_may_connect(serving: Server) -> None:
    for name in ("127.0.0.1", "localhost"):
        serving.connect(origin=serving.address.replace("127.0.0.1", name)).close()


def test_another_version_of_the_protocol_is_refused(serving: Server) -> None:
    from websockets.sync.client import connect

    with pytest.raises(InvalidStatus) as refused:
        connect(
            serving.address.replace("http", "ws") + "/stream",
            subprotocols=["omniforcing.v9"],
            proxy=None,
            legacy=True,
        )
    assert (
        refused.value.response.status_code == 400
        and SUBPROTOCOL in refused.value.response.body.decode()
    )


def test_a_silent_client_is_let_go(serving: Server) -> None:
    with serving.connect() as client:
        hear(client, "hello")
        media, messages = take(client)
        assert messages[-1]["reason"] == "idle" and not media


def test_a_client_that_says_nothing_for_long_keeps_its_stream(serving: Server) -> None:
    """As a hidden page does, whose timers its browser slows down: its WebSocket answers pings."""
    with serving.connect() as client:
        hear(client, "hello")
        say(client, "start", prompt=PROMPT, seconds=600)
        while hear(client, "block")["block"] < 3:
            pass
        say(client, "pause")
        hear(client, "paused")
        with pytest.raises(TimeoutError):
            while True:
                client.recv(timeout=8)  # --max-idle-seconds is 5
        say(client, "resume")
        say(client, "position", seconds=2)
        assert hear(client, "block")["block"] == 4


def test_a_client_that_answers_no_ping_is_let_go(serving: Server) -> None:
    host, _, port = serving.address.removeprefix("http://").partition(":")
    protocol = ClientProtocol(
        parse_uri(f"ws://{host}:{port}/stream"), subprotocols=[Subprotocol(SUBPROTOCOL)]
    )
    with socket.create_connection((host, int(port))) as line:
        protocol.send_request(protocol.connect())
        line.sendall(b"".join(protocol.data_to_send()))
        while protocol.state is not State.OPEN:
            protocol.receive_data(line.recv(65536))
        start = {"type": "start", "prompt": PROMPT, "seconds": 600}
        protocol.send_text(json.dumps(start).encode())
        line.sendall(b"".join(protocol.data_to_send()))
        assert settled(lambda: serving.figure("omniforcing_sessions") == 1)
        assert settled(lambda: serving.figure("omniforcing_sessions") == 0, 30)


def test_a_player_that_stands_still_for_longer_than_the_limit_is_let_go(engine: Engine) -> None:
    async def run(*messages: dict[str, Any]) -> str:
        service = Service(engine, Limits(paused_seconds=0.5), [])
        client = _Client({"type": "start", "prompt": PROMPT, "seconds": 600}, *messages)
        await Session(client, service).run()  # type: ignore[arg-type]
        service.close()
        return client.ended

    still = {"type": "position", "seconds": 0.0}
    assert asyncio.run(run(still, still)) == "idle"
    assert asyncio.run(run({"type": "pause"})) == "idle"


# --- origins --------------------------------------------------------------------------------------


def test_a_server_at_all_addresses_takes_its_own_page_by_any_of_them(
    artifact: Artifact, tmp_path: Path
) -> None:
    with server(artifact.folder, tmp_path, "--host", "0.0.0.0") as running:
        port = running.address.rpartition(":")[2]
        for name in ("127.0.0.1", "localhost", socket.gethostname()):
            running.connect(origin=f"http://{name}:{port}").close()
        for origin in ("http://192.0.2.7:9", f"http://evil.example:{port}"):
            with pytest.raises(InvalidStatus) as refused:
                running.connect(origin=origin)
            body = json.loads(refused.value.response.body)
            assert (
                refused.value.response.status_code == 403 and f"--origin {origin}" in body["error"]
            )
            status, ready = running.get(f"/ready?origin={origin}")
            assert status == 503 and json.loads(ready)["reason"] == body["error"]
        assert running.get(f"/ready?origin=http://127.0.0.1:{port}")[0] == 200


@pytest.mark.parametrize(
    ("origin", "host", "allowed"),
    [
        ("http://192.168.1.5:8765", "192.168.1.5:8765", True),
        ("http://192.168.1.5:9000", "192.168.1.5:9000", True),  # a port that was forwarded
        ("http://192.168.1.5", "192.168.1.5", True),
        ("http://[fe80::1]:8765", "[fe80::1]:8765", True),
        (None, "192.168.1.5:8765", True),  # no browser
        ("http://192.168.1.6:8765", "192.168.1.5:8765", False),
        ("https://192.168.1.5:8765", "192.168.1.5:8765", False),
        ("http://evil.example:8765", "evil.example:8765", False),  # a name that points here
        ("null", "192.168.1.5:8765", False),
        ("http://", "", False),
        ("http://[", "[", False),
    ],
)
def test_an_address_proves_a_page_to_be_ours_and_a_name_does_not(
    engine: Engine, origin: str | None, host: str, allowed: bool
) -> None:
    everywhere = Service(engine, Limits(), [], any_address=True)
    one_address = Service(engine, Limits(), [])
    if allowed:
        everywhere.check_origin(origin, host)
    else:
        with refuses("serving.foreign-origin", str(origin)):
            everywhere.check_origin(origin, host)
    if origin is not None:
        with refuses("serving.foreign-origin", origin):
            one_address.check_origin(origin, host)


# --- token, port, SIGTERM -------------------------------------------------------------------------


def test_a_token_is_wanted_where_there_is_one(artifact: Artifact, tmp_path: Path) -> None:
    with server(artifact.folder, tmp_path, OMNIFORCING_TOKEN=TOKEN) as running:
        for wrong in ({}, {"additional_headers": {"Authorization": "Bearer another-token"}}):
            with pytest.raises(InvalidStatus) as refused:
                running.connect(**wrong)
            assert refused.value.response.status_code == 401
        with pytest.raises(InvalidStatus):
            running.connect("bearer.another-token")
        shown = {"additional_headers": {"Authorization": f"Bearer {TOKEN}"}}
        for right in (running.connect(f"bearer.{TOKEN}"), running.connect(**shown)):
            assert hear(right, "hello")["token"]
            right.close()
        assert (
            running.get("/metrics")[0] == 401
            and running.get("/metrics", Authorization=f"Bearer {TOKEN}")[0] == 200
        )
        assert running.get("/health")[0] == running.get("/ready")[0] == running.get("/")[0] == 200
        assert TOKEN not in running.log.read_text()


def test_sigterm_lets_streams_go_on_for_a_while_and_ends_them_in_order(
    artifact: Artifact, tmp_path: Path
) -> None:
    with (
        server(artifact.folder, tmp_path, "--drain-seconds", "3") as running,
        running.connect() as client,
    ):
        hear(client, "hello")
        say(client, "start", prompt=PROMPT, seconds=600, paced=False)
        hear(client, "block")
        running.process.send_signal(signal.SIGTERM)
        assert (
            settled(lambda: running.get("/ready")[0] == 503, 2)
            and "about to stop" in running.get("/ready")[1]
        )
        assert running.get("/health")[0] == 200
        with pytest.raises(InvalidStatus):
            running.connect()
        media, messages = take(client)
        assert (
            messages[-1]["reason"] == "draining" and sum(m["type"] == "block" for m in messages) > 2
        )
        assert frames_in(media) == messages[-1]["frames"]
        assert running.process.wait(20) == 0, running.log.read_text()


@pytest.mark.parametrize(
    ("options", "code", "named"),
    [
        (
            ["--port", "{port}"],
            "serving.port-in-use",
            "port {port} of 127.0.0.1",
        ),
        (["--port", "99999"], "serving.cannot-listen", "port 99999; choose --port"),
        (["--host", "203.0.113.7", "--port", "0"], "serving.cannot-listen", "203.0.113.7"),
        (["--port", "0", "--artifact", "/nowhere"], "streaming.not-an-artifact", "/nowhere"),
    ],
)
def test_a_server_that_cannot_begin_says_why(
    serving: Server, artifact: Artifact, options: list[str], code: str, named: str
) -> None:
    port = serving.address.rpartition(":")[2]
    words = [
        "serve",
        "--artifact",
        str(artifact.folder),
        *(word.format(port=port) for word in options),
    ]
    answer = subprocess.run(
        [sys.executable, "-m", "omniforcing", *words],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert answer.returncode == 2
    refused(answer.stderr, code, named.format(port=port))
    assert answer.stderr.count("\n") == 1


def test_a_token_that_browsers_cannot_send_is_refused(artifact: Artifact, tmp_path: Path) -> None:
    with (
        pytest.raises(AssertionError, match=r"serving\.bad-token"),
        server(artifact.folder, tmp_path, OMNIFORCING_TOKEN="a b"),
    ):
        pass
