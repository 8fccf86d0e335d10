"""Captions of a folder of videos: one JSON, JSONL, CSV or TSV file, or a text beside each video.

Lines end at a line feed or carriage return alone: U+2028, U+0085 and their kin are characters of a
caption. A name means the file that it can only mean, in whatever form a tool wrote it (``match``).
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omniforcing.core.errors import OmniForcingError
from omniforcing.core.files import holds
from omniforcing.data.captions.names import (
    BESIDE,
    Beside,
    forms_of_files,
    forms_of_name,
    meaning,
    same_name,
)
from omniforcing.data.rejects import printable
from omniforcing.media.reading.tracks import Rejected

FORMATS = (".json", ".jsonl", ".csv", ".tsv")
# Names of columns and fields as this and other tools write them, in any case; the first found wins.
VIDEO_COLUMNS = ("video", "video_path", "file_name", "filename", "file_path", "file", "path")
CAPTION_COLUMNS = ("caption", "text", "prompt")
DELIMITERS = ",;\t|"
SHOWN_COLUMNS = 8  # that an error names
csv.field_size_limit(1 << 30)  # a long caption is judged as a caption


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
    _listed: dict[Path, Beside] = field(default_factory=dict, repr=False)

    def add(self, name: str, caption: str) -> None:
        """Keep the caption of a normalised name; a second, different one is a contradiction."""
        if self.texts.setdefault(name, caption) != caption:
            self.repeated.add(name)

    def of(self, folder: Path, name: str) -> str:
        """Return the caption of a video: from the caption file, or from the text beside the video.

        Args:
            folder: folder of the videos.
            name: name of the video, relative to the folder.

        Raises:
            Rejected: if the video has no caption, different ones, or one that cannot be read.
        """
        key = same_name(name)
        if key in self.repeated:
            raise Rejected("data.captioned-twice", f"{self.file} gives it different captions")
        hint = ""
        if key in self.texts:
            caption = clean(self.texts[key], str(self.file))
        else:
            hint, caption = self._beside(folder / name)
        if not caption:
            source = self.file.name if self.file else "a caption file"
            beside = f"{Path(name).stem}.txt"
            raise Rejected("data.no-caption", f"neither {source} nor {beside} has one{hint}")
        return caption

    def _beside(self, video: Path) -> tuple[str, str]:
        """Return a further word about a missing caption, and the caption beside a video, or ''."""
        if video.parent not in self._listed:
            self._listed[video.parent] = Beside(video.parent)
        found = self._listed[video.parent].of(video)
        plain = [path for path in found if path.suffix.lower() in BESIDE]
        texts = {path: clean(_read(path), path.name) for path in plain}
        given = {path: text for path, text in texts.items() if text}
        if len(set(given.values())) > 1:
            names = " and ".join(path.name for path in given)
            raise Rejected("data.captioned-twice", f"{names} give it different captions")
        if given:
            return "", next(iter(given.values()))
        for path in found:
            if path.suffix.lower() == ".json":
                return _json_beside(path)
        return "", ""

    def match(self, folder: Path, videos: Iterable[str], others: Iterable[str] = ()) -> None:
        """Give captions of names in another form to the video that they can only mean.

        Other forms are absolute paths, folders in front or left out, another case, no suffix,
        and the encoding of URLs. A video that the file captions under its own name gets no other
        caption, and a name that could mean several videos gets none.

        Args:
            folder: folder of the videos.
            videos: names of the videos, relative to the folder.
            others: names of the other files there.
        """
        videos = [same_name(name) for name in videos]
        own = {*videos, *map(same_name, others)} & self.texts.keys()
        forms = forms_of_files(videos)
        for key in sorted(self.texts.keys() - own):
            meant = meaning(forms_of_name(key, folder), forms)
            if meant is None or meant in own:
                continue
            self.add(meant, self.texts.pop(key))
            if key in self.repeated:
                self.repeated.add(meant)


def missing_videos(captions: Captions, names: Iterable[str]) -> list[str]:
    """List captioned videos, sorted, that are not among ``names``."""
    return sorted(captions.texts.keys() - {same_name(name) for name in names})


# --- texts ---


def clean(text: str, place: str) -> str:
    """Return a caption as words with single spaces between them; empty if nothing can be seen.

    Args:
        text: the caption as it was written.
        place: where it stands, for errors.

    Raises:
        Rejected: if it holds characters that are no text.
    """
    text = " ".join(text.split())
    for character in text:
        if unicodedata.category(character) in ("Cc", "Cs"):
            raise Rejected(
                "data.unusable-caption",
                f"{place}: it holds the control character U+{ord(character):04X}; remove it",
            )
    return text if any(c.isprintable() and not c.isspace() for c in text) else ""


def _decoded(path: Path) -> str:
    """Read a text in UTF-8, or in UTF-16 if it begins with the mark of that."""
    data = path.read_bytes()
    marked = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return data.decode("utf-16" if marked else "utf-8-sig")


def _read(path: Path) -> str:
    try:
        return _decoded(path)
    except UnicodeDecodeError as error:
        raise Rejected(
            "data.unreadable-caption", f"{path.name} is not UTF-8 text: {error}"
        ) from error
    except OSError as error:
        raise Rejected(
            "data.unreadable-caption", f"{path.name} cannot be read: {error.strerror}"
        ) from error


def _json_beside(path: Path) -> tuple[str, str]:
    try:
        entry = json.loads(_read(path), strict=False)
    except (ValueError, RecursionError) as error:
        raise Rejected("data.unreadable-caption", f"{path.name} is not json: {error}") from error
    if not isinstance(entry, dict):
        return f"; {path.name} is no object with a caption", ""
    caption = _value(entry, CAPTION_COLUMNS)
    if not isinstance(caption, str):
        return f"; {path.name} has {_columns(entry)}, none of {', '.join(CAPTION_COLUMNS)}", ""
    return "", clean(caption, path.name)


# --- caption files ---


def find_captions(folder: Path, named: str | None) -> Captions:
    """Read the caption file of a folder of videos.

    Args:
        folder: folder of the videos.
        named: path of the caption file, from the working folder or from ``folder``; None for the
            only ``captions.{json,jsonl,csv,tsv}`` of the folder, if there is one.

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
    usual = {f"captions{suffix}" for suffix in FORMATS}
    try:
        files = sorted(folder.iterdir())
    except OSError as error:
        raise OmniForcingError(
            "file.unreadable",
            f"{folder} cannot be listed ({error.strerror}); "
            "correct clips.folder, or its permissions",
        ) from error
    found = [path for path in files if path.name.lower() in usual and holds(path, Path.is_file)]
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
        path: JSON (a list of objects with video and caption, or an object of captions by video),
            JSONL of such objects, or CSV or TSV with a first line that names the columns; which
            names are known, ``VIDEO_COLUMNS`` and ``CAPTION_COLUMNS`` say.

    Raises:
        OmniForcingError: if the file cannot be read or an entry is malformed; names the place.
    """
    readers = {".json": _json, ".jsonl": _jsonl, ".csv": _csv, ".tsv": _csv}
    if path.suffix.lower() not in readers:
        raise OmniForcingError(
            "data.unknown-caption-format",
            f"caption file {path} is neither {', '.join(FORMATS[:-1])} nor {FORMATS[-1]}; "
            "convert it to one of them",
        )
    try:
        text = _decoded(path)
    except UnicodeDecodeError as error:
        raise OmniForcingError(
            "file.unreadable",
            f"caption file {path} cannot be read as UTF-8 text ({error}); save it as UTF-8",
        ) from error
    except OSError as error:
        raise OmniForcingError(
            "file.unreadable",
            f"caption file {path} cannot be read: {error.strerror}; see that it exists and may "
            "be read",
        ) from error
    captions = Captions(path)
    for where, entry in readers[path.suffix.lower()](path, text):
        _add(captions, where, entry)
    return captions


def _value(entry: dict[Any, Any], known: tuple[str, ...]) -> Any:
    """Return the value of the first known column that an entry has; None without one."""
    named = {_column(name): value for name, value in entry.items()}
    return next((named[name] for name in known if name in named), None)


def _column(name: Any) -> str:
    return re.sub(r"[\s-]+", "_", str(name).strip().lower())


def _columns(names: Iterable[Any]) -> str:
    shown = [printable(str(name).strip())[:40] for name in names]
    more = f" and {len(shown) - SHOWN_COLUMNS} more" if len(shown) > SHOWN_COLUMNS else ""
    return f"the columns {', '.join(map(repr, shown[:SHOWN_COLUMNS]))}{more}"


def _add(captions: Captions, where: str, entry: Any) -> None:
    video, caption = None, None
    if isinstance(entry, dict):
        video, caption = _value(entry, VIDEO_COLUMNS), _value(entry, CAPTION_COLUMNS)
    if not isinstance(video, str) or not isinstance(caption, str):
        raise OmniForcingError(
            "data.malformed-captions",
            f"{captions.file}, {where}: expected a text `video` (or {', '.join(VIDEO_COLUMNS[1:])})"
            f" and a text `caption` (or {', '.join(CAPTION_COLUMNS[1:])}), found {entry!r:.80}",
        )
    captions.add(same_name(video), caption)


class _Object(dict[str, Any]):
    """An object that remembers names which stand in it twice."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.pairs = pairs


def _loads(path: Path, where: str, text: str) -> Any:
    try:
        # Not strict: a bare control character in a caption is judged with the caption.
        return json.loads(text, strict=False, object_pairs_hook=_Object)
    except (ValueError, RecursionError) as error:
        raise OmniForcingError(
            "data.malformed-captions", f"{path}, {where}: not json ({error}); mend or remove it"
        ) from error


def _json(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    content = _loads(path, "the whole file", text)
    if isinstance(content, _Object):
        content = [{"video": video, "caption": caption} for video, caption in content.pairs]
    if not isinstance(content, list):
        raise OmniForcingError(
            "data.malformed-captions",
            f"{path}: expected a list of {{video, caption}} or an object, found {content!r:.80}",
        )
    yield from ((f"entry {i}", entry) for i, entry in enumerate(content, start=1))


def _jsonl(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(io.StringIO(text, newline=None), start=1):
        if line.strip():
            yield f"line {number}", _loads(path, f"line {number}", line)


def _reader(lines: Iterable[str], delimiter: str) -> Any:
    # Spaces after a comma are nobody's; after a tab they would swallow an empty cell.
    skips = delimiter != "\t"
    return csv.reader(lines, delimiter=delimiter, skipinitialspace=skips, strict=True)


def _cells(line: str, delimiter: str) -> list[str]:
    try:
        return next(_reader([line], delimiter), [])
    except csv.Error:
        return []


def _names_both(columns: list[str]) -> bool:
    named = {_column(name) for name in columns}
    return bool(named & set(VIDEO_COLUMNS)) and bool(named & set(CAPTION_COLUMNS))


def _csv(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    text = re.sub(r"\Asep=.(\r\n|\r|\n)", "", text)  # a spreadsheet's word about its delimiter
    first = next(iter(io.StringIO(text, newline=None)), "")
    splits = {delimiter: _cells(first, delimiter) for delimiter in DELIMITERS}
    delimiter = max(DELIMITERS, key=lambda d: (_names_both(splits[d]), len(splits[d])))
    columns = splits[delimiter]
    if not _names_both(columns):
        raise OmniForcingError(
            "data.malformed-captions",
            f"{path}: expected a first line `video,caption` (or {', '.join(VIDEO_COLUMNS[1:])} "
            f"and {', '.join(CAPTION_COLUMNS[1:])}), found {_columns(columns)}",
        )
    rows, good = _reader(io.StringIO(text, newline=""), delimiter), 0
    try:
        next(rows)
        for row in rows:
            good = rows.line_num
            if not row:
                continue
            if any(cell.strip() for cell in row[len(columns) :]):
                raise OmniForcingError(
                    "data.malformed-captions",
                    f"{path}, line {rows.line_num}: {len(row)} cells under {len(columns)} columns; "
                    "quote captions with commas",
                )
            yield f"line {rows.line_num}", dict(zip(columns, row, strict=False))
    except csv.Error as error:
        raise OmniForcingError(
            "data.malformed-captions",
            f"{path}, after line {good or 1}: not csv ({error}); quote captions with commas",
        ) from error
