"""Clips of one form in WebDataset tars: planned, written shard by shard, read back with checks.

The clips of a shard are planned before anything is decoded. A rejected clip therefore moves no
other, the same inputs give the same bytes, and a killed run goes on with the first shard that has
no index.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from omniforcing.core.config import digest
from omniforcing.core.files import FileError, write_manifest, writing
from omniforcing.core.layout import clip_frames, clip_samples
from omniforcing.core.pair import Pair
from omniforcing.data.duplicates import clip_hash, near_training_clips, without
from omniforcing.data.rejects import Reject, refuse_share, summary
from omniforcing.data.sources import SPLITS, Entry
from omniforcing.data.tars import (
    SCHEMA,
    copy_tar,
    indices,
    read_index,
    read_tar,
    shard_form,
    write_tar,
)
from omniforcing.data.work import Done, Runner, in_process
from omniforcing.media.files import encode_mp4, read_mp4
from omniforcing.media.format import ClipFormat
from omniforcing.media.reading.conform import cutter_of
from omniforcing.media.reading.isolated import Isolated
from omniforcing.media.reading.tracks import Rejected

MEMBERS = frozenset({"mp4", "txt", "json"})
# Version of how clips are conformed and what an index holds: work of another one is done again.
CONFORMING = 3
CRF = 14  # x264 quality, 0 (best) to 51: no loss that a codec of this size could show


# A clip is silent if its largest sample lies below this, faint if its root mean square does; in dB.
SILENT, FAINT = -80.0, -50.0


@dataclass(frozen=True)
class Cut:
    """A planned clip.

    Attributes:
        key: key of its sample.
        entry: the file that it is cut from.
        cut: number of the cut in that file.
        flag: why the clip is left out; empty if it is not.
    """

    key: str
    entry: Entry
    cut: int
    flag: str = ""


@dataclass(frozen=True)
class ShardPlan:
    """A planned shard.

    Attributes:
        name: name of the tar without suffix.
        split: split of all its clips.
        cuts: its clips, in order.
        form: size and length of its clips.
        language: language of the sound to prefer, as files name it.
    """

    name: str
    split: str
    cuts: tuple[Cut, ...]
    form: ClipFormat
    language: str | None = None

    @property
    def digest(self) -> str:
        """Digest of everything that the shard's bytes depend on, except the content of the files.

        Paths do not count: a folder of videos may move.
        """
        cuts = [replace(cut, entry=replace(cut.entry, path="")) for cut in self.cuts]
        made = {"schema": SCHEMA, "conforming": CONFORMING, "crf": CRF}
        return digest({**made, **asdict(replace(self, cuts=tuple(cuts)))})


def plan_shards(
    entries: list[Entry],
    form: ClipFormat,
    per_shard: int,
    language: str | None = None,
    flags: Mapping[tuple[str, int], str] | None = None,
) -> list[ShardPlan]:
    """Spread the clips of each split over shards of ``per_shard``.

    Keys number the clips of all splits together.

    Args:
        entries: the files.
        form: size and length of the clips.
        flags: clips to leave out, as ``read_flags`` reads them.
    """
    cuts: list[Cut] = []
    for entry in entries:
        for number in range(entry.cuts):
            flag = (flags or {}).get((entry.provenance["name"], number), "")
            cuts.append(Cut(f"{len(cuts):06d}", entry, number, flag))
    plans = []
    for split in SPLITS:
        mine = [cut for cut in cuts if cut.entry.split == split]
        for number, first in enumerate(range(0, len(mine), per_shard)):
            plans.append(
                ShardPlan(
                    f"{split}-{number:06d}",
                    split,
                    tuple(mine[first : first + per_shard]),
                    form,
                    language,
                )
            )
    return plans


def write_shards(plans: list[ShardPlan], work: Path, run: Runner = in_process) -> None:
    """Write every planned shard that is not in ``work`` yet, with a progress bar.

    Args:
        plans: the shards.
        work: folder of finished shards; a later call goes on from what it holds.
        run: runs the work in this process, or on a cluster that sees ``work`` and the clips under
            the same paths.

    Raises:
        OmniForcingError: if the disk is full; finished shards stay.
    """
    work.mkdir(parents=True, exist_ok=True)
    missing = [plan for plan in plans if not _is_done(plan, work)]
    total, left = (sum(len(plan.cuts) for plan in some) for some in (plans, missing))
    with tqdm(total=total, initial=total - left, desc="shards", unit="clip") as progress:
        run(partial(Packer, work), missing, progress.update)


@dataclass(frozen=True)
class CutClip:
    """A conformed and encoded clip.

    Attributes:
        start: time of its first frame in seconds on the clock of its file.
        content: the clip as ``encode_mp4`` encodes it.
        loudness: ``silent``, ``faint`` or ``heard``.
        looks: its ``ClipHash`` as text.
    """

    start: float
    content: bytes
    loudness: str
    looks: str


def cut_clip(path: Path, form: ClipFormat, language: str | None, cut: int) -> CutClip:
    """Cut, conform and encode a clip. Cuts of one file are best asked for in order.

    Raises:
        Rejected: as ``ClipCutter`` and its ``clip``.
    """
    cutter = cutter_of(path, form, language)
    media = cutter.clip(cut)
    # A constant, as a cheap microphone adds it, is not heard.
    heard = media.audio - media.audio.mean(1, keepdims=True)
    peak = _decibels(float(np.abs(heard).max(initial=0.0)))
    level = _decibels(float(np.sqrt(np.square(heard, dtype=np.float64).mean())))
    loudness = "silent" if peak < SILENT else "faint" if level < FAINT else "heard"
    looks = clip_hash(media.video).to_text()
    return CutClip(cutter.start(cut), encode_mp4(media, CRF), loudness, looks)


def _decibels(amplitude: float) -> float:
    return 20 * float(np.log10(max(amplitude, 1e-6)))


@dataclass(frozen=True)
class Packer:
    """Worker that writes planned shards into ``work``, and decodes in a process of its own."""

    work: Path
    isolated: Isolated = field(default_factory=Isolated)

    def __call__(self, plan: ShardPlan, done: Done) -> None:
        if not _is_done(plan, self.work):
            rejects: list[dict[str, Any]] = []
            loudness = {"silent": 0, "faint": 0}
            looks: dict[str, str] = {}
            extra = {
                "split": plan.split,
                "plan": plan.digest,
                "rejects": rejects,
                "loudness": loudness,
                "looks": looks,
            }
            write_tar(_tar(self.work, plan), self._samples(plan, extra, done), extra)

    def _samples(
        self, plan: ShardPlan, extra: dict[str, Any], done: Done
    ) -> Iterator[dict[str, Any]]:
        rejects, loudness = extra["rejects"], extra["loudness"]
        # Cuts of a file follow each other, so the file is opened and its sound decoded only once.
        for cut in plan.cuts:
            begin = float(cut.cut * plan.form.seconds)
            place = Path(cut.entry.path), plan.form, plan.language, cut.cut
            try:
                if cut.flag:
                    raise Rejected("data.flagged", cut.flag)
                clip = self.isolated(cut_clip, *place, media_seconds=begin + plan.form.seconds)
            except Rejected as error:
                name = cut.entry.provenance["name"]
                rejects.append(asdict(Reject(name, begin, error.reason, error.detail)))
            else:
                if clip.loudness in loudness:
                    loudness[clip.loudness] += 1
                # Synthetic clips may rightly look alike.
                if cut.entry.provenance["source"] != "synthetic":
                    extra["looks"][cut.key] = clip.looks
                yield _sample(plan, cut, clip)
            done(1)


def _tar(folder: Path, plan: ShardPlan) -> Path:
    return folder / f"{plan.name}.tar"


def _is_done(plan: ShardPlan, work: Path) -> bool:
    path = _tar(work, plan)
    return (
        path.is_file()
        and path.with_suffix(".json").is_file()
        and read_index(path)["plan"] == plan.digest
    )


def _sample(plan: ShardPlan, cut: Cut, clip: CutClip) -> dict[str, Any]:
    seconds = plan.form.seconds
    info = {
        **cut.entry.provenance,
        "schema": SCHEMA,
        "split": plan.split,
        "cut": cut.cut,
        "start": clip.start,
        "seconds": seconds,
        "loudness": clip.loudness,
    }
    if "impacts" in info:
        since = [time - clip.start for time in info["impacts"]]
        info["impacts"] = [time for time in since if 0 <= time < seconds]
    return {"__key__": cut.key, "mp4": clip.content, "txt": cut.entry.caption, "json": info}


def publish_shards(
    plans: list[ShardPlan],
    work: Path,
    folder: Path,
    max_reject_share: float,
    reject_near: bool = False,
) -> dict[str, Any]:
    """Move finished shards from ``work`` into ``folder`` and write its manifest.

    Args:
        plans: the shards.
        work: folder of the finished shards.
        folder: folder to fill.
        max_reject_share: largest share of the clips that may be rejected.
        reject_near: whether training clips that look like held-out clips are rejected.

    Returns:
        Counts of clips per split, and the rejects.

    Raises:
        OmniForcingError: if a larger share than ``max_reject_share`` of the clips was rejected.
    """
    made = {_tar(work, plan): read_index(_tar(work, plan)) for plan in plans}
    near = near_training_clips(made.values())
    left_out = near if reject_near else {}
    made = {path: without(path, index, left_out, MEMBERS) for path, index in made.items()}
    rejects = [Reject(**reject) for index in made.values() for reject in index["rejects"]]
    clips = {
        split: sum(index["n"] for index in made.values() if index["split"] == split)
        for split in SPLITS
    }
    loudness = {
        level: sum(index["loudness"][level] for index in made.values())
        for level in ("silent", "faint")
    }
    refuse_share(rejects, sum(clips.values()), max_reject_share, "clips")
    told = [] if reject_near else [asdict(pair) for pair in near.values()]
    if told:
        print(
            f"{len(told)} training clips look like held-out clips, first {told[0]['train']} like "
            f"{told[0]['heldout']}: see near_duplicates in the shards' manifest.json; "
            "shards.near_duplicates=reject leaves them out of training",
            file=sys.stderr,
        )
    with writing(folder):
        for path, index in made.items():
            if index["n"] < read_index(path)["n"]:
                copy_tar(path, folder / path.name, index, MEMBERS, left_out.keys())
                continue
            for file in (path, path.with_suffix(".json")):
                file.replace(folder / file.name)
        found = {
            "kind": "shards",
            "clips": clips,
            "loudness": loudness,
            "near_duplicates": told,
            **summary(rejects),
        }
        write_manifest(folder, {**found, "form": asdict(plans[0].form)})
    return found


def read_shards(folder: Path, split: str | None = None) -> Iterator[dict[str, Any]]:
    """Yield the clips of a shard folder in order, of one split or of all.

    Yields:
        ``key``, ``media`` (frames uint8 ``[1+24K, H, W, 3]``, samples float32 ``[2, 16000K]``),
        ``caption`` and ``provenance``.

    Raises:
        OmniForcingError: if a shard is missing, damaged or incomplete, or a clip has another form
            than the manifest says.
    """
    form = shard_form(folder)
    for path, raw in read_raw(folder, split):
        yield {
            "key": raw["__key__"],
            "media": decode_media(form, path, raw),
            "caption": raw["txt"].decode(),
            "provenance": json.loads(raw["json"]),
        }


def read_raw(folder: Path, split: str | None = None) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the shard and the undecoded members of every sample.

    Raises:
        OmniForcingError: if a shard is missing, damaged or incomplete.
    """
    for path, index in indices(folder, "shards", split).items():
        yield from ((path, raw) for raw in read_tar(path, index, MEMBERS))


def decode_media(form: ClipFormat, path: Path, raw: dict[str, Any]) -> Pair[Any]:
    """Decode picture and sound of a raw sample.

    Args:
        form: expected size and length.
        path: shard of the sample, for errors.
        raw: members of the sample as bytes.

    Raises:
        FileError: if the sample cannot be decoded or has another form.
    """
    try:
        media = read_mp4(raw["mp4"])
    except Rejected as error:
        raise FileError(
            "data.damaged-shard",
            f"shard {path}: sample {raw['__key__']} cannot be decoded ({error}); "
            "make the shards again",
        ) from error
    expected = (
        (clip_frames(form.seconds), form.height, form.width, 3),
        (2, clip_samples(form.seconds)),
    )
    found = media.video.shape, media.audio.shape
    if found != expected:
        raise FileError(
            "data.damaged-shard",
            f"shard {path}: sample {raw['__key__']} is {found}, expected {expected}; "
            "make the shards again",
        )
    return media
