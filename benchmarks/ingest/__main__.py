"""Check what the ingest makes of people's files, kind by kind, in a table.

`python -m benchmarks.ingest` makes a file of each kind by the programs that are installed, cuts it
into clips of two seconds and compares every frame of every clip with what a correct player shows.
Columns:

    sync     largest distance of a beep from where it belongs against the picture, ms
    wrong    frames that are not the wanted ones, of all; (m missing, r held too long)
    colour   largest error of a corner's mean colour, levels of 255
    gain     largest error of a tone's level in either side, dB
    verdict  right, or what is not; `reject` is the reason that the ingest gives, which is right
             for a file that nobody can play right

`--beside CHECKOUT` measures another checkout of the project too, for a comparison. `--rounds N`
does all of it N times, the checkouts in turn, and prints the least and the median processor time
of a clip; the tables are those of the last round.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.ingest.copies import copies
from benchmarks.ingest.dolby import dolby
from benchmarks.ingest.fields import fields
from benchmarks.ingest.film import films
from benchmarks.ingest.further import further
from benchmarks.ingest.kinds import Kind, Sources, installed, kinds
from benchmarks.ingest.losses import losses
from benchmarks.ingest.rare import rare
from benchmarks.ingest.shapes import shapes
from omniforcing.core.config import project_root

# Goals: sync within a millisecond and half a source frame, no wrong frame, colours, gain.
SYNC_MS, COLOUR, GAIN_DB = 1.0, 4.0, 0.1
TIME_LIMIT = 120  # seconds for a file


def make(folder: Path, wanted: list[Kind]) -> dict[str, str]:
    """Make a file of each kind; return why those that could not be made were skipped."""
    sources, skipped = Sources(folder / "sources"), {}
    sources.folder.mkdir(parents=True, exist_ok=True)
    for kind in tqdm(wanted, "making", unit="file", disable=None):
        path = folder / kind.name
        if path.exists():
            continue
        if not installed(kind.tool):
            skipped[kind.name] = f"{kind.tool} is not installed"
            continue
        try:
            kind.make(path, sources)
        except (RuntimeError, OSError, ValueError) as error:
            path.unlink(missing_ok=True)
            skipped[kind.name] = str(error)[:80]
            continue
        path.with_name(path.name + ".json").write_text(json.dumps(kind.wanted))
    return skipped


def measure(checkout: Path, files: list[Path]) -> dict[str, dict[str, Any]]:
    """Measure files with the ingest of a checkout; one that ends the process costs itself alone."""
    script = Path(__file__).with_name("measure.py")
    environment = {**os.environ, "PYTHONPATH": str(checkout / "src"), "OMP_NUM_THREADS": "1"}
    found: dict[str, dict[str, Any]] = {}
    for start in tqdm(range(0, len(files), 8), f"measuring {checkout.name}", disable=None):
        left = files[start : start + 8]
        while left:
            command = [sys.executable, str(script), *map(str, left)]
            try:
                answer = subprocess.run(
                    command, env=environment, capture_output=True, text=True, timeout=TIME_LIMIT
                )
                output, fault = answer.stdout, f"exit code {answer.returncode}"
            except subprocess.TimeoutExpired as error:
                output, fault = (error.stdout or b"").decode(), "no end"
            for line in output.splitlines():
                row = json.loads(line)
                found[row.pop("file")] = row
            left = [file for file in left if file.name not in found]
            if left:
                found[left[0].name] = {"crash": fault}
                left = left[1:]
    return found


def verdict(row: dict[str, Any], kind: Kind) -> str:
    """Say in a few words whether a file's clips are right."""
    if "reject" in row:
        right = kind.reject and row["reject"] == kind.reject
        return f"right: {row['reject']}" if right else f"reject: {row['reject']}"
    if "crash" in row:
        return f"ends the stage: {row['crash']}"
    faults = ["reject"] if kind.reject or row["rejected"] != list(kind.lost) else []
    within = SYNC_MS + 500 / kind.fps
    if row["sync_ms"] is None or not abs(row["sync_ms"]) <= within:
        faults.append("sync")
    if row["wrong"]:
        faults.append("frames")
    if not row["colour"] <= COLOUR:
        faults.append("colours")
    if not row["gain_db"] <= GAIN_DB:
        faults.append("sound")
    return "right" if not faults else "wrong " + ", ".join(faults)


def cells(row: dict[str, Any], kind: Kind) -> str:
    """Format the columns of one checkout."""
    if "cuts" not in row:
        return f"{'':>7} {'':>14} {'':>6} {'':>6}  {verdict(row, kind)}"
    sync = "-" if row["sync_ms"] is None else f"{row['sync_ms']:.1f}"
    frames = f"{row['wrong']}/{row['frames']}"
    if row["wrong"]:
        frames += f" ({row['missing']}m {row['repeated']}r)"
    gain = f"{row['gain_db']:.2f}"
    return f"{sync:>7} {frames:>14} {row['colour']:>6.1f} {gain:>6}  {verdict(row, kind)}"


def _clip_ms(found: dict[str, dict[str, Any]], names: list[str]) -> float:
    """Mean processor time of a clip of files, in milliseconds."""
    cuts = sum(found[name]["cuts"] for name in names)
    return float(1000 * sum(found[name]["seconds"] for name in names) / cuts)


def main() -> None:
    """Make, measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ingest",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--only", nargs="*", default=[], help="kinds whose name contains one of these"
    )
    parser.add_argument("--folder", type=Path, help="keep the files here and use them again")
    parser.add_argument("--beside", type=Path, help="another checkout to measure too")
    parser.add_argument("--rounds", type=int, default=1, help="how often all is measured")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    options = parser.parse_args()
    wanted = [
        kind
        for group in (kinds, further, losses, shapes, films, fields, rare, dolby, copies)
        for kind in group()
        if not options.only or any(part in kind.name for part in options.only)
    ]
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        skipped = make(folder, wanted)
        here = [kind for kind in wanted if kind.name not in skipped]
        files = [folder / kind.name for kind in here]
        checkouts = [project_root()] + ([options.beside] if options.beside else [])
        rounds = [
            [measure(checkout, files) for checkout in checkouts] for _ in range(options.rounds)
        ]
    results = rounds[-1]
    head = f"{'sync':>7} {'wrong':>14} {'colour':>6} {'gain':>6}  {'verdict':<34}"
    print(f"{'kind':<28} " + " | ".join(head for _ in checkouts))
    for kind in here:
        columns = [f"{cells(found[kind.name], kind):<72}" for found in results]
        print(f"{kind.name:<28} " + " | ".join(columns).rstrip())
    for name, why in skipped.items():
        print(f"{name:<28} skipped: {why}")
    for checkout, found in zip(checkouts, results, strict=True):
        words = [verdict(found[kind.name], kind).split(":")[0].split(" ")[0] for kind in here]
        counts = ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words))
        print(f"{checkout.name}: of {len(here)} kinds {counts}")
    # Of files that every checkout cuts, so that the times compare the same work.
    both = [k.name for k in here if all("cuts" in other[k.name] for other in results)]
    for place, checkout in enumerate(checkouts if both else []):
        each = [_clip_ms(found[place], both) for found in rounds]
        told = f"least {min(each):.0f}, median {statistics.median(each):.0f}"
        print(f"{checkout.name}: processor time of a clip, ms: {told}, of {len(each)} rounds")
    if options.json:
        options.json.write_text(json.dumps(dict(zip(map(str, checkouts), results, strict=True))))


if __name__ == "__main__":
    main()
