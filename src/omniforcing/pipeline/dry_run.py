"""A dry run: every stage of a preset at its real sizes on a few clips, without much time or data.

Networks, clip lengths and frame sizes are those of the preset. Counts, steps and batches are small
(``overrides``), so the preset's own batches take more memory. It works in a temporary copy of the
project, with one process per stage, without DVC, and on a GPU if there is one.
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
POLL_SECONDS = 0.1  # between two readings of the GPU's memory
COPIED = ("conf", "pipelines", "src")
# Imported once, before the stages' processes are forked, which would else spend their time on it.
PRELOADED = [
    "omniforcing.pipeline.dry_run",
    "omniforcing.evaluation.samplers",
    "omniforcing.pipeline.stages.shared.training",
    "mlflow",
    "torchaudio",
]
# Removed for the stages, whose MLflow runs belong into the temporary copy.
OUTER_VARIABLES = (
    "MLFLOW_TRACKING_URI",
    "MLFLOW_RUN_ID",
    "DVC_STAGE",
    PARENT_VARIABLE,
    COMMIT_VARIABLE,
)


def overrides(config: Config) -> list[str]:
    """Return the overrides of a dry run, which change counts and never sizes, as a dotlist."""
    crops = config.codec.video.crops
    probes = min(config.trainer.probes, 1)
    drift_clips = min(config.evaluate.drift_clips, 2)
    once = {"steps": 1, "batch": BATCH}
    # The evaluation needs two duets or none; folders of videos have none.
    duets = min(config.clips.heldout_duets, 2) if config.clips.source == "synthetic" else 0
    # A preset for GPUs can be tried on a CPU too.
    accelerator = {"accelerator": "auto"} if config.trainer.accelerator == "gpu" else {}
    changed = {
        # Not a user's folder: it may hold fewer than 6 clips, and conforming them is not tried.
        "clips": {
            "source": "synthetic",
            "count": 6,
            "heldout": 2,
            "heldout_duets": duets,
            "duets": 0.5,
        },
        "codec": {
            # One step for each crop of the curriculum; the last steps are past KL_FROM.
            "video": {
                "steps": len(crops),
                "crops": [
                    {"frames": crop.frames, "batch": 1, "share": 1 / len(crops)} for crop in crops
                ],
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
            "drift_clips": drift_clips,
            "page_clips": 1,
        },
        "export": {"seconds": 1.0, "registered_model": None},
        "trainer": {
            "checkpoint_every": 2,
            "log_every": 1,
            "threads": 1,
            "processes": 1,
            "probes": probes,
            "probe_clips": 2,
            **accelerator,
        },
    }
    return [f"{key}={json.dumps(value)}" for key, value in flatten(changed).items()]


@dataclass(frozen=True)
class Footprint:
    """Time and memory that a stage took.

    Attributes:
        stage: name of the stage.
        parameters: number of parameters in its output; 0 if it holds none.
        tokens: video and audio tokens of a training clip, as text; ``-`` before the codec stage.
        seconds: duration.
        gigabytes: largest resident memory of one of its processes.
        gpu: largest gigabytes in use on the GPU by all processes; None without a GPU.
    """

    stage: str
    parameters: int
    tokens: str
    seconds: float
    gigabytes: float
    gpu: float | None = None

    def __str__(self) -> str:
        size = f"{self.parameters / 1e6:.2f}" if self.parameters else "-"
        gpu = "-" if self.gpu is None else f"{self.gpu:.2f}"
        memory = f"{self.gigabytes:>10.2f}{gpu:>10}"
        return f"{self.stage:<20}{size:>16}{self.tokens:>18}{self.seconds:>9.1f}{memory}"


def table(rows: list[Footprint]) -> str:
    """Return the rows as a table with a header and the sum of the seconds."""
    memory = f"{'RAM GB':>10}{'GPU GB':>10}"
    header = f"{'stage':<20}{'parameters (M)':>16}{'tokens per clip':>18}{'seconds':>9}{memory}"
    total = sum(row.seconds for row in rows)
    return "\n".join([header, *map(str, rows), f"{'all':<20}{total:>43.1f}"])


def dry_run(root: Path, preset: str | None) -> None:
    """Run every stage of a preset in its smallest form and print what each took.

    Args:
        root: the checkout.
        preset: name of the preset; the tracked one if None.

    Raises:
        OmniForcingError: if weights that the preset loads are missing, or naming the stage that
            fails.
    """
    config = load_config(root=root, preset=preset)
    check_preset(root, config.preset)
    changed = [f"preset={config.preset}", *overrides(config), *_weights(root, config)]
    with tempfile.TemporaryDirectory(prefix="omniforcing-dry-run-") as folder:
        copy = _copy_project(root, Path(folder))
        rows = list(run_stages(copy, changed))
    gpu = "" if any(row.gpu is not None for row in rows) else "; no GPU was used"
    print(f"\n{table(rows)}\n")
    print(
        f"a dry run of preset {config.preset}: all stages fit together, at batch {BATCH} or less"
        f"{gpu}; nothing was learnt and nothing is kept"
    )


def _weights(root: Path, config: Config) -> list[str]:
    """Return overrides with absolute paths of the weights that a preset loads.

    Raises:
        OmniForcingError: naming the path that is missing.
    """
    paths = []
    for name, part in (("codec", config.codec), ("teacher", config.teacher)):
        if part.source is Source.load:
            path = root / str(part.path)
            if not path.exists():
                loads = f"from where preset {config.preset} loads its {name}"
                raise OmniForcingError(
                    "file.missing",
                    f"{path} is missing, {loads}; fetch the weights, or set {name}.path",
                )
            paths.append(f"{name}.path={path}")
    return paths


def _copy_project(root: Path, folder: Path) -> Path:
    for name in COPIED:
        shutil.copytree(root / name, folder / name)
    return folder


def run_stages(root: Path, changed: list[str]) -> Iterator[Footprint]:
    """Run every stage of a copy of the project in a process of its own and yield what it took."""
    config = load_config(changed, root)
    # Without it, asking whether there is a GPU would initialise CUDA in the process from which the
    # stages are forked, and CUDA does not survive a fork.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    for name in stage_names(root):
        print(f"--- {name}", flush=True)
        receive, send = context.Pipe(duplex=False)
        process = context.Process(target=_run_in_child, args=(name, root, config, send))
        process.start()
        try:
            gpu = watch(process, config.trainer.device == "cuda")
        finally:
            process.kill()  # does nothing unless we are being stopped ourselves
        if process.exitcode:
            failed = f"{name} failed (exit code {process.exitcode})"
            raise OmniForcingError(
                "pipeline.dry-run-failed", f"dry run of preset {config.preset}: {failed}, see above"
            )
        seconds, gigabytes = receive.recv()
        folder = root / read_declaration(name, root, config.preset).folder
        tokens = _tokens(config, folder.parent)
        yield Footprint(name, count_parameters(folder), tokens, seconds, gigabytes, gpu)
        remove(root / ".work" / config.preset)


def watch(process: BaseProcess, gpu: bool) -> float | None:
    """Wait for a stage's process and return the most gigabytes in use on the GPU; None without one.

    Memory of all processes counts: a stage may have several on the GPU.
    """
    import torch

    peak = 0.0
    while gpu and process.is_alive():
        free, total = torch.cuda.mem_get_info()
        peak = max(peak, (total - free) / 1e9)
        process.join(POLL_SECONDS)
    process.join()
    return peak if gpu else None


def _run_in_child(name: str, root: Path, config: Config, report: Any) -> None:
    """Run a stage in this child process, and send its seconds and gigabytes."""
    die_with_parent()
    os.chdir(root)
    for variable in OUTER_VARIABLES:
        os.environ.pop(variable, None)
    began = time.monotonic()
    code = run_command(lambda: run_stage(name, config, root))
    report.send((time.monotonic() - began, _peak_gigabytes()))
    sys.exit(code)


def _peak_gigabytes() -> float:
    """Largest resident memory of this process or one of its children, so far."""
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    unit = 1 if sys.platform == "darwin" else 1024
    return max(own, children) * unit / 1e9


def count_parameters(folder: Path) -> int:
    """Count the parameters of all models below a folder.

    Only safetensors with a model's ``config.json`` in the same folder count.
    """
    files = folder.rglob("*.safetensors")
    return sum(_parameters(file) for file in files if (file.parent / "config.json").is_file())


def _parameters(path: Path) -> int:
    with safe_open(path, "np") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
    return sum(map(math.prod, shapes))


def _tokens(config: Config, data: Path) -> str:
    """Return the tokens of a training clip, video + audio; ``-`` before the codec stage."""
    description = data / "codec" / "codec.json"
    if not description.is_file():
        return "-"
    counts, per_frame = config.clips.latent_counts, read_json(description)["tokens"]
    return f"{counts.video * per_frame} + {counts.audio}"
