"""HTTP servers that answer as a test wishes: always one status, something odd, or never."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Answering(ThreadingHTTPServer):
    """A server that records requests and answers all alike.

    Attributes:
        status: of every answer.
        body: of every answer.
        asked: paths of the requests so far.
        tokens: their ``Authorization`` headers.
    """

    daemon_threads = True

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status, self.body = status, body
        self.asked: list[str] = []
        self.tokens: list[str | None] = []

    @property
    def url(self) -> str:
        """Address of the server."""
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, Answering)
        server.asked.append(self.path)
        server.tokens.append(self.headers.get("Authorization"))
        self.send_response(server.status)
        self.send_header("Content-Length", str(len(server.body)))
        self.end_headers()
        self.wfile.write(server.body)

    do_POST = do_PUT = do_GET

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def answering(status: int = 200, body: bytes = b"") -> Iterator[Answering]:
    """Run a server that answers every request with ``status`` and ``body``."""
    with Answering(status, body) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@contextmanager
def black_hole() -> Iterator[str]:
    """Give the address of a server that takes connections and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
