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
If any of the processes above dies, those below it die too.
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

from omniforcing.core.environment import FORKS_VARIABLE, decline_telemetry, die_with_parent

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
                start_new_session=True,  # Ctrl-C reaches a stage once, through its client
                preexec_fn=partial(die_with_parent, os.getpid()),
            )
        try:
            yield
        finally:
            server.kill()
            server.wait()
            os.environ.clear()
            os.environ.update(before)


def run_forked(words: list[str]) -> int | None:
    """Run a command in a process that the server forks, and wait for it.

    Args:
        words: words of the command line.

    Returns:
        The exit code, negative for a signal as in ``subprocess``; None if there is no server, or
        none that can reproduce this process.
    """
    address = os.environ.get(FORKS_VARIABLE)
    if not address:
        return None
    with socket.socket(socket.AF_UNIX) as server:
        try:
            server.connect(address)
            request = json.dumps({"words": words, **_description()}).encode()
            socket.send_fds(server, [SIZE.pack(len(request))], [0, 1, 2])
            server.sendall(request)
            if server.recv(1) != FORKED:
                return None
        except OSError:
            return None
        if "DVC_STAGE" in os.environ:
            die_with_parent()
        for number in FORWARDED:
            if number not in _ignored():
                signal.signal(number, lambda number, _: server.send(bytes([number])))
        answer = server.recv(STATUS.size, socket.MSG_WAITALL)
    # The keeper gives no answer if it was killed, and the stage with it.
    return STATUS.unpack(answer)[0] if answer else -signal.SIGKILL


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
    """Describe all of this process that a command may depend on."""
    limits = {
        name: resource.getrlimit(getattr(resource, name))
        for name in sorted(dir(resource))
        if name.startswith("RLIMIT_")
    }
    soft = {name: limit for name, (limit, _) in limits.items()}
    mask = os.umask(0)
    os.umask(mask)
    return {
        "path": sys.path,
        "folder": str(Path.cwd()),
        "environment": dict(os.environ),
        "ignored": _ignored(),
        "umask": mask,
        "soft limits": soft,
        "same": {
            "interpreter": [sys.prefix, *sys.version_info[:3]],
            "hard limits": {name: limit for name, (_, limit) in limits.items()},
            "stack": soft["RLIMIT_STACK"],  # the one that is read when a process begins
            "nice": os.nice(0),
            "environment": {
                name: value
                for name, value in sorted(os.environ.items())
                if name.startswith(READ_AT_IMPORT) and name not in SENT_ALONG
            },
        },
    }


def serve(listener: socket.socket) -> dict[str, Any]:
    """Answer clients until this process is killed.

    Returns:
        In a forked process, and only there: the request that it shall do.
    """
    signal.signal(signal.SIGCHLD, _take_ended)
    own = _description()["same"]
    while True:
        connection, _ = listener.accept()
        try:
            size, files, _, _ = socket.recv_fds(connection, SIZE.size, 3)
            data = connection.recv(SIZE.unpack(size)[0], socket.MSG_WAITALL)
            request = json.loads(data)
        except (OSError, ValueError, struct.error):  # a client that died
            connection.close()
            continue
        reproduced = request["same"] == own
        if reproduced:
            for name in LIBRARIES:
                importlib.import_module(name)
        # A fork copies one thread of the process; it could wait for others forever.
        if reproduced and threading.active_count() == 1 and os.fork() == 0:
            listener.close()
            if _fork_kept(connection):
                _become(request, files)
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


def _become(request: dict[str, Any], files: list[int]) -> None:
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
    del os.environ[FORKS_VARIABLE]  # this process is the forked one
    sys.path[:] = request["path"]
    importlib.invalidate_caches()
    for name in list(sys.modules):
        if name.partition(".")[0] == "omniforcing":
            del sys.modules[name]


if __name__ == "__main__":
    package = __spec__.name.partition(".")[0]
    todo = serve(socket.socket(fileno=int(sys.argv[1])))
    sys.argv[1:] = todo["words"]
    runpy.run_module(package, run_name="__main__", alter_sys=True)
