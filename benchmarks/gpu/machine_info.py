"""What a run is measured on: its GPU, driver, clocks, versions and code.

Everything about the GPU is asked in other processes. This one must hold no CUDA context: on a card
in exclusive mode the parts' processes would get none.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

from omniforcing.core.config import project_root
from omniforcing.core.environment import git_commit
from omniforcing.core.files import tree_digest

CLOCK_FIELDS = ("clocks.sm", "clocks.mem", "clocks.max.sm", "temperature.gpu", "power.draw")
PROBE = """
import json, torch
built = torch.version.cuda
try:
    torch.zeros(1, device="cuda")
    properties = torch.cuda.get_device_properties(0)
    print(json.dumps({"name": properties.name, "uuid": f"GPU-{properties.uuid}"}))
except Exception as error:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if built is None:
        reason = "it is a build without CUDA; install a CUDA build, or give --device cpu --small"
    print(json.dumps({"problem": f"torch {torch.__version__} (CUDA {built}): {reason}"}))
"""


def run_identity(device: str, small: bool, commit: str | None) -> dict[str, Any]:
    """Return what makes two runs comparable: device, versions, code and size.

    Args:
        device: ``cuda`` or ``cpu``.
        small: whether the run is at tiny size.
        commit: stated in place of git's, for a checkout without git.
    """
    import torch

    root = project_root()
    digests = [tree_digest(root / folder)[:12] for folder in ("src", "benchmarks")]
    if device == "cuda":
        name, driver = probe().get("name", "no CUDA device"), _nvidia_smi("driver_version", 1)
    else:
        name, driver = f"CPU, {torch.get_num_threads()} threads, {_processor()}", None
    return {
        "device": name,
        "driver": driver,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit or git_commit(root),
        "code": "-".join(digests),
        "small": small,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def cuda_problem() -> str | None:
    """Return why torch cannot use a CUDA device here, in one sentence; None if it can."""
    return probe().get("problem")


@cache
def probe() -> dict[str, str]:
    """Ask torch, in another process, for the GPU's ``name`` and ``uuid``, or its ``problem``."""
    answer = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True)
    lines = answer.stdout.strip().splitlines()
    if answer.returncode or not lines:
        return {"problem": f"torch cannot be tried here: {answer.stderr.strip()[-200:]}"}
    gpu: dict[str, str] = json.loads(lines[-1])
    return gpu


def gpu_clocks(device: str) -> str | None:
    """Return SM and memory clock (MHz), temperature and power from nvidia-smi; None without it."""
    answer = _nvidia_smi(",".join(CLOCK_FIELDS), len(CLOCK_FIELDS)) if device == "cuda" else None
    if answer is None:
        return None
    sm, memory, most, celsius, watts = (value.strip() for value in answer.split(","))
    return f"SM {sm} of {most} MHz, memory {memory} MHz, {celsius} C, {watts} W"


def _nvidia_smi(query: str, fields: int) -> str | None:
    """Query nvidia-smi about the GPU; None unless it answers one line of ``fields`` values."""
    uuid = probe().get("uuid")
    if uuid is None:
        return None
    options = [f"--query-gpu={query}", "--format=csv,noheader,nounits", f"--id={uuid}"]
    try:
        answer = subprocess.run(["nvidia-smi", *options], capture_output=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = answer.stdout.decode(errors="replace").strip().splitlines()
    if answer.returncode or len(lines) != 1 or len(lines[0].split(",")) != fields:
        return None
    return lines[0].strip()
