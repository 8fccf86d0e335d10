"""``omniforcing play``: play scenarios, keep recordings with receipts, and measure them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omniforcing.core.errors import OmniForcingError
from omniforcing.core.files import make_folder, read_json, read_json_object, sha256_file, write_json
from omniforcing.core.layout import FPS
from omniforcing.evaluation.interactive.figures import Recording, Segment, interactive, table
from omniforcing.evaluation.interactive.judges import judges
from omniforcing.evaluation.measures.encoders.weights import Weights
from omniforcing.media.format import ClipFormat
from omniforcing.media.reading.conform import ClipCutter
from omniforcing.media.reading.probe import probe
from omniforcing.pipeline.experiments.scenario import Scenario
from omniforcing.streaming.command import write_stream
from omniforcing.streaming.engine import Engine
from omniforcing.streaming.steering import Applied, NotApplied

SCHEMA = 1
FIGURES = "interactive.json"


def play(engine: Engine, scenarios: Sequence[Scenario], folder: Path) -> None:
    """Play scenarios one after the other, as fast as the student streams.

    Each leaves ``NAME.mp4`` and ``NAME.json``, its receipts. What is there already, of the same
    scenario and artifact, is kept, so that a killed run goes on.

    Raises:
        OmniForcingError: if a prompt would be cut, an update comes too late for a block, or a
            recording of another scenario has its name.
    """
    from tqdm import tqdm

    for scenario in scenarios:
        for prompt in (scenario.prompt, *(update.prompt for update in scenario.updates)):
            engine.count_tokens(prompt).refuse_cut()
    make_folder(folder)
    for scenario in tqdm(scenarios, "scenarios", unit="stream", disable=None, file=sys.stderr):
        if not _is_there(engine, scenario, folder):
            _play(engine, scenario, folder)


def _is_there(engine: Engine, scenario: Scenario, folder: Path) -> bool:
    file = folder / f"{scenario.name}.json"
    if not file.is_file():
        return False
    kept = read_json_object(file)
    found = kept.get("scenario_digest"), kept.get("artifact"), kept.get("watermark", "")
    if found != (scenario.digest, engine.digest, engine.mark.watermark):
        raise OmniForcingError(
            "pipeline.other-recording",
            f"{file} is of another scenario, artifact or watermark; name another folder in --out",
        )
    return True


def _play(engine: Engine, scenario: Scenario, folder: Path) -> None:
    recording = folder / f"{scenario.name}.mp4"
    applied: list[Future[Applied]] = []
    with engine.stream(scenario.prompt, scenario.seconds, scenario.seed) as stream:
        for update in scenario.updates:
            block = engine.block_at(update.at)
            if stream.blocks is not None and block >= stream.blocks:
                raise OmniForcingError(
                    "streaming.no-moment",
                    f"scenario {scenario.name}: no block of its {scenario.seconds:g} seconds "
                    f"begins at or after second {update.at:g}; name an earlier one",
                )
            applied.append(stream.steer(update.prompt, at=block, rewrite=update.rewrite))
        speed = write_stream(stream, recording, engine.settings, engine.mark)
    receipts = [
        asdict(update) | _receipt(result)
        for update, result in zip(scenario.updates, applied, strict=True)
    ]
    # Last, so that a recording with receipts is whole.
    write_json(
        folder / f"{scenario.name}.json",
        {
            "schema": SCHEMA,
            "scenario": asdict(scenario),
            "scenario_digest": scenario.digest,
            "artifact": engine.digest,
            "watermark": engine.mark.watermark,
            "recording": recording.name,
            "sha256": sha256_file(recording),
            "receipts": receipts,
            "speed": asdict(speed),
        },
    )


def _receipt(result: Future[Applied]) -> dict[str, Any]:
    try:
        return asdict(result.result())
    except NotApplied as error:
        return {"block": None, "seconds": None, "why": str(error)}


def read_recording(receipts: Path) -> Recording:
    """Read a recording by its receipts.

    Raises:
        OmniForcingError: if the recording is not the one that the receipts are of.
    """
    kept = read_json(receipts)
    file = receipts.parent / kept["recording"]
    if not file.is_file() or sha256_file(file) != kept["sha256"]:
        raise OmniForcingError(
            "file.damaged", f"{file} is not the recording of {receipts}; delete both and play again"
        )
    info = probe(file)
    cutter = ClipCutter(file, ClipFormat(info.height, info.width, int(kept["scenario"]["seconds"])))
    segments = [Segment(kept["scenario"]["prompt"])]
    for receipt in kept["receipts"]:
        if receipt["seconds"] is not None:
            frame = round(receipt["seconds"] * FPS)
            segments.append(Segment(receipt["prompt"], frame, receipt["at"]))
    return Recording(cutter.clip(0), segments)


def measure_recordings(
    folder: Path, scenarios: Sequence[Scenario], weights: Weights | None
) -> dict[str, Any]:
    """Measure the recordings of scenarios, and write ``interactive.json`` beside them."""
    able, missing = judges(weights)
    recordings = [read_recording(folder / f"{scenario.name}.json") for scenario in scenarios]
    figures = {**interactive(recordings, able), "missing": missing}
    write_json(folder / FIGURES, figures)
    return figures


__all__ = ["FIGURES", "measure_recordings", "play", "read_recording", "table"]
