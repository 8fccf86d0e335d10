"""What the machine has: devices, free ports, disk space, writable folders, variables."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from omniforcing.core.environment import (
    CLUSTER_VARIABLE,
    DATA_ROOT_VARIABLE,
    OTHERS,
    OURS,
    TOKEN_VARIABLE,
)
from omniforcing.doctor.finding import Finding
from omniforcing.doctor.package import is_installed, torch_build
from omniforcing.serving.protocol.messages import DEFAULT_PORT

MLFLOW_PORT = 5000  # of `make ui`
LEAST_FREE = 10**9  # bytes; the outputs and the DVC cache of preset pocket take 0.6 GB
GIB = 2**30
SECRETS = (TOKEN_VARIABLE, "RAY_AUTH_TOKEN", "HF_TOKEN", "OTEL_EXPORTER_OTLP_HEADERS")
SPANS_VARIABLE = "OTEL_EXPORTER_OTLP_ENDPOINT"
SPANS_PACKAGE = "opentelemetry-exporter-otlp-proto-http"
NVIDIA = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]


# --- devices ---


def devices(variables: Mapping[str, str]) -> Iterator[Finding]:
    """Processors, memory and NVIDIA's GPUs.

    Args:
        variables: environment variables of the process.
    """
    yield Finding("devices", "CPU", f"{usable_cores()} cores")
    if memory := _memory():
        free, total = (size / GIB for size in memory)
        yield Finding("devices", "memory", f"{free:.1f} of {total:.1f} GiB available")
    cards = gpus()
    hidden = variables.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    for number, card in enumerate(cards):
        fault = None
        if hidden:
            fault = "CUDA_VISIBLE_DEVICES hides the GPUs; unset it to compute on them"
        elif "CUDA" not in torch_build():
            fault = "the installed torch cannot use GPUs; install its build for CUDA"
        yield Finding("devices", f"GPU {number}", card, fault, needed=False)
    if not cards:
        yield Finding("devices", "GPU", "none that nvidia-smi lists")


def usable_cores() -> int:
    """Number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory() -> tuple[int, int] | None:
    """Available and total bytes of memory; None where Linux's file of them is missing."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    return sizes["MemAvailable"], sizes["MemTotal"]


def gpus() -> list[str]:
    """Name, memory and driver of each of NVIDIA's GPUs, as ``nvidia-smi`` lists them."""
    try:
        answer = subprocess.run(NVIDIA, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.strip() for line in answer.stdout.splitlines()] if answer.returncode == 0 else []


# --- ports ---


def ports() -> Iterator[Finding]:
    """The ports that commands listen at unless told otherwise."""
    uses = (
        ("omniforcing serve", DEFAULT_PORT, "give it --port 0 for any that is free"),
        ("make ui (MLflow)", MLFLOW_PORT, "end what listens there, or start mlflow server itself"),
    )
    for use, port, remedy in uses:
        reason = port_fault(port)
        fault = f"port {port} {reason}; {remedy}" if reason else None
        yield Finding("ports", use, f"{port}, {reason or 'free'}", fault, needed=False)


def port_fault(port: int) -> str | None:
    """Say why nothing can listen at a port of this machine; None if something can."""
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        return "in use" if error.errno == errno.EADDRINUSE else f"unusable ({error.strerror})"
    return None


# --- disks and folders ---


def folders(checkout: Path | None, data: Path | None) -> Iterator[Finding]:
    """Free space and permission to write where commands write.

    Args:
        checkout: folder of the checkout; None outside one.
        data: folder of outputs, half-done work and the tracking store; None outside a checkout.
    """
    yield Finding("folders", "checkout", str(checkout or "none: only streams and the demo work"))
    places = {"working folder": Path.cwd(), "temporary files": Path(tempfile.gettempdir())}
    if data is not None:
        places |= {"outputs": data / "data", "half-done work": data / ".work", "MLflow": data}
    for name, place in places.items():
        yield _folder(name, place, needed=name not in ("working folder", "temporary files"))


def _folder(name: str, place: Path, *, needed: bool) -> Finding:
    there = place
    value = str(place)
    try:
        while not there.exists() and there != there.parent:
            there = there.parent
        free = shutil.disk_usage(there).free
        value = f"{place}, {free / 1e9:.1f} GB free"
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        fault = f"{there} cannot be written ({error.strerror}); change its permissions or owner"
        return Finding("folders", name, value, fault, needed=needed)
    if free >= LEAST_FREE or not needed:
        return Finding("folders", name, value)
    fault = (
        f"the disk of {there} has {free / 1e9:.2f} GB free and a run of preset pocket takes "
        f"{LEAST_FREE / 1e9:.0f} GB; free some space"
    )
    return Finding("folders", name, value, fault)


# --- variables ---


def variables(checkout: Path | None, values: Mapping[str, str]) -> Iterator[Finding]:
    """The environment variables that are set and change what commands do.

    Args:
        checkout: folder of the checkout; None outside one.
        values: environment variables of the process.
    """
    for name in (*OURS, *OTHERS):
        if name in values:
            shown = "set, not shown" if name in SECRETS else repr(values[name])
            fault = _variable_fault(name, values[name], checkout)
            about = {**OURS, **OTHERS}[name]
            needed = name != SPANS_VARIABLE  # streams go on without spans
            yield Finding("variables", name, f"{shown}: {about}", fault, needed=needed)


def _variable_fault(name: str, value: str, checkout: Path | None) -> str | None:
    if name == SPANS_VARIABLE and not is_installed(SPANS_PACKAGE):
        return (
            f"{name} is set and the package {SPANS_PACKAGE} is missing, so no spans are sent; "
            "pip install 'omniforcing[telemetry]'"
        )
    if name == DATA_ROOT_VARIABLE and not os.path.isdir(value):  # noqa: PTH112  # never raises
        return f"{name} names {value}, which is no folder; make it, or unset the variable"
    if name == CLUSTER_VARIABLE and checkout is not None:
        file = checkout / "conf" / "cluster" / f"{value}.yaml"
        if not file.is_file():
            known = ", ".join(sorted(path.stem for path in file.parent.glob("*.yaml")))
            return f"{name} names {value}, and there is no {file}; name one of {known}"
    return None
