"""The MLflow store: its address, whether it answers, and requests that end in a sentence."""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, urlsplit

from omniforcing.core.environment import data_root
from omniforcing.core.errors import OmniForcingError

# MLflow's own default is seven retries of two minutes each, with ever longer pauses.
_RETRIES, REQUEST, UPLOAD = 1, 5, 120  # seconds of one try
SILENCE = 3.0  # seconds after which a wait is told
_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
# MLflow's codes of faults that may pass: all other refusals would come again.
_PASSING = {"INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "IO_ERROR"}


def answers(host: str, port: int) -> bool:
    """Whether a process accepts TCP connections at an address within 5 seconds."""
    try:
        socket.create_connection((host, port), 5).close()
    except OSError:
        return False
    return True


def store_folder(root: Path) -> Path:
    """Return the folder of ``mlflow.db`` and ``mlruns``: the data root.

    `dvc exp run --temp` and `--queue` run in a copy below ``.dvc/tmp/exps``, which DVC removes at
    the end: a stage there logs to the checkout that it was copied from.
    """
    folder = data_root(root).absolute()
    for parent in folder.parents:
        if parent.parts[-3:] == (".dvc", "tmp", "exps"):
            return parent.parents[2]
    return folder


def tracking_uri(root: Path) -> str:
    """Return ``MLFLOW_TRACKING_URI``, or the URI of the project's sqlite file ``mlflow.db``."""
    named = os.environ.get("MLFLOW_TRACKING_URI")
    if named:
        return named
    path = str(store_folder(root) / "mlflow.db")
    if "%" not in path and "?" not in path:
        return f"sqlite:///{path}"
    # SQLAlchemy decodes the path and takes `?` for the start of options. With the driver named,
    # MLflow does not also make the folder of the encoded path.
    return f"sqlite+pysqlite:///{quote(path)}"


def shown(uri: str) -> str:
    """Return an address without the password in it."""
    try:
        password = urlsplit(uri).password
    except ValueError:
        return uri
    return uri.replace(f":{password}@", ":***@") if password else uri


def is_server(uri: str) -> bool:
    """Whether an address is that of an MLflow server."""
    return uri.startswith(("http://", "https://"))


def faults() -> tuple[type[Exception], ...]:
    """List the errors of a store that does not answer; those of requests are ``OSError``."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return (MlflowException, SQLAlchemyError, OSError)


def may_pass(error: Exception) -> bool:
    """Whether the same request may succeed later."""
    return getattr(error, "error_code", "INTERNAL_ERROR") in _PASSING


def no_answer(uri: str, reason: object) -> OmniForcingError:
    """Build the error for a store that does not answer."""
    said = " ".join(str(reason).split())[:200]
    return OmniForcingError(
        "tracking.no-mlflow",
        f"MLflow at {shown(uri)} does not answer ({said}); start it or check MLFLOW_TRACKING_URI, "
        f"without which runs go to mlflow.db in the checkout",
    )


@contextmanager
def answering(uri: str, seconds: int = REQUEST) -> Iterator[None]:
    """Bound the requests of the body, say when they take long, and turn failures into a sentence.

    Args:
        uri: address of the store.
        seconds: that one try of one request may take.

    Raises:
        OmniForcingError: if the store does not answer.
    """
    try:
        with bounded(uri, seconds):
            yield
    except faults() as error:
        if isinstance(error, OSError) and not is_server(uri):
            raise  # of this machine's own disk
        raise no_answer(uri, error) from error


@contextmanager
def bounded(uri: str, seconds: int = REQUEST) -> Iterator[None]:
    """Bound the requests of the body and say when they take long; what the user set stays.

    Args:
        uri: address of the store.
        seconds: that one try of one request may take.
    """
    ours = {name: text for name, text in _limits(seconds).items() if name not in os.environ}
    waiting = threading.Timer(SILENCE, _say_waiting, (uri,))
    waiting.daemon = True
    os.environ.update(ours)
    if not uri.startswith("sqlite"):  # a file, of this machine
        waiting.start()
    try:
        yield
    finally:
        waiting.cancel()
        for name in ours:
            os.environ.pop(name, None)


def bound_always(seconds: int = UPLOAD) -> None:
    """Bound the requests of this process from now on; what the user set stays.

    For a process that streams while it asks: a variable that one thread sets can crash another one
    that reads the environment, and ``bounded`` sets none that is there.

    Args:
        seconds: that one try of one request may take.
    """
    for name, text in _limits(seconds).items():
        os.environ.setdefault(name, text)


def _limits(seconds: int) -> dict[str, str]:
    """MLflow's variables that bound a request."""
    return {
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(seconds),
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(_RETRIES),
        "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",
    }


def _say_waiting(uri: str) -> None:
    print(f"waiting for MLflow at {shown(uri)}", file=sys.stderr, flush=True)


def check_host(uri: str) -> None:
    """Refuse a store at whose address nothing listens; MLflow would try a database for minutes.

    Raises:
        OmniForcingError: naming the address.
    """
    try:
        url = urlsplit(uri)
        port = url.port
    except ValueError as error:
        raise no_answer(uri, error) from error
    kind = url.scheme.partition("+")[0]
    if kind in _PORTS and url.hostname:
        port = port or _PORTS[kind]
        if not answers(url.hostname, port):
            raise no_answer(uri, f"nothing listens at {url.hostname}:{port}")
