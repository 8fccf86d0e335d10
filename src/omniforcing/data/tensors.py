"""Shards of tensors: WebDataset tars of latents or trajectories with captions.

A sample holds a ``.safetensors``, a ``.txt`` (caption) and a ``.json``. Text features are stored
once per caption beside the tars, in files of few rows, because LTX-2's take 30 MB a caption: row i
belongs to entry i of ``captions.json``, the empty caption first; ``text-00000.safetensors`` holds
the first ``ROWS`` rows of both streams, and so on.
"""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from omniforcing.codec.text import TextEncoder
from omniforcing.core.distributed import local_rows
from omniforcing.core.errors import OmniForcingError
from omniforcing.core.files import MANIFEST, atomic_write, read_json, write_json, write_manifest
from omniforcing.core.latents import Batch, Latents, TextFeatures
from omniforcing.core.layout import Counts
from omniforcing.core.pair import Pair
from omniforcing.core.random import step_seed
from omniforcing.data.tars import indices, read_tar, write_tar

MEMBERS = frozenset({"safetensors", "txt", "json"})
CAPTIONS_FILE = "captions.json"
ROWS = 64  # of a file
STREAMS = ("video", "audio")


def to_sample(
    key: str, tensors: dict[str, Tensor], caption: str, info: dict[str, Any]
) -> dict[str, Any]:
    """Build a sample for ``tars.write_tar``."""
    return {
        "__key__": key,
        "safetensors": save({k: v.contiguous() for k, v in tensors.items()}),
        "txt": caption,
        "json": info,
    }


def is_done(work: Path, name: str) -> bool:
    """Whether ``work`` holds a shard with its index."""
    return all((work / f"{name}{suffix}").is_file() for suffix in (".tar", ".json"))


def write_shard(work: Path, name: str, samples: Iterable[dict[str, Any]]) -> None:
    """Write one shard with its index into ``work``."""
    write_tar(work / f"{name}.tar", samples, {"split": name.rpartition("-")[0]})


def commit_shards(
    work: Path,
    folder: Path,
    kind: str,
    grid: tuple[int, int],
    shards: Iterable[str],
    told: dict[str, Any] | None = None,
) -> None:
    """Move finished shards from ``work`` into ``folder`` and write its manifest.

    Args:
        work: folder of finished shards.
        folder: output folder of the stage.
        kind: stage: latents or trajectories.
        grid: rows and columns of a video latent.
        shards: names of the shards.
        told: further entries of the manifest.

    Raises:
        OmniForcingError: if a shard is missing; none is moved then.
    """
    shards = list(shards)
    missing = [name for name in shards if not is_done(work, name)]
    if missing:
        raise OmniForcingError(
            "cluster.no-shared-storage",
            f"shard {missing[0]} is not in {work} though its worker wrote it; "
            "the data must lie on storage that all nodes share",
        )
    for name in shards:
        for suffix in (".tar", ".json"):
            (work / f"{name}{suffix}").replace(folder / f"{name}{suffix}")
    write_manifest(folder, {"kind": kind, "grid": grid, **(told or {})})


def text_file(number: int) -> str:
    """Name of the file with rows from ``number * ROWS`` on."""
    return f"text-{number:05d}.safetensors"


def write_text(
    folder: Path,
    encoder: TextEncoder,
    captions: Sequence[str],
    done: Callable[[int], object] = lambda _: None,
) -> None:
    """Write features of every distinct caption; a later call goes on from the files that are there.

    Args:
        folder: folder to write into.
        encoder: the text encoder; it says how many captions it takes at once.
        captions: the captions.
        done: called with the number of captions that have been written since.
    """
    distinct = ["", *sorted(set(captions) - {""})]
    for number, first in enumerate(range(0, len(distinct), ROWS)):
        path, rows = folder / text_file(number), distinct[first : first + ROWS]
        if not path.is_file():
            parts = [
                encoder.encode(rows[i : i + encoder.at_once]).to("cpu")
                for i in range(0, len(rows), encoder.at_once)
            ]
            whole = {name: torch.cat([getattr(part, name) for part in parts]) for name in STREAMS}
            atomic_write(path, save(whole))
        done(len(rows))
    write_json(folder / CAPTIONS_FILE, distinct)


def place_text(source: Path, folder: Path, place: Callable[[Path, Path], object]) -> None:
    """Put the text features of a folder into another.

    Args:
        source: folder that ``write_text`` filled.
        folder: the other.
        place: ``shutil.copyfile`` to copy, ``Path.replace`` to move.
    """
    for path in (*sorted(source.glob("text-*.safetensors")), source / CAPTIONS_FILE):
        place(path, folder / path.name)


def copy_text(source: Path, folder: Path) -> None:
    """Copy the text features of another folder."""
    place_text(source, folder, shutil.copyfile)


@dataclass(frozen=True)
class TextTable:
    """Stored text features, read when they are asked for.

    Attributes:
        folder: folder that ``write_text`` filled.
        captions: row of each caption.
    """

    folder: Path
    captions: dict[str, int]

    @classmethod
    def load(cls, folder: Path) -> TextTable:
        """Open what ``write_text`` wrote.

        Raises:
            OmniForcingError: if files are missing or do not belong together.
        """
        captions = read_json(folder / CAPTIONS_FILE)
        table = cls(folder, {caption: row for row, caption in enumerate(captions)})
        files = len(list(folder.glob("text-*.safetensors")))
        last, rest = divmod(len(captions) - 1, ROWS)
        found = table._read(last, [])[1] if files == last + 1 else None
        if found != rest + 1:
            raise OmniForcingError(
                "data.stale-text",
                f"{folder} has {files} files of text features that do not belong to its "
                f"{len(captions)} captions; run stage latents again",
            )
        return table

    def __len__(self) -> int:
        return len(self.captions)

    @property
    def unconditional(self) -> TextFeatures:
        """Features of the empty caption, ``[1, L, D]``."""
        return self.of([""])

    def of(self, captions: Sequence[str]) -> TextFeatures:
        """Return features ``[B, L, D]`` of captions.

        Raises:
            OmniForcingError: if a caption was not encoded.
        """
        unknown = [c for c in captions if c not in self.captions]
        if unknown:
            raise OmniForcingError(
                "data.unknown-caption",
                f"caption {unknown[0]!r} has no stored features; "
                "run the latents stage on these clips",
            )
        return self.rows(torch.tensor([self.captions[c] for c in captions]))

    def rows(self, places: Tensor) -> TextFeatures:
        """Return features ``[B, L, D]`` of rows ``[B]``, on the CPU."""
        wanted: dict[int, list[int]] = defaultdict(list)
        for place in dict.fromkeys(places.tolist()):
            wanted[place // ROWS].append(place)
        read: dict[int, TextFeatures] = {}
        for number, own in wanted.items():
            features, _ = self._read(number, [place % ROWS for place in own])
            read |= dict(zip(own, features, strict=True))
        return Pair(
            *(
                torch.stack([getattr(read[place], name) for place in places.tolist()])
                for name in STREAMS
            )
        )

    def _read(self, number: int, rows: list[int]) -> tuple[list[TextFeatures], int]:
        """Rows of a file, each ``[L, D]``, and how many the file has."""
        path = self.folder / text_file(number)
        try:
            with safe_open(path, "pt", backend="pread") as file:
                slices = [file.get_slice(name) for name in STREAMS]
                features = [Pair(*(each[row] for each in slices)) for row in rows]
                return features, slices[0].get_shape()[0]
        except (OSError, SafetensorError) as error:
            raise OmniForcingError(
                "file.unreadable", f"{path} cannot be read ({error}); run stage latents again"
            ) from error


def to_tokens(video: Tensor, audio: Tensor) -> Latents:
    """Convert stored latents to the model's tokens.

    Args:
        video: ``[..., C, T, H, W]``.
        audio: ``[..., T, C]``.

    Returns:
        Video ``[..., T, S, C]`` with S = H W, audio ``[..., T, C]``, both float32.
    """
    return Pair(video.flatten(-2).movedim(-3, -1).float(), audio.float())


def from_tokens(latents: Latents, grid: tuple[int, int]) -> dict[str, Tensor]:
    """Convert the model's tokens to stored latents, by name; inverse of ``to_tokens``."""
    return {"video": latents.video.movedim(-1, -3).unflatten(-1, grid), "audio": latents.audio}


class TensorShards:
    """Reader of one split of a folder of tensor shards.

    Args:
        folder: output folder of stage latents or trajectories.
        split: ``train``, ``heldout`` or ``duets``.
        expected: latents per sample; a sample with other counts is refused.
    """

    def __init__(self, folder: Path, split: str, expected: Counts) -> None:
        self.folder, self.expected = folder, expected
        manifest = read_json(folder / MANIFEST)
        self.shards = indices(folder, manifest.get("kind", ""), split)
        self.grid: tuple[int, int] = tuple(manifest["grid"])
        self.text = TextTable.load(folder)

    def __len__(self) -> int:
        return sum(index["n"] for index in self.shards.values())

    def batches(self, size: int, count: int, seed: int, epoch: int) -> Iterator[Batch]:
        """Yield shuffled batches of an epoch, a function of seed and epoch alone.

        Each of the processes that train together gets its own rows of the same batches, and decodes
        no others.

        Args:
            size: samples per batch, all processes together.
            count: number of batches; samples repeat if the split has fewer.
            seed: seed of the run.
            epoch: number of the epoch.
        """
        import webdataset as wds

        shuffle = step_seed(seed, epoch, "batches")
        rounds = 1 + size * count // len(self)
        order = torch.Generator().manual_seed(shuffle)
        paths = list(self.shards)
        urls = [
            str(paths[i])
            for _ in range(rounds)
            for i in torch.randperm(len(paths), generator=order).tolist()
        ]
        pipeline = wds.DataPipeline(
            wds.SimpleShardList(urls),
            wds.tarfile_to_samples(),
            wds.detshuffle(bufsize=1024, initial=256, seed=shuffle),
        )
        samples, own = iter(pipeline), local_rows(size)
        for _ in range(count):
            batch = list(islice(samples, size))[own.first : own.last]
            yield self._collate([self._decode(raw) for raw in batch])

    def samples(self) -> Iterator[tuple[str, Latents, str, dict[str, Any]]]:
        """Yield every sample once, in order: key, latents without batch, caption, JSON."""
        for path, index in self.shards.items():
            for raw in read_tar(path, index, MEMBERS):
                yield raw["__key__"], *self._decode(raw)

    def _decode(self, raw: dict[str, Any]) -> tuple[Latents, str, dict[str, Any]]:
        stored = load(raw["safetensors"])
        latents = to_tokens(stored["video"], stored["audio"])
        found = Counts(latents.video.shape[-3], latents.audio.shape[-2])
        if found != self.expected:
            raise OmniForcingError(
                "data.wrong-length",
                f"{self.folder}, sample {raw['__key__']}: {found.video} video and "
                f"{found.audio} audio latents, expected "
                f"{self.expected.video} and {self.expected.audio}; encode the clips again",
            )
        return latents, raw["txt"].decode(), json.loads(raw["json"])

    def _collate(self, samples: list[tuple[Latents, str, dict[str, Any]]]) -> Batch:
        video = torch.stack([latents.video for latents, _, _ in samples])
        audio = torch.stack([latents.audio for latents, _, _ in samples])
        return Batch(Pair(video, audio), self.text.of([caption for _, caption, _ in samples]))
