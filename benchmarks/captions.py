"""Measure the memory that text features of many captions take while they are written and read.

`python -m benchmarks.captions` encodes made-up captions with the kept pocket text encoder, or one
given with `--text`, as stage latents does, and then reads batches of 8 in random order, as training
does. Columns, at tenths of the way:

    captions     written or read
    on disk MB   features written
    resident MB  memory of this process
"""

from __future__ import annotations

import argparse
import random
import tempfile
from pathlib import Path

from benchmarks.timing import resident_bytes
from omniforcing.codec.text import TextEncoder
from omniforcing.core.config import project_root
from omniforcing.data.tensors import TextTable, write_text
from omniforcing.pocket.foundation import KEPT

BATCH = 8


def write_and_read(encoder: TextEncoder, count: int, folder: Path) -> None:
    """Write features of ``count`` captions, read them all, and print a row ten times each."""
    captions = [f"a red ball, number {i}" for i in range(count - 1)]  # the empty one is written too
    written = 0
    shown = 0

    def done(more: int) -> None:
        nonlocal written, shown
        written += more
        if written * 10 >= count * (shown + 1):
            shown = written * 10 // count
            stored = sum(path.stat().st_size for path in folder.iterdir())
            print(f"{'write':<8}{written:>9}{stored / 1e6:>12.0f}{resident_bytes() / 1e6:>13.0f}")

    print(f"{'':<8}{'captions':>9}{'on disk MB':>12}{'resident MB':>13}")
    write_text(folder, encoder, captions, done)
    table = TextTable.load(folder)
    order = random.Random(0).sample(captions, len(captions))
    for tenth in range(10):
        part = order[tenth * count // 10 : (tenth + 1) * count // 10]
        for first in range(0, len(part), BATCH):
            table.of(part[first : first + BATCH])
        print(f"{'read':<8}{(tenth + 1) * count // 10:>9}{'':>12}{resident_bytes() / 1e6:>13.0f}")


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--captions", type=int, default=10_000)
    parser.add_argument("--text", type=Path, default=KEPT / "codec" / "text", help="text encoder")
    arguments = parser.parse_args()
    work = project_root() / ".work"
    work.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="omniforcing-captions-", dir=work) as folder:
        write_and_read(TextEncoder.load(arguments.text), arguments.captions, Path(folder))


if __name__ == "__main__":
    main()
