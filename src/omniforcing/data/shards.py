"""The shards stage: clips of one form in WebDataset tars, written shard by shard and read back with checks.

Which clips a shard holds is planned before anything is decoded: so a rejected clip moves no other, the same inputs give the
same bytes, and a killed run goes on with the first shard that has no index.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from tqdm import tqdm

from omniforcing.core.config import digest
from omniforcing.core.files import FileError, write_manifest
from omniforcing.core.latents import Pair
from omniforcing.core.layout import clip_frames, clip_samples
from omniforcing.data.rejects import Reject, refuse_share, summary, writing
from omniforcing.data.sources import SPLITS, Entry
from omniforcing.data.tars import SCHEMA, indices, read_index, read_tar, require_kind, write_tar
from omniforcing.data.work import Done, Runner, in_process
from omniforcing.media.conform import Form, Recording
from omniforcing.media.files import Rejected, encode_mp4, read_mp4

MEMBERS = frozenset({"mp4", "txt", "json"})


@dataclass(frozen=True)
class Cut:
    """One planned clip: cut number ``cut`` of a file, stored under ``key``."""

    key: str
    entry: Entry
    cut: int


@dataclass(frozen=True)
class Plan:
    """One planned shard."""

    name: str
    split: str
    cuts: tuple[Cut, ...]
    form: Form
    crf: int

    @property
    def digest(self) -> str:
        """Covers all that the shard's bytes depend on besides the files' content, and not where the files lie."""
        cuts = [replace(cut, entry=replace(cut.entry, path="")) for cut in self.cuts]
        return digest({"schema": SCHEMA, **asdict(replace(self, cuts=tuple(cuts)))})


def plan_shards(entries: list[Entry], form: Form, per_shard: int, crf: int) -> list[Plan]:
    """Spread the clips of each split over shards of ``per_shard``; keys number the clips of all splits together."""
    cuts = [
        Cut(f"{n:06d}", entry, cut)
        for n, (entry, cut) in enumerate((e, c) for e in entries for c in range(e.cuts))
    ]
    plans = []
    for split in SPLITS:
        mine = [cut for cut in cuts if cut.entry.split == split]
        for number, first in enumerate(range(0, len(mine), per_shard)):
            plans.append(
                Plan(
                    f"{split}-{number:06d}",
                    split,
                    tuple(mine[first : first + per_shard]),
                    form,
                    crf,
                )
            )
    return plans


def write_shards(plans: list[Plan], work: Path, run: Runner = in_process) -> None:
    """Write every planned shard into ``work`` that is not there yet, with a progress bar of clips per second.

    ``run`` says where: here, or on a cluster that sees ``work`` and the clips under the same paths.

    Raises:
        OmniForcingError: if the disk is full; finished shards stay and are not made again.
    """
    work.mkdir(parents=True, exist_ok=True)
    missing = [plan for plan in plans if not _is_done(plan, work)]
    total, left = (sum(len(plan.cuts) for plan in some) for some in (plans, missing))
    with tqdm(total=total, initial=total - left, desc="shards", unit="clip") as progress:
        run(partial(Packer, work), missing, progress.update)


@dataclass(frozen=True)
class Packer:
    """Writes planned shards into ``work``."""

    work: Path

    def __call__(self, plan: Plan, done: Done) -> None:
        if not _is_done(plan, self.work):
            extra: dict[str, Any] = {"split": plan.split, "plan": plan.digest, "rejects": []}
            write_tar(_tar(self.work, plan), _samples(plan, extra["rejects"], done), extra)


def _tar(folder: Path, plan: Plan) -> Path:
    return folder / f"{plan.name}.tar"


def _is_done(plan: Plan, work: Path) -> bool:
    path = _tar(work, plan)
    return (
        path.is_file()
        and path.with_suffix(".json").is_file()
        and read_index(path)["plan"] == plan.digest
    )


def _samples(plan: Plan, rejects: list[dict[str, Any]], done: Done) -> Iterator[dict[str, Any]]:
    # The cuts of a file follow each other: it is opened, and its sound decoded, once.
    for path, cuts in groupby(plan.cuts, key=lambda cut: cut.entry.path):
        recording = None
        for cut in cuts:
            try:
                recording = recording or Recording(Path(path), plan.form)
                yield _sample(plan, cut, recording)
            except Rejected as error:
                start = float(cut.cut * plan.form.seconds)
                rejects.append(
                    asdict(Reject(cut.entry.provenance["name"], start, error.reason, error.detail))
                )
            done(1)


def _sample(plan: Plan, cut: Cut, recording: Recording) -> dict[str, Any]:
    start, seconds = recording.start(cut.cut), plan.form.seconds
    info = {
        **cut.entry.provenance,
        "schema": SCHEMA,
        "split": plan.split,
        "cut": cut.cut,
        "start": start,
        "seconds": seconds,
    }
    if "impacts" in info:
        info["impacts"] = [
            time - start for time in info["impacts"] if start <= time < start + seconds
        ]
    media = encode_mp4(recording.clip(cut.cut), plan.crf)
    return {"__key__": cut.key, "mp4": media, "txt": cut.entry.caption, "json": info}


def publish_shards(
    plans: list[Plan], work: Path, folder: Path, max_reject_share: float
) -> dict[str, Any]:
    """Move the finished shards of ``work`` into ``folder`` and write its manifest; returns the counts of clips and the rejects.

    Raises:
        OmniForcingError: if more than ``max_reject_share`` of the planned clips was rejected.
    """
    made = {_tar(work, plan): read_index(_tar(work, plan)) for plan in plans}
    rejects = [Reject(**reject) for index in made.values() for reject in index["rejects"]]
    clips = {
        split: sum(index["n"] for index in made.values() if index["split"] == split)
        for split in SPLITS
    }
    refuse_share(rejects, sum(clips.values()), max_reject_share, "clips")
    with writing(folder):
        for path in made:
            for file in (path, path.with_suffix(".json")):
                file.replace(folder / file.name)
        found = {"kind": "shards", "clips": clips, **summary(rejects)}
        write_manifest(folder, {**found, "form": asdict(plans[0].form)})
    return found


def read_shards(folder: Path, split: str | None = None) -> Iterator[dict[str, Any]]:
    """The clips of a shard folder in order, of one split or of all.

    Each is a dict: ``key``, ``media`` (Pair of frames uint8 [1+24K, H, W, 3] and samples float32 [2, 16000K]), ``caption``
    and ``provenance``.

    Raises:
        OmniForcingError: naming the shard, if it is missing, damaged or incomplete, or a clip has not the manifest's form.
    """
    form = shard_form(folder)
    for path, raw in read_raw(folder, split):
        yield {
            "key": raw["__key__"],
            "media": decode_media(form, path, raw),
            "caption": raw["txt"].decode(),
            "provenance": json.loads(raw["json"]),
        }


def shard_form(folder: Path) -> Form:
    """The form of the clips in a shard folder.

    Raises:
        OmniForcingError: if the folder is not one of the stage shards.
    """
    return Form(**require_kind(folder, "shards")["form"])


def read_raw(folder: Path, split: str | None = None) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Each sample's shard and its members as bytes, undecoded.

    Raises:
        OmniForcingError: naming the shard, if it is missing, damaged or incomplete.
    """
    for path, index in indices(folder, "shards", split).items():
        yield from ((path, raw) for raw in read_tar(path, index, MEMBERS))


def decode_media(form: Form, path: Path, raw: dict[str, Any]) -> Pair[Any]:
    """The picture and sound of a raw sample of the shard ``path``.

    Raises:
        FileError: naming the shard and the sample, if they cannot be decoded or have another form.
    """
    try:
        media = read_mp4(raw["mp4"])
    except Rejected as error:
        raise FileError(
            "data.damaged-shard",
            f"shard {path}: sample {raw['__key__']} cannot be decoded ({error}); make the shards again",
        ) from error
    expected = (
        (clip_frames(form.seconds), form.height, form.width, 3),
        (2, clip_samples(form.seconds)),
    )
    found = media.video.shape, media.audio.shape
    if found != expected:
        raise FileError(
            "data.damaged-shard",
            f"shard {path}: sample {raw['__key__']} is {found}, expected {expected}; make the shards again",
        )
    return media
