"""Names of videos and of the texts beside them, in the forms in which tools write them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

from omniforcing.core.files import holds

BESIDE = (".txt", ".caption")  # a JSON beside a video is read where neither is there


def same_name(name: str) -> str:
    """Normalise a relative file name, so that names in captions and of files compare equal."""
    return unicodedata.normalize("NFC", name.strip().replace("\\", "/").removeprefix("./"))


class Beside:
    """Texts in a folder, by the names of the videos that they may belong to.

    The very name comes first, then another Unicode form of it, then another case; either only if
    no second video has a name like it.
    """

    _FORMS: tuple[Callable[[str], str], ...] = (
        str,
        same_name,
        lambda name: same_name(name).casefold(),
    )

    def __init__(self, folder: Path) -> None:
        self._texts: tuple[dict[str, list[Path]], ...] = ({}, {}, {})
        self._videos: tuple[dict[str, set[str]], ...] = ({}, {}, {})
        for path in sorted(folder.iterdir()):
            is_text = path.suffix.lower() in (*BESIDE, ".json")
            if is_text and not holds(path, Path.is_file):
                continue
            for form, texts, videos in zip(self._FORMS, self._texts, self._videos, strict=True):
                if is_text:
                    texts.setdefault(form(path.stem), []).append(path)
                else:
                    videos.setdefault(form(path.stem), set()).add(path.stem)

    def of(self, video: Path) -> list[Path]:
        """Return the texts beside a video, sorted: a.txt and a.mp4.txt of a.mp4."""
        for form, texts, videos in zip(self._FORMS, self._texts, self._videos, strict=True):
            if form is not str and len(videos.get(form(video.stem), ())) > 1:
                return []
            found = {
                path for name in (video.stem, video.name) for path in texts.get(form(name), ())
            }
            if found:
                return sorted(found)
        return []


def forms_of_files(videos: list[str]) -> list[dict[str, set[str]]]:
    """Index videos by their name in any case, without suffix, and without folders."""
    indices: list[dict[str, set[str]]] = [{}, {}, {}, {}, {}]
    for video in videos:
        whole, last = video.casefold(), video.rpartition("/")[2].casefold()
        short, last_short = whole.rpartition(".")[0], last.rpartition(".")[0]
        for index, form in zip(indices, (video, whole, short, last, last_short), strict=True):
            index.setdefault(form, set()).add(video)
    return indices


def forms_of_name(name: str, folder: Path) -> list[str]:
    """List the forms that a name may have as a video's, the likeliest first."""
    plain = name
    if name.lower().startswith("file:") or "%" in name:
        plain = same_name(unquote(re.sub(r"(?i)^file:(//[^/]*)?", "", name)))
    forms: list[str] = []
    for form in dict.fromkeys((name, plain)):
        for root in dict.fromkeys((folder.absolute(), folder.resolve())):
            front = same_name(str(root)).rstrip("/") + "/"
            if form.startswith(front):
                forms.append(form.removeprefix(front))
        parts = [part for part in form.split("/") if part not in ("", ".")]
        forms += ["/".join(parts[first:]) for first in range(len(parts))]
    return list(dict.fromkeys(forms))


def meaning(forms: list[str], indices: list[dict[str, set[str]]]) -> str | None:
    """Return the only video that the forms of a name fit; None if there is none, or several."""
    for index in indices:
        for form in forms:
            fitting = index.get(form) or index.get(form.casefold()) or set()
            if len(fitting) == 1:
                return next(iter(fitting))
            if fitting:
                return None
    return None
