"""``omniforcing inspect``: table and contact sheet of shards, latents or trajectories."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omniforcing.core.errors import OmniForcingError
from omniforcing.core.files import MANIFEST, read_json_object
from omniforcing.data.tars import indices, read_tar, shard_form

MEMBERS = {
    "shards": frozenset({"mp4", "txt", "json"}),
    "latents": frozenset({"safetensors", "txt", "json"}),
    "trajectories": frozenset({"safetensors", "txt", "json"}),
}
SHOWN_CAPTIONS = 12
SHEET_CLIPS = 8
# Sizes of the contact sheet, pixels.
STRIP_WIDTH, TILE, BAND, TEXT, MARGIN = 960, 96, 80, 16, 8
RANGE = 3.0  # standard deviations at which a latent's colour saturates
Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Item:
    """Caption and JSON of a sample, for the table."""

    key: str
    caption: str
    info: dict[str, Any]


def inspect_folder(folder: Path, out: Path | None = None) -> str:
    """Read and check every sample of a folder.

    Args:
        folder: output folder of stage shards, latents or trajectories.
        out: contact sheet to write, of a few samples; None for none.

    Returns:
        The table, as text.

    Raises:
        OmniForcingError: if the folder is of another kind, a shard is damaged, or the sheet cannot
            be written.
    """
    kinds = f"the output folder of {', '.join(MEMBERS)}, or a clip"
    if not folder.is_dir():
        raise OmniForcingError("file.missing", f"{folder} does not exist; give {kinds}")
    if not (folder / MANIFEST).is_file():
        raise OmniForcingError(
            "data.wrong-folder",
            f"{folder} is no stage's output, it has no {MANIFEST}; give {kinds}",
        )
    manifest = read_json_object(folder / MANIFEST)
    kind = manifest.get("kind")
    if kind not in MEMBERS:
        raise OmniForcingError(
            "data.wrong-folder",
            f"{folder} holds {kind or 'something else'}; give {kinds}",
        )
    items = [
        Item(raw["__key__"], raw["txt"].decode(), json.loads(raw["json"]))
        for _, raw in _read(folder, kind)
    ]
    if out is not None:
        chosen = {
            items[i].key
            for i in np.linspace(0, len(items) - 1, min(SHEET_CLIPS, len(items)))
            .round()
            .astype(int)
        }
        _save(
            [
                _row(folder, kind, path, raw)
                for path, raw in _read(folder, kind)
                if raw["__key__"] in chosen
            ],
            out,
        )
    return "\n".join(_table(folder, kind, manifest, items))


def _read(folder: Path, kind: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    for path, index in indices(folder, kind).items():
        yield from ((path, raw) for raw in read_tar(path, index, MEMBERS[kind]))


# --- table ---


def _table(folder: Path, kind: str, manifest: dict[str, Any], items: list[Item]) -> Iterator[str]:
    form = manifest.get("form")
    yield f"{folder}: {kind}" + (
        f", {form['width']}x{form['height']}, {form['seconds']} s a clip" if form else ""
    )
    yield ""
    yield f"{'shard':<24}{'clips':>8}{'MB':>10}"
    for path, index in indices(folder, kind).items():
        yield f"{path.name:<24}{index['n']:>8}{index['bytes'] / 1e6:>10.2f}"
    total = sum(index["bytes"] for index in indices(folder, kind).values())
    yield f"{'total':<24}{len(items):>8}{total / 1e6:>10.2f}"
    seconds = sum(item.info.get("seconds", 0) for item in items)
    yield f"duration: {seconds} s ({seconds / 3600:.2f} h)"
    yield from _counted("sources", Counter(_source(item.info) for item in items))
    yield from _counted("captions", Counter(item.caption for item in items))
    yield from _tokens(manifest.get("tokens"))
    yield from _counted("rejects", Counter(manifest.get("reject_counts", {})))
    heard = [item.info["loudness"] for item in items if "loudness" in item.info]
    yield from _counted("sound", Counter(heard))
    near = manifest.get("near_duplicates", [])
    yield from _counted(
        "training clips that look like held-out clips",
        Counter(f"{pair['train']} like {pair['heldout']}" for pair in near),
    )


def _source(info: dict[str, Any]) -> str:
    if info.get("source") != "file":
        return str(info.get("source", "unknown"))
    picture = f"{info['width']}x{info['height']} at {info['fps']:g} fps"
    return f"{picture}, {info['rate']} Hz, {info['channels']} channels"


def _tokens(tokens: dict[str, Any] | None) -> Iterator[str]:
    """Say how the text encoder takes the captions; stage latents counts that."""
    if tokens is None:
        return
    longest, limit = tokens["longest"], tokens["limit"]
    yield f"longest caption: {longest} of the {limit} tokens that the text encoder takes"
    yield f"captions with unknown words: {tokens['captions_with_unknown_words']}"
    for word, count in Counter(tokens["unknown_words"]).most_common(SHOWN_CAPTIONS):
        yield f"{count:>8}  {word[:100]}"


def _counted(title: str, counts: Counter[str]) -> Iterator[str]:
    yield ""
    yield (
        f"{title}: {sum(counts.values())} ({len(counts)} different)" if counts else f"{title}: none"
    )
    for text, count in counts.most_common(SHOWN_CAPTIONS):
        yield f"{count:>8}  {text if len(text) <= 100 else text[:97] + '...'}"
    if len(counts) > SHOWN_CAPTIONS:
        yield f"{'...':>8}  and {len(counts) - SHOWN_CAPTIONS} more"


# --- contact sheet ---


def _row(folder: Path, kind: str, path: Path, raw: dict[str, Any]) -> tuple[str, Image]:
    """Draw a sample: heading and picture ``[h, STRIP_WIDTH, 3]``; time runs from left to right."""
    parts = _media(folder, path, raw) if kind == "shards" else _heat(raw)
    gap = np.full((2, STRIP_WIDTH, 3), 255, np.uint8)
    return f"{path.stem}/{raw['__key__']}  {raw['txt'].decode()}", np.concatenate(
        [parts[0], gap, parts[1]]
    )


def _media(folder: Path, path: Path, raw: dict[str, Any]) -> tuple[Image, Image]:
    """Draw frames above the log-mel spectrogram, each frame at the middle of its time."""
    import torch

    from omniforcing.data.shards import decode_media
    from omniforcing.media.mel import FLOOR, log_mel

    media = decode_media(shard_form(folder), path, raw)
    height, width = media.video.shape[1:3]
    tiles = max(1, round(STRIP_WIDTH / (TILE * width / height)))
    moments = ((np.arange(tiles) + 0.5) / tiles * (len(media.video) - 1)).round().astype(int)
    frames = np.concatenate(list(media.video[moments]), 1)
    mel = log_mel(torch.from_numpy(media.audio)[None])[0].mean(0).numpy().T
    sound = _coloured(mel[::-1], float(np.log(FLOOR)), 1.0, "magma")
    return _scaled(frames, round(STRIP_WIDTH / tiles * height / width)), _scaled(sound, BAND)


def _heat(raw: dict[str, Any]) -> tuple[Image, Image]:
    """Draw latents as heat maps.

    A column per latent; a row per channel and place of the picture, and per channel of the sound.
    """
    from safetensors.torch import load

    stored = load(raw["safetensors"])
    # Trajectories have a leading dimension of sigmas: the last is the clean end.
    video = stored["video"][-1] if stored["video"].ndim == 5 else stored["video"]
    audio = stored["audio"][-1] if stored["audio"].ndim == 3 else stored["audio"]

    def heat(rows: NDArray[Any]) -> Image:
        return _scaled(_coloured(rows, -RANGE, RANGE, "RdBu_r"), BAND)

    picture = video.float().movedim(1, -1).flatten(0, -2).numpy()
    return heat(picture), heat(audio.float().T.numpy())


def _coloured(values: NDArray[Any], low: float, high: float, name: str) -> Image:
    from matplotlib import colormaps

    colours: Image = colormaps[name]((values - low) / (high - low), bytes=True)[..., :3]
    return colours


def _scaled(picture: Image, height: int) -> Image:
    from PIL import Image as pil

    return np.asarray(
        pil.fromarray(np.ascontiguousarray(picture)).resize(
            (STRIP_WIDTH, height), pil.Resampling.BOX
        )
    )


def _save(rows: list[tuple[str, Image]], out: Path) -> None:
    from PIL import Image as pil
    from PIL import ImageDraw

    height = MARGIN + sum(TEXT + picture.shape[0] + MARGIN for _, picture in rows)
    sheet = pil.new("RGB", (STRIP_WIDTH + 2 * MARGIN, height), "white")
    draw, top = ImageDraw.Draw(sheet), MARGIN
    for heading, picture in rows:
        draw.text((MARGIN, top), heading, fill="black")
        sheet.paste(pil.fromarray(picture), (MARGIN, top + TEXT))
        top += TEXT + picture.shape[0] + MARGIN
    try:
        sheet.save(out, "png")
    except OSError as error:
        raise OmniForcingError(
            "file.cannot-write",
            f"contact sheet {out} cannot be written ({error.strerror}); choose another place",
        ) from error
