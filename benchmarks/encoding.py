"""Measure clips encoded per second, in this process and by one and two Ray workers.

`python -m benchmarks.encoding` encodes synthetic clips with the kept pocket codec, on the cluster
that `--address` names. Columns:

    clips, seconds  of the whole run, with connecting, starting and importing
    clips/s         their ratio, as a short stage sees it
    after start     clips per second from when every worker has finished its first shard
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

from omniforcing.core.config import project_root
from omniforcing.data.config import ClipsConfig
from omniforcing.data.encode import Encoder, EncodingTask
from omniforcing.data.shards import plan_shards, publish_shards, write_shards
from omniforcing.data.sources import read_clips, write_clips
from omniforcing.data.tars import indices
from omniforcing.data.work import Runner, in_process
from omniforcing.media.format import ClipFormat
from omniforcing.pipeline.cluster.config import ClusterConfig
from omniforcing.pipeline.cluster.pool import Pool
from omniforcing.pocket.foundation import KEPT

FORM, PER_SHARD, BATCH = ClipFormat(64, 64, 4), 8, 8


def make_clips(folder: Path, count: int) -> Path:
    """Write shards of ``count`` synthetic clips; return their folder."""
    for name in ("clips", "shards"):
        (folder / name).mkdir()
    write_clips(ClipsConfig(count=count, heldout=0, heldout_duets=0), 0, folder / "clips")
    plans = plan_shards(read_clips(folder / "clips"), FORM, PER_SHARD)
    write_shards(plans, folder / "work")
    publish_shards(plans, folder / "work", folder / "shards", 0.0)
    return folder / "shards"


def measure(
    shards: Path, work: Path, run: Callable[[Path], AbstractContextManager[Runner]], workers: int
) -> dict[str, float]:
    """Encode all shards and time it.

    Args:
        shards: folder of the clips.
        work: new folder for the latents.
        run: opens what runs the tasks, given ``work``.
        workers: number that ``run`` has; the steady rate starts when each has finished a shard.

    Returns:
        The columns of the table.
    """
    work.mkdir()
    tasks = [EncodingTask(path, index) for path, index in indices(shards, "shards").items()]
    times: list[tuple[float, int]] = []
    began = time.monotonic()
    build = partial(Encoder, shards, work, KEPT / "codec", "cpu", BATCH)
    with run(work) as runner:
        runner(build, tasks, lambda count: times.append((time.monotonic(), count)))
    seconds, clips = time.monotonic() - began, sum(count for _, count in times)
    steady = sum(count for _, count in times[workers:]) / (times[-1][0] - times[workers - 1][0])
    return {
        "clips": clips,
        "seconds": seconds,
        "clips_per_second": clips / seconds,
        "after_start": steady,
    }


def _pool(cluster: ClusterConfig, shards: Path, work: Path) -> Pool:
    return Pool(cluster, [shards], work, threads=1)


def main() -> None:
    """Measure, and print a table or json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--address",
        default="auto",
        help="of a Ray cluster, HOST:PORT (default: auto, the one of this machine)",
    )
    parser.add_argument("--clips", type=int, default=256)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    work = project_root() / ".work"
    work.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="omniforcing-encoding-", dir=work) as name:
        folder = Path(name)
        shards = make_clips(folder, arguments.clips)
        rows = {
            "in process": measure(shards, folder / "here", lambda _: nullcontext(in_process), 1)
        }
        for workers, way in ((1, "1 worker"), (2, "2 workers")):
            cluster = ClusterConfig(arguments.address, workers=workers)
            run = partial(_pool, cluster, shards)
            rows[way] = measure(shards, folder / f"there-{workers}", run, workers)
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    print(f"{'':<12}{'clips':>7}{'seconds':>9}{'clips/s':>9}{'after start':>13}")
    for way, row in rows.items():
        print(
            f"{way:<12}{row['clips']:>7.0f}{row['seconds']:>9.1f}"
            f"{row['clips_per_second']:>9.2f}{row['after_start']:>13.2f}"
        )


if __name__ == "__main__":
    main()
