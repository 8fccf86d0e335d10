"""What every part is told: device, size, time, and what earlier rows found; and what the machine is."""

from __future__ import annotations

import dataclasses
import json
import platform
import subprocess
import sys
import time
import typing
from dataclasses import asdict, dataclass, field
from enum import Enum
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.gpu.rows import Figures
from omniforcing.core.config import project_root
from omniforcing.core.environment import git_commit
from omniforcing.core.files import tree_digest
from omniforcing.pipeline.config import Config

if TYPE_CHECKING:
    import torch

_CLOCKS = ("clocks.sm", "clocks.mem", "clocks.max.sm", "temperature.gpu", "power.draw")


@dataclass(frozen=True)
class Setup:
    """One part's settings, as they travel to its process.

    Attributes:
        device: ``cuda`` or ``cpu``.
        small: tiny sizes everywhere, for a check that the parts run.
        deadline: seconds since the epoch at which the part's time is up.
        known: figures of earlier rows, by part and name.
    """

    device: str
    small: bool
    deadline: float
    known: dict[str, dict[str, Figures]] = field(default_factory=dict)

    @classmethod
    def read(cls, text: str) -> Setup:
        """What ``write`` wrote."""
        return cls(**json.loads(text))

    def write(self) -> str:
        """These settings as one line of JSON."""
        return json.dumps(asdict(self))

    @property
    def left(self) -> float:
        """Seconds of the part's time that are left."""
        return self.deadline - time.time()

    @property
    def cuda(self) -> bool:
        """Whether it runs on a GPU."""
        return self.device == "cuda"

    @property
    def torch_device(self) -> torch.device:
        """The device with its index, as tensors on it report theirs."""
        import torch

        return (
            torch.device("cuda", torch.cuda.current_device()) if self.cuda else torch.device("cpu")
        )

    def figure(self, part: str, row: str, name: str) -> Any:
        """A figure of an earlier row, or None."""
        return self.known.get(part, {}).get(row, {}).get(name)


def run_identity(device: str, small: bool, commit: str | None) -> dict[str, Any]:
    """What makes two runs comparable: code, device, versions and size."""
    import torch

    root = project_root()
    code = [tree_digest(root / folder)[:12] for folder in ("src", "benchmarks")]
    name, driver = _device(device)
    return {
        "device": name,
        "driver": driver,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit or git_commit(root),
        "code": "-".join(code),
        "small": small,
    }


def _device(device: str) -> tuple[str, str | None]:
    import torch

    if device != "cuda":
        return f"CPU, {torch.get_num_threads()} threads, {_processor()}", None
    return probe().get("name", "no CUDA device"), _smi("driver_version", 1)


def _processor() -> str:
    lines = (
        Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    )
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )


def cuda_problem() -> str | None:
    """Why torch cannot use a CUDA device here, in one sentence; None if it can."""
    return probe().get("problem")


@cache
def probe() -> dict[str, str]:
    """The current device's name and uuid, or the problem with it; asked in another process.

    This one must hold no context: on a card in exclusive mode the parts' processes would get none.
    """
    answer = subprocess.run(python_command("-c", _PROBE), capture_output=True, text=True)
    lines = answer.stdout.strip().splitlines()
    if answer.returncode or not lines:
        return {"problem": f"torch cannot be tried here: {answer.stderr.strip()[-200:]}"}
    found: dict[str, str] = json.loads(lines[-1])
    return found


_PROBE = """
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


def _smi(query: str, fields: int) -> str | None:
    """An answer of nvidia-smi about the current device; None where it gives none of so many fields."""
    name = probe().get("uuid")
    if name is None:
        return None
    command = [
        "nvidia-smi",
        f"--query-gpu={query}",
        "--format=csv,noheader,nounits",
        f"--id={name}",
    ]
    try:
        answer = subprocess.run(command, capture_output=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = answer.stdout.decode(errors="replace").strip().splitlines()
    fine = answer.returncode == 0 and len(lines) == 1 and len(lines[0].split(",")) == fields
    return lines[0].strip() if fine else None


def clocks(device: str) -> str | None:
    """SM and memory clock in MHz, temperature and power, as nvidia-smi says; None without it."""
    answer = _smi(",".join(_CLOCKS), len(_CLOCKS)) if device == "cuda" else None
    if answer is None:
        return None
    sm, memory, most, celsius, watts = (part.strip() for part in answer.split(","))
    return f"SM {sm} of {most} MHz, memory {memory} MHz, {celsius} C, {watts} W"


def preset(name: str) -> Config:
    """A preset's configuration; read without OmegaConf where that is missing.

    Raises:
        OmniForcingError: if it cannot be read.
    """
    if find_spec("omegaconf"):
        from omniforcing.pipeline.config import load_config

        return load_config(root=project_root(), preset=name)
    return plain_preset(name)


def plain_preset(name: str) -> Config:
    """The same with PyYAML alone, which comes with transformers; unknown keys are not looked for."""
    from yaml import safe_load

    folder = project_root() / "conf"
    config = Config()
    for path in (folder / "config.yaml", folder / "preset" / f"{name}.yaml"):
        values = safe_load(path.read_text(encoding="utf-8"))
        values.pop("cluster", None)
        config = _merged(config, values)
    return _merged(config, {"preset": name})


def _merged(section: Any, values: dict[str, Any]) -> Any:
    """A config section, a dataclass, with some fields replaced, each turned into the field's own type."""
    hints = typing.get_type_hints(type(section))
    changes: dict[str, Any] = {}
    for key, value in values.items():
        kind, now = hints[key], getattr(section, key)
        options = typing.get_args(kind)
        inner: Any = next((o for o in (kind, *options) if dataclasses.is_dataclass(o)), None)
        if value is None:
            changes[key] = None
        elif typing.get_origin(kind) is list:
            element: Any = options[0]
            nested = dataclasses.is_dataclass(element)
            changes[key] = [_merged(element(), v) if nested else element(v) for v in value]
        elif inner is not None:
            changes[key] = _merged(inner() if now is None else now, value)
        elif isinstance(now, Enum):
            changes[key] = type(now)(value)
        else:
            changes[key] = type(now)(value) if isinstance(now, float) else value
    return dataclasses.replace(section, **changes)


def python_command(*words: str) -> list[str]:
    """A command of this interpreter."""
    return [sys.executable, *words]
