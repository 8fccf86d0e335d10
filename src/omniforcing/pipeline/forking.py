"""Stages that begin in a process with the libraries loaded (Linux).

Imports of torch, Lightning and MLflow are most of what a short stage takes, and a pipeline has
eleven stages. ``omniforcing run`` therefore starts a server that imports the libraries once, at the
first request, and forks itself for every stage that DVC starts::

    omniforcing run ── server ── keeper ── stage, forked
         └── dvc repro ── omniforcing stage NAME, the client

The client hands over its words, folder, environment and open files, passes signals on, and ends as
the stage did. Only libraries are loaded before the fork: the project's code is imported after it,
as it is then. A command that the server cannot reproduce, because its hard limits or a variable
that libraries read at import differ, runs in the client's own process, as all do without a server.
A stage that needs processes of its own has them forked by the server too. If any of the processes
above dies, those below it die too.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from omniforcing.core.environment import (
    FORKED_VARIABLE,
    FORKS_VARIABLE,
    decline_telemetry,
    die_with_parent,
)

# What most stages import in the end; Lightning brings torch.
LIBRARIES = (
    *("alembic.autogenerate", "av", "lightning", "mlflow.store.tracking.sqlalchemy_store"),
    *("omegaconf", "ruamel.yaml", "sqlalchemy.dialects.sqlite", "webdataset"),
)
# Beginnings of the names of variables that the libraries or the interpreter read when they are
# loaded; MLflow and Ray read the others of theirs when they need them.
READ_AT_IMPORT = (
    *("AOT", "CUDA", "GOTO", "HF_", "KMP", "LD_", "LIGHTNING", "MKL", "MPL", "MLFLOW_CONFIGURE"),
    *("MLFLOW_DISABLE", "MLFLOW_LOGGING", "NVIDIA", "OMP", "OPENBLAS", "OTEL", "PL_", "PYTHON"),
    *("PYTORCH", "TORCH", "TRANSFORMERS"),
)
# As `sys.path`; and one that is read when it is needed, and that Ray sets.
SENT_ALONG = ("PYTHONPATH", "PYTHONBREAKPOINT")
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
FORKED = b"f"
SIZE, STATUS = struct.Struct("!I"), struct.Struct("!i")


@contextlib.contextmanager
def fork_server(threads: int) -> Iterator[None]:
    """Have a server for the stages that the body starts: the one that is there, or a new one.

    Does nothing on other systems than Linux.

    Args:
        threads: of a stage on the CPU; libraries read them when they are loaded.
    """
    if sys.platform != "linux" or FORKS_VARIABLE in os.environ:
        yield
        return
    before = dict(os.environ)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    # DDP warns of a setting that costs a stage nothing and that others need.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    decline_telemetry()
    with tempfile.TemporaryDirectory(prefix="omniforcing-") as folder:
        address = str(Path(folder) / "forks")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(address)
            listener.listen()
            os.environ[FORKS_VARIABLE] = address
            server = subprocess.Popen(
                [sys.executable, "-m", __name__, str(listener.fileno())],
                pass_fds=[listener.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                # Ctrl-C reaches a stage once, through its client. No session of its own, for Linux
                # schedules by sessions: beside a busy one, a stage got a tenth of a core.
                process_group=0,
                preexec_fn=partial(die_with_parent, os.getpid()),
            )
        try:
            yield
        finally:
            server.kill()
            server.wait()
            os.environ.clear()
            os.environ.update(before)


class Forked:
    """A process that the server forked for this one, and that ends when this one does.

    Attributes:
        server: the connection on which it takes signals and gives its exit code.
    """

    def __init__(self, server: socket.socket) -> None:
        self.server = server

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send it a signal; one that has ended takes none."""
        with contextlib.suppress(OSError):
            self.server.send(bytes([number]))

    def wait(self) -> int:
        """Wait for its end; return the exit code, negative for a signal as in ``subprocess``."""
        answer = self.server.recv(STATUS.size, socket.MSG_WAITALL)
        self.server.close()
        # The keeper gives no answer if it was killed, and the process with it.
        return STATUS.unpack(answer)[0] if answer else -signal.SIGKILL


def run_forked(words: list[str]) -> int | None:
    """Run a command in a process that the server forks, and wait for it.

    Args:
        words: words of the command line.

    Returns:
        The exit code, negative for a signal as in ``subprocess``; None if there is no server, or
        none that can reproduce this process.
    """
    address = os.environ.get(FORKS_VARIABLE)
    forked = _fork(address, [0, 1, 2], words=words, same=_same()) if address else None
    if forked is None:
        return None
    if "DVC_STAGE" in os.environ:
        die_with_parent()
    for number in FORWARDED:
        if number not in _ignored():
            signal.signal(number, lambda number, _: forked.kill(number))
    return forked.wait()


def start_forked(module: str, stdin: int) -> Forked | None:
    """Start a module in a process that the server forks, if it forked this process.

    Args:
        module: name of the module, run as ``python -m`` does.
        stdin: file that is its standard input.

    Returns:
        The process; None if this one was not forked, or the server is gone.
    """
    process, _, address = os.environ.get(FORKED_VARIABLE, "").partition(" ")
    if process != str(os.getpid()):
        return None
    # What libraries have added to the environment since does not count.
    return _fork(address, [stdin, 1, 2], module=module, same=None)


def _fork(address: str, files: list[int], **request: Any) -> Forked | None:
    server = socket.socket(socket.AF_UNIX)
    try:
        server.connect(address)
        content = json.dumps({**request, **_description()}).encode()
        socket.send_fds(server, [SIZE.pack(len(content))], files)
        server.sendall(content)
        if server.recv(1) == FORKED:
            return Forked(server)
    except OSError:
        pass
    server.close()
    return None


def _ignored() -> list[int]:
    """List the signals that this process ignores, as one in the background of a script does."""
    return [n for n in FORWARDED if signal.getsignal(n) is signal.SIG_IGN]


def end_like(code: int) -> NoReturn:
    """End this process as another one did: with its exit code, or by the signal that ended it."""
    if code < 0:
        with contextlib.suppress(OSError):  # nothing handles SIGKILL
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


def _description() -> dict[str, Any]:
    """Describe all of this process that a forked one can take on."""
    mask = os.umask(0)
    os.umask(mask)
    return {
        "path": sys.path,
        "folder": str(Path.cwd()),
        "environment": dict(os.environ),
        "ignored": _ignored(),
        "umask": mask,
        "soft limits": {name: soft for name, (soft, _) in _limits().items()},
    }


def _same() -> dict[str, Any]:
    """Describe what of this process must be the server's own."""
    return {
        "interpreter": [sys.prefix, *sys.version_info[:3]],
        "hard limits": {name: hard for name, (_, hard) in _limits().items()},
        # The one soft limit that is read when a process begins.
        "stack": _limits()["RLIMIT_STACK"][0],
        "nice": os.nice(0),
        "environment": {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith(READ_AT_IMPORT) and name not in SENT_ALONG
        },
    }


def _limits() -> dict[str, tuple[int, int]]:
    names = [name for name in sorted(dir(resource)) if name.startswith("RLIMIT_")]
    return {name: resource.getrlimit(getattr(resource, name)) for name in names}


def serve(listener: socket.socket) -> dict[str, Any]:
    """Answer clients until this process is killed.

    Returns:
        In a forked process, and only there: the request that it shall do.
    """
    signal.signal(signal.SIGCHLD, _take_ended)
    for number in (signal.SIGTTIN, signal.SIGTTOU):  # a stage writes to its client's terminal
        signal.signal(number, signal.SIG_IGN)
    # Of a process that it forked itself, nothing is asked.
    own = (None, _same())
    while True:
        connection, _ = listener.accept()
        try:
            size, files, _, _ = socket.recv_fds(connection, SIZE.size, 3)
            data = connection.recv(SIZE.unpack(size)[0], socket.MSG_WAITALL)
            request = json.loads(data)
        except (OSError, ValueError, struct.error):  # a client that died
            connection.close()
            continue
        reproduced = request["same"] in own
        if reproduced:
            for name in LIBRARIES:
                importlib.import_module(name)
        # A fork copies one thread of the process; it could wait for others forever.
        if reproduced and threading.active_count() == 1 and os.fork() == 0:
            address = listener.getsockname()
            listener.close()
            if _fork_kept(connection):
                _become(request, files, address)
                return request
        connection.close()  # which tells a client that was not served
        for file in files:
            os.close(file)


def _take_ended(*_: Any) -> None:
    """Wait for keepers that ended, so that their CPU seconds count as those of ``omniforcing run``.

    As with every process, those of a child that nobody waits for are counted nowhere.
    """
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _fork_kept(connection: socket.socket) -> bool:
    """Fork; the parent keeps the child and ends with it.

    Returns:
        True, in the child.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    die_with_parent()
    keeper = os.getpid()
    child = os.fork()
    if child == 0:
        connection.close()
        die_with_parent(keeper)
        return True
    try:
        connection.send(FORKED)
        ended = os.pidfd_open(child)
        watched: list[Any] = [ended, connection]
        while ended not in select.select(watched, [], [])[0]:
            numbers = connection.recv(64)
            if not numbers:  # the client was killed
                numbers = bytes([signal.SIGKILL])
                watched.remove(connection)
            for number in numbers:
                os.kill(child, number)
        _, status = os.waitpid(child, 0)
        with contextlib.suppress(OSError):
            connection.send(STATUS.pack(os.waitstatus_to_exitcode(status)))
    finally:
        os._exit(0)


def _become(request: dict[str, Any], files: list[int], address: str) -> None:
    """Take a client's place: its files, folder, limits, environment and path of modules."""
    for own, file in enumerate(files):
        os.dup2(file, own)
        os.close(file)
    for number in FORWARDED:
        handler = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, signal.SIG_IGN if number in request["ignored"] else handler)
    sys.stdout.reconfigure(line_buffering=os.isatty(1))  # type: ignore[union-attr]
    os.chdir(request["folder"])
    os.umask(request["umask"])
    for name, limit in request["soft limits"].items():
        kind = getattr(resource, name)
        resource.setrlimit(kind, (limit, resource.getrlimit(kind)[1]))
    os.environ.clear()
    os.environ.update(request["environment"])
    os.environ.pop(FORKS_VARIABLE, None)
    os.environ[FORKED_VARIABLE] = f"{os.getpid()} {address}"
    sys.path[:] = request["path"]
    importlib.invalidate_caches()
    for name in list(sys.modules):
        if name.partition(".")[0] == "omniforcing":
            del sys.modules[name]


if __name__ == "__main__":
    package = __spec__.name.partition(".")[0]
    todo = serve(socket.socket(fileno=int(sys.argv[1])))
    sys.argv[1:] = todo.get("words", [])
    runpy.run_module(todo.get("module", package), run_name="__main__", alter_sys=True)
