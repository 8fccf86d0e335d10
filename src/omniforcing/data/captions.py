"""Captions of a folder of videos: one JSON, JSONL or CSV file, or a .txt beside each video.

Names of videos match in any Unicode form that a file system or an editor chose for accents.
"""

from __future__ import annotations

import csv
import json
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omniforcing.core.errors import OmniForcingError
from omniforcing.media.probe import Rejected

FORMATS = (".json", ".jsonl", ".csv")


def same_name(name: str) -> str:
    """Normalise a relative file name, so that names in captions and of files compare equal."""
    return unicodedata.normalize("NFC", name.strip().replace("\\", "/").removeprefix("./"))


@dataclass
class Captions:
    """Captions by name of their video.

    Attributes:
        file: the caption file; None if there is none.
        texts: caption per normalised name.
        repeated: names to which the file gives different captions.
    """

    file: Path | None = None
    texts: dict[str, str] = field(default_factory=dict)
    repeated: set[str] = field(default_factory=set)

    def of(self, folder: Path, name: str) -> str:
        """Return the caption of a video: from the caption file, or from the .txt beside the video.

        Args:
            folder: folder of the videos.
            name: name of the video, relative to the folder.

        Raises:
            Rejected: if the video has no caption, different ones, or one that cannot be read.
        """
        key, beside = same_name(name), (folder / name).with_suffix(".txt")
        if key in self.repeated:
            raise Rejected("data.captioned-twice", f"{self.file} gives it different captions")
        text = self.texts.get(key)
        if text is None and beside.is_file():
            try:
                text = beside.read_text(encoding="utf-8-sig")
            except (UnicodeDecodeError, OSError) as error:
                raise Rejected(
                    "data.unreadable-caption", f"{beside.name} is not UTF-8 text: {error}"
                ) from error
        text = " ".join((text or "").split())
        if not text:
            source = self.file.name if self.file else "a caption file"
            raise Rejected("data.no-caption", f"neither {source} nor {beside.name} has one")
        return text


def find_captions(folder: Path, named: str | None) -> Captions:
    """Read the caption file of a folder of videos.

    Args:
        folder: folder of the videos.
        named: path of the caption file, from the working folder or from ``folder``; None for the
            only ``captions.{json,jsonl,csv}`` of the folder, if there is one.

    Raises:
        OmniForcingError: if the named file does not exist, the folder holds several caption files,
            or the file cannot be read.
    """
    if named is not None:
        places = [Path(named), folder / named]
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            raise OmniForcingError(
                "file.missing",
                f"caption file {named} is neither here nor in {folder}; correct clips.captions",
            )
        return read_captions(path)
    found = [
        path for path in (folder / f"captions{suffix}" for suffix in FORMATS) if path.is_file()
    ]
    if len(found) > 1:
        raise OmniForcingError(
            "data.several-caption-files",
            f"{folder} holds {' and '.join(path.name for path in found)}; "
            "name one with clips.captions",
        )
    return read_captions(found[0]) if found else Captions()


def read_captions(path: Path) -> Captions:
    """Read a caption file in UTF-8.

    Args:
        path: JSON (a list of objects with ``video`` and ``caption``, or an object of captions by
            video), JSONL of such objects, or CSV with a header ``video,caption``.

    Raises:
        OmniForcingError: if the file cannot be read or an entry is malformed; names the place.
    """
    readers = {".json": _json, ".jsonl": _jsonl, ".csv": _csv}
    if path.suffix.lower() not in readers:
        raise OmniForcingError(
            "data.unknown-caption-format",
            f"caption file {path} is neither .json, .jsonl nor .csv; convert it to one of them",
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        raise OmniForcingError(
            "file.unreadable",
            f"caption file {path} cannot be read as UTF-8 text ({error}); save it as UTF-8",
        ) from error
    captions = Captions(path)
    for where, entry in readers[path.suffix.lower()](path, text):
        _add(captions, where, entry)
    return captions


def _add(captions: Captions, where: str, entry: Any) -> None:
    video, caption = (
        (entry.get("video"), entry.get("caption")) if isinstance(entry, dict) else (None, None)
    )
    if not isinstance(video, str) or not isinstance(caption, str):
        raise OmniForcingError(
            "data.malformed-captions",
            f"{captions.file}, {where}: expected a text `video` and a text `caption`, "
            f"found {entry!r:.80}",
        )
    key = same_name(video)
    if captions.texts.setdefault(key, caption) != caption:
        captions.repeated.add(key)


def _loads(path: Path, where: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise OmniForcingError(
            "data.malformed-captions", f"{path}, {where}: not json ({error}); mend or remove it"
        ) from error


def _json(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    content = _loads(path, "the whole file", text)
    if isinstance(content, dict):
        content = [{"video": video, "caption": caption} for video, caption in content.items()]
    if not isinstance(content, list):
        raise OmniForcingError(
            "data.malformed-captions",
            f"{path}: expected a list of {{video, caption}} or an object, found {content!r:.80}",
        )
    yield from ((f"entry {i}", entry) for i, entry in enumerate(content, start=1))


def _jsonl(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield f"line {number}", _loads(path, f"line {number}", line)


def _csv(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    rows = csv.DictReader(text.splitlines(keepends=True), skipinitialspace=True, strict=True)
    try:
        if not {"video", "caption"} <= set(rows.fieldnames or ()):
            raise OmniForcingError(
                "data.malformed-captions",
                f"{path}: expected a first line `video,caption`, "
                f"found {text[:60].splitlines()[:1]}",
            )
        yield from ((f"line {rows.line_num}", row) for row in rows)
    except csv.Error as error:
        raise OmniForcingError(
            "data.malformed-captions",
            f"{path}, after line {rows.line_num}: not csv ({error}); quote captions with commas",
        ) from error


def missing_videos(captions: Captions, names: Iterable[str]) -> list[str]:
    """List captioned videos, sorted, that are not among ``names``."""
    return sorted(captions.texts.keys() - {same_name(name) for name in names})
