"""Sources of clips: the synthetic world, or a folder of videos with captions.

Both write one ``clips.jsonl``, a line per file: path, caption, split, number of clips of K seconds
that can be cut from it, provenance. Synthetic clips are written as MP4 files and then go the same
way as users' videos.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from omniforcing.core.errors import OmniForcingError, did_you_mean
from omniforcing.core.files import holds, write_manifest, writing
from omniforcing.core.pair import Pair
from omniforcing.data.captions.files import find_captions, missing_videos
from omniforcing.data.captions.names import BESIDE, same_name
from omniforcing.data.config import ClipsConfig
from omniforcing.data.duplicates import copies
from omniforcing.data.rejects import Reject, counted, printable, refuse_share, summary
from omniforcing.data.work import Done, Runner, in_process
from omniforcing.media.files import encode_mp4
from omniforcing.media.format import ClipFormat
from omniforcing.media.reading.conform import cutter_of
from omniforcing.media.reading.isolated import Isolated
from omniforcing.media.reading.tracks import MediaInfo, Rejected
from omniforcing.pocket.synthetic import make_clip

CLIPS = "clips.jsonl"
# duets: clips of two balls, held out from training like heldout.
TRAIN, HELDOUT, DUETS = SPLITS = ("train", "heldout", "duets")
# fmt: off
VIDEO_SUFFIXES = frozenset({
    ".3g2", ".3gp", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".m1v", ".m2t", ".m2ts", ".m2v",
    ".m4v", ".mkv", ".mov", ".mp4", ".mpe", ".mpeg", ".mpg", ".mpv", ".mts", ".mxf", ".nut", ".ogm",
    ".ogv", ".qt", ".rm", ".rmvb", ".tod", ".trp", ".ts", ".vob", ".webm", ".wmv", ".wtv",
})
# Files that lie beside videos and pictures, and have no caption of their own.
OTHER_SUFFIXES = frozenset({
    ".ass", ".bmp", ".caption", ".csv", ".gif", ".html", ".jpeg", ".jpg", ".json", ".jsonl", ".log",
    ".md", ".nfo", ".npy", ".npz", ".part", ".pdf", ".png", ".pt", ".py", ".safetensors", ".sh",
    ".srt", ".tar", ".toml", ".tsv", ".txt", ".vtt", ".webp", ".xml", ".yaml", ".yml", ".zip",
})
# fmt: on
# Stage shards encodes synthetic clips a second time. Nearly lossless here, so that the shards' CRF
# alone decides the quality.
SYNTHETIC_CRF = 4
PER_TASK = 64  # synthetic clips that one process writes at a time
# Largest share of a folder that is held out: a small one cannot spare clips.heldout clips.
MOST_HELDOUT = 0.25
LEAST_HELDOUT = 2  # clips, where there are files enough: an evaluation compares two
BYTES_PER_SECOND = 20e6  # of media, at most: for the time that probing a file may take
MOST_NEAR_NAMES = 20  # captions without a video for which a near name is looked for


@dataclass(frozen=True)
class Entry:
    """A line of ``clips.jsonl``: one source file.

    Attributes:
        path: absolute, or relative to the clips folder.
        caption: text that describes picture and sound.
        split: one of ``SPLITS``.
        cuts: number of clips of K seconds that it holds.
        provenance: where it comes from; kept in every sample.
    """

    path: str
    caption: str
    split: str
    cuts: int
    provenance: dict[str, Any]


def write_clips(
    clips: ClipsConfig, seed: int, folder: Path, run: Runner = in_process
) -> dict[str, Any]:
    """Write ``clips.jsonl``, a manifest with the rejects, and the MP4 files of synthetic clips.

    Args:
        clips: config of the clips.
        seed: seed of synthetic clips.
        folder: an empty folder to fill.
        run: runs the workers that write synthetic clips.

    Returns:
        Content of the manifest: clips per split, number of files, rejects by reason.

    Raises:
        OmniForcingError: if the source folder or the captions cannot be read, or a larger share
            than ``clips.max_reject_share`` is rejected.
    """
    rejects: list[Reject] = []
    if clips.source == "synthetic":
        entries = _synthetic(clips, seed, folder, run)
    else:
        entries = list(_folder(clips, rejects))
    refuse_share(rejects, len(entries), clips.max_reject_share, f"videos of {clips.folder}")
    if clips.source == "folder":
        entries = hold_out(entries, clips.heldout, rejects)
    lines = (_line(entry) for entry in entries)
    with writing(folder / CLIPS):
        (folder / CLIPS).write_text("".join(lines), encoding="utf-8")
        counts = {split: sum(e.cuts for e in entries if e.split == split) for split in SPLITS}
        found = {"kind": "clips", "clips": counts, "sources": len(entries), **summary(rejects)}
        write_manifest(folder, found)
    return found


def _line(entry: Entry) -> str:
    """Write an entry as a line of JSON; bytes of its path that are not UTF-8 are escaped."""
    text = json.dumps(asdict(entry), ensure_ascii=False, sort_keys=True)
    return re.sub("[\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text) + "\n"


def read_clips(folder: Path) -> list[Entry]:
    """Read the entries of a clips folder, with absolute paths.

    Raises:
        OmniForcingError: if ``clips.jsonl`` is missing or a line of it is not an entry.
    """
    path = folder / CLIPS
    if not path.is_file():
        raise OmniForcingError("file.missing", f"{path} is missing; run the stage clips")
    return [replace(entry, path=str(folder / entry.path)) for entry in _read_entries(path)]


def _read_entries(path: Path) -> list[Entry]:
    entries = []
    # Not ``splitlines``, which would also split at U+2028 and its kin within names.
    text = path.read_text(encoding="utf-8").removesuffix("\n")
    for number, line in enumerate(text.split("\n") if text else [], start=1):
        try:
            entries.append(Entry(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise OmniForcingError(
                "file.unreadable",
                f"{path}, line {number} is not a clip ({error}); run the stage clips again",
            ) from error
    return entries


class SyntheticWriter:
    """Worker that writes synthetic clips, and a file of their entries per task.

    Args:
        clips: config of the clips.
        seed: seed of the clips.
        folder: folder of the clips.
    """

    def __init__(self, clips: ClipsConfig, seed: int, folder: Path) -> None:
        self.clips, self.seed, self.folder = clips, seed, folder

    def __call__(self, indices: range, done: Done) -> None:
        entries = []
        for index in indices:
            entries.append(self._write(index))
            done(1)
        path = self.part(indices)
        with writing(path):
            path.write_text("".join(map(_line, entries)), encoding="utf-8")

    def part(self, indices: range) -> Path:
        """File of the entries of some clips."""
        return self.folder / f"{indices.start:06d}.{CLIPS}"

    def _write(self, index: int) -> Entry:
        clips, train = self.clips, self.clips.count - self.clips.heldout
        split = TRAIN if index < train else HELDOUT if index < clips.count else DUETS
        # Duets are spread evenly over the training clips.
        duet = split == DUETS or (
            split == TRAIN and int((index + 1) * clips.duets) > int(index * clips.duets)
        )
        balls = 2 if duet else 1
        clip = make_clip(self.seed, index, clips.seconds, clips.height, clips.width, balls)
        path = self.folder / "clips" / f"{index:06d}.mp4"
        with writing(path):
            path.write_bytes(encode_mp4(Pair(clip.frames, clip.samples), SYNTHETIC_CRF))
        truth = {"colours": clip.colours, "modes": clip.modes, "impacts": clip.impacts}
        name = path.relative_to(self.folder).as_posix()
        origin = {"source": "synthetic", "name": name, "seed": self.seed, "index": index}
        return Entry(name, clip.caption, split, 1, {**origin, **truth})


def _synthetic(clips: ClipsConfig, seed: int, folder: Path, run: Runner) -> list[Entry]:
    """Write the synthetic clips with a progress bar; return their entries in order."""
    (folder / "clips").mkdir()
    total = clips.count + clips.heldout_duets
    tasks = [range(n, min(n + PER_TASK, total)) for n in range(0, total, PER_TASK)]
    with tqdm(total=total, desc="clips", unit="clip") as progress:
        run(partial(SyntheticWriter, clips, seed, folder), tasks, progress.update)
    entries: list[Entry] = []
    for part in (SyntheticWriter(clips, seed, folder).part(task) for task in tasks):
        entries += _read_entries(part)
        part.unlink()
    return entries


def _folder(clips: ClipsConfig, rejects: list[Reject]) -> Iterator[Entry]:
    """Probe every video below ``clips.folder``; yield usable ones as training clips.

    Rejects are added to ``rejects``.
    """
    folder = Path(clips.folder or "").expanduser().absolute()
    if not folder.is_dir():
        raise OmniForcingError(
            "file.not-a-folder",
            f"{folder} is not a folder; set clips.folder to the folder that holds your videos",
        )
    captioned = _captioned(folder, clips.captions, rejects)
    with Isolated() as isolated:
        for name, caption in tqdm(captioned, "probing", unit="file"):
            try:
                path = folder / name
                reading = path.stat().st_size / BYTES_PER_SECOND
                found = isolated(
                    probe_clips, path, clips.form, clips.language, media_seconds=reading
                )
                _refuse_unwanted(found[0], clips)
                yield _entry(folder, name, caption, found)
            except Rejected as error:
                rejects.append(Reject(name, None, error.reason, error.detail))
            except OSError as error:  # moved or removed since it was listed
                rejects.append(Reject(name, None, "no file", error.strerror or str(error)))


def probe_clips(path: Path, form: ClipFormat, language: str | None) -> tuple[MediaInfo, int]:
    """Return the properties of a file and the number of clips that it holds.

    Raises:
        Rejected: as ``ClipCutter``.
    """
    cutter = cutter_of(path, form, language)
    return cutter.info, cutter.cuts


def _refuse_unwanted(info: MediaInfo, clips: ClipsConfig) -> None:
    """Reject what the config wants rejected instead of converted."""
    if info.hdr and clips.hdr == "reject":
        raise Rejected("media.high-dynamic-range", f"{info.colour}, and clips.hdr=reject")
    if info.interlaced and clips.interlaced == "reject":
        raise Rejected("media.interlaced", "its frames are two fields, and clips.interlaced=reject")


def _entry(folder: Path, name: str, caption: str, found: tuple[MediaInfo, int]) -> Entry:
    info, cuts = found
    path = folder / name
    provenance = {
        "source": "file",
        "name": printable(name),
        "bytes": path.stat().st_size,
        "fps": round(info.fps, 3),
        "height": info.height,
        "width": info.width,
        "rate": info.rate,
        "channels": info.channels,
        "colour": info.colour,
    }
    return Entry(str(path), caption, TRAIN, cuts, provenance)


def _captioned(
    folder: Path, caption_file: str | None, rejects: list[Reject]
) -> list[tuple[str, str]]:
    """List name and caption of the videos below a folder, each content once.

    Rejects are added to ``rejects``: videos without a usable caption, second copies, captions
    without a video, and what cannot be a video.

    Raises:
        OmniForcingError: if there is no video, or the captions cannot be read.
    """
    captions = find_captions(folder, caption_file)
    files = _files(folder, rejects)
    videos = [name for name in files if Path(name).suffix.lower() in VIDEO_SUFFIXES]
    captions.match(folder, videos, files)
    # A file that the captions name is taken for a video whatever its suffix.
    others = [name for name in files if same_name(name) in captions.texts]
    names = sorted({*videos, *others})
    if not names:
        raise OmniForcingError(
            "data.no-clips",
            f"{folder} holds no video ({', '.join(sorted(VIDEO_SUFFIXES))}); correct clips.folder",
        )
    rejects += _unknown_suffixes(files, names)
    found: dict[str, str] = {}
    for name in names:
        try:
            found[name] = captions.of(folder, name)
        except Rejected as error:
            rejects.append(Reject(name, None, error.reason, error.detail))
    for name, first in copies(folder, found).items():
        del found[name]
        rejects.append(Reject(name, None, "duplicate", f"it has the same bytes as {first}"))
    for number, name in enumerate(missing_videos(captions, names)):
        # Looking for a near name among thousands takes a while.
        near = did_you_mean(name, names) if number < MOST_NEAR_NAMES else ""
        detail = f"{folder / name} does not exist{near}"
        rejects.append(Reject(name, None, "caption for a missing video", detail))
    return list(found.items())


def _files(folder: Path, rejects: list[Reject]) -> list[str]:
    """List the names of all files below a folder, sorted, none hidden.

    Links to folders are followed, but no folder is listed twice: first come the folders that lie
    there, so that a link back into them, or a circle of links, adds nothing.
    """
    names: list[str] = []
    seen: set[tuple[int, int]] = set()
    # Folders to list: those that lie there, and those behind links.
    lying, linked = [folder], list[Path]()
    while lying or linked:
        place = lying.pop() if lying else linked.pop(0)
        try:
            status = place.stat()
            entries = sorted(place.iterdir())
        except OSError as error:
            name = place.relative_to(folder).as_posix()
            rejects.append(Reject(name, None, "unreadable folder", error.strerror or str(error)))
            continue
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        for path in entries:
            if path.name.startswith("."):
                continue
            name = path.relative_to(folder).as_posix()
            if holds(path, Path.is_dir):
                (linked if path.is_symlink() else lying).append(path)
            elif holds(path, Path.is_file):
                names.append(name)
            elif path.suffix.lower() in VIDEO_SUFFIXES:
                there = holds(path, Path.exists)
                what = "a pipe or a device" if there else "nothing that can be read"
                what = f"a link to {what}" if holds(path, Path.is_symlink) else what
                rejects.append(Reject(name, None, "no file", f"it is {what}"))
    return sorted(names)


def _unknown_suffixes(files: list[str], names: list[str]) -> Iterator[Reject]:
    """Yield files that have a caption beside them but no suffix of a video."""
    captioned = {Path(n).with_suffix("") for n in files if Path(n).suffix.lower() in BESIDE}
    captioned -= {Path(name).with_suffix("") for name in names}
    for path in map(Path, files):
        suffix = path.suffix.lower()
        if path.with_suffix("") in captioned and suffix not in OTHER_SUFFIXES:
            what = f"{suffix} is no suffix of a video" if suffix else "it has no suffix"
            detail = (
                f"a caption lies beside it, but {what}; rename it, or name it in a caption file"
            )
            yield Reject(path.as_posix(), None, "unknown suffix", detail)


def hold_out(entries: list[Entry], heldout: int, rejects: list[Reject]) -> list[Entry]:
    """Mark whole files as held out: at least one, with up to ``heldout`` clips together.

    Of a small folder it is a share, and at least ``LEAST_HELDOUT`` clips; one file is left.

    Files are taken in the order of their names' hashes, so that few of them change sides when
    others are added.
    """
    share = int(MOST_HELDOUT * sum(entry.cuts for entry in entries))
    wanted = min(heldout, max(LEAST_HELDOUT, share))
    if heldout and len(entries) == 1:
        others = f", {len(rejects)} not ({counted(rejects)})" if rejects else ""
        raise OmniForcingError(
            "data.too-few-clips",
            f"only {entries[0].path} can be used{others}; "
            "add a second video, to hold out from training",
        )
    chosen: set[str] = set()
    count = 0
    for entry in sorted(
        entries,
        key=lambda entry: hashlib.sha256(same_name(entry.provenance["name"]).encode()).hexdigest(),
    ):
        last = len(chosen) + 1 == len(entries)
        if not last and count + entry.cuts <= wanted:
            chosen.add(entry.path)
            count += entry.cuts
    if wanted and entries and not chosen:
        # A long file first would leave little to train on.
        chosen.add(min(entries, key=lambda entry: entry.cuts).path)
    return [replace(entry, split=HELDOUT if entry.path in chosen else TRAIN) for entry in entries]
