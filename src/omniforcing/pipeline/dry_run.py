"""A dry run: every stage of a preset at its real sizes, on a handful of clips, before a machine is paid for.

Networks, clip lengths and pictures are the preset's own; only counts shrink (``overrides``), batches too: the memory that the
preset's own batches take is more. All of it happens in a temporary copy of the project, one process per stage, without DVC, and
on a GPU if there is one.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from safetensors import safe_open

from omniforcing.codec.config import Source
from omniforcing.core.config import flatten
from omniforcing.core.console import run_command
from omniforcing.core.environment import COMMIT_VARIABLE, PARENT_VARIABLE, die_with_parent
from omniforcing.core.errors import OmniForcingError
from omniforcing.core.files import read_json, remove
from omniforcing.pipeline.config import Config, load_config
from omniforcing.pipeline.declaration import check_preset, read_declaration, stage_names
from omniforcing.pipeline.stage import run_stage

BATCH = 2
SAMPLED = 0.1  # seconds between two looks at the GPU
COPIED = ("conf", "pipelines", "src")
# Loaded once, before the stages' processes fork: each would otherwise spend most of its time on imports.
_OURS = ("pipeline.dry_run", "evaluation.samplers", "pipeline.stages.shared.training")
PRELOADED = [*(f"omniforcing.{name}" for name in _OURS), "mlflow", "torchaudio"]
# Whatever surrounds the dry run must not receive its MLflow runs.
FOREIGN = ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "DVC_STAGE", PARENT_VARIABLE, COMMIT_VARIABLE)


def overrides(config: Config) -> list[str]:
    """What a dry run changes of a preset: how many and how often, never how large."""
    legs, probes, drifting = (
        config.codec.video.crops,
        min(config.trainer.probes, 1),
        min(config.evaluate.drift_clips, 2),
    )
    once = {"steps": 1, "batch": BATCH}
    # One duet alone would not be evaluated; folders of videos have none.
    duets = min(config.clips.heldout_duets, 2) if config.clips.source == "synthetic" else 0
    # A preset for a GPU is tried on a CPU too.
    anywhere = {"accelerator": "auto"} if config.trainer.accelerator == "gpu" else {}
    changed = {
        # Not a user's folder: conforming clips is not what is tried, and 6 may not be at hand.
        "clips": {
            "source": "synthetic",
            "count": 6,
            "heldout": 2,
            "heldout_duets": duets,
            "duets": 0.5,
        },
        "codec": {
            # A step for each leg of the curriculum; the last steps are past KL_FROM.
            "video": {
                "steps": len(legs),
                "crops": [{"frames": leg.frames, "batch": 1, "share": 1} for leg in legs],
            },
            "audio": {"steps": 3, "batch": BATCH},
            "vocoder": once,
            "report_clips": 2,
        },
        "latents": {"batch": BATCH},
        "teacher": {"optim": once, "sampler": {"steps": 2}},
        "bidirectional_dmd": {"optim": once, "critic_steps": 1},
        "trajectories": {"count": 2, "steps": len(config.student.sigmas), "batch": BATCH},
        "causal_ode": {"optim": once},
        "self_forcing": {"optim": once, "critic_steps": 1},
        "evaluate": {
            "clips": 2,
            "seeds": 1,
            "batch": BATCH,
            "drift_clips": drifting,
            "page_clips": 1,
        },
        "export": {"seconds": 1.0, "registered_model": None},
        "trainer": {
            "checkpoint_every": 2,
            "log_every": 1,
            "threads": 1,
            "probes": probes,
            "probe_clips": 2,
            **anywhere,
        },
    }
    return [f"{key}={json.dumps(value)}" for key, value in flatten(changed).items()]


@dataclass(frozen=True)
class Footprint:
    """What one stage took: seconds, the gigabytes of its largest process, and the most that was in use on the GPU, by all
    processes; None without one. Parameters and tokens where it has some."""

    stage: str
    parameters: int
    tokens: str
    seconds: float
    gigabytes: float
    gpu: float | None = None

    def __str__(self) -> str:
        size = f"{self.parameters / 1e6:.2f}" if self.parameters else "-"
        gpu = "-" if self.gpu is None else f"{self.gpu:.2f}"
        return f"{self.stage:<20}{size:>16}{self.tokens:>18}{self.seconds:>9.1f}{self.gigabytes:>10.2f}{gpu:>10}"


def table(rows: list[Footprint]) -> str:
    """The rows under their heads, and the sum of the seconds."""
    head = f"{'stage':<20}{'parameters (M)':>16}{'tokens per clip':>18}{'seconds':>9}{'RAM GB':>10}{'GPU GB':>10}"
    return "\n".join(
        [head, *map(str, rows), f"{'all':<20}{sum(row.seconds for row in rows):>43.1f}"]
    )


def dry_run(root: Path, preset: str | None) -> None:
    """Run every stage of a preset (default: the tracked one) in its smallest form and print what each took.

    Raises:
        OmniForcingError: if weights that the preset loads are missing, or naming the stage that does not fit together.
    """
    config = load_config(root=root, preset=preset)
    check_preset(root, config.preset)
    changed = [f"preset={config.preset}", *overrides(config), *_weights(root, config)]
    with tempfile.TemporaryDirectory(prefix="omniforcing-dry-run-") as folder:
        copy = _copy_project(root, Path(folder))
        rows = list(_run_stages(copy, changed))
    gpu = "" if any(row.gpu is not None for row in rows) else "; no GPU was used"
    done = f"all stages fit together, at batch {BATCH} or less{gpu}; nothing was learnt and nothing is kept"
    print(f"\n{table(rows)}\n\na dry run of preset {config.preset}: {done}")


def _weights(root: Path, config: Config) -> list[str]:
    """Where the copy finds the weights that a preset loads.

    Raises:
        OmniForcingError: naming the place that is missing.
    """
    found = []
    for name, part in (("codec", config.codec), ("teacher", config.teacher)):
        if part.source is Source.load:
            path = root / str(part.path)
            if not path.exists():
                loads = f"from where preset {config.preset} loads its {name}"
                raise OmniForcingError(
                    "file.missing",
                    f"{path} is missing, {loads}; fetch the weights, or set {name}.path",
                )
            found.append(f"{name}.path={path}")
    return found


def _copy_project(root: Path, folder: Path) -> Path:
    for name in COPIED:
        shutil.copytree(root / name, folder / name)
    return folder


def _run_stages(root: Path, changed: list[str]) -> Iterator[Footprint]:
    config = load_config(changed, root)
    # Asking whether there is a GPU would otherwise start CUDA in the process that the stages are forked from.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    for name in stage_names(root):
        print(f"--- {name}", flush=True)
        receive, send = context.Pipe(duplex=False)
        process = context.Process(target=_stage, args=(name, root, config, send))
        process.start()
        try:
            gpu = _watch(process, config.trainer.device == "cuda")
        finally:
            process.kill()  # does nothing unless we are being stopped ourselves
        if process.exitcode:
            failed = f"{name} failed (exit code {process.exitcode})"
            raise OmniForcingError(
                "pipeline.dry-run-failed", f"dry run of preset {config.preset}: {failed}, see above"
            )
        seconds, gigabytes = receive.recv()
        folder = root / read_declaration(name, root, config.preset).folder
        yield Footprint(
            name, count_parameters(folder), _tokens(config, folder.parent), seconds, gigabytes, gpu
        )
        remove(root / ".work" / config.preset)


def _watch(process: BaseProcess, gpu: bool) -> float | None:
    """Wait for a stage's process; the most gigabytes in use on the GPU meanwhile, None if ``gpu`` says that there is none.

    All of the GPU is looked at, not this process alone: a stage may have processes of its own there, side by side.
    """
    import torch

    peak = 0.0
    while gpu and process.is_alive():
        free, total = torch.cuda.mem_get_info()
        peak = max(peak, (total - free) / 1e9)
        process.join(SAMPLED)
    process.join()
    return peak if gpu else None


def _stage(name: str, root: Path, config: Config, report: Any) -> None:
    """Run a stage in its own process, and report seconds and gigabytes."""
    die_with_parent()
    os.chdir(root)
    for variable in FOREIGN:
        os.environ.pop(variable, None)
    began = time.monotonic()
    code = run_command(lambda: run_stage(name, config, root))
    report.send((time.monotonic() - began, _peak_gigabytes()))
    sys.exit(code)


def _peak_gigabytes() -> float:
    """Largest resident memory of this process or one of its children, so far."""
    largest = max(
        resource.getrusage(whose).ru_maxrss
        for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return largest * (1 if sys.platform == "darwin" else 1024) / 1e9


def count_parameters(folder: Path) -> int:
    """Numbers in the weights below a folder: safetensors with a model's ``config.json`` beside them."""
    return sum(
        _numbers(path)
        for path in folder.rglob("*.safetensors")
        if (path.parent / "config.json").is_file()
    )


def _numbers(path: Path) -> int:
    with safe_open(path, "np") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118


def _tokens(config: Config, data: Path) -> str:
    """Video and audio tokens of a training clip, once the codec has settled them."""
    if not (data / "codec" / "codec.json").is_file():
        return "-"
    counts, spatial = config.clips.latent_counts, read_json(data / "codec" / "codec.json")["tokens"]
    return f"{counts.video * spatial} + {counts.audio}"
