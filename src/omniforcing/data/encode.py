"""Clips to latents: one latent shard per clip shard, and every caption's text features once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from omniforcing.codec.codec import DESCRIPTION, Codec
from omniforcing.codec.text import TextEncoder
from omniforcing.core.files import read_json
from omniforcing.core.latents import Pair
from omniforcing.core.layout import Counts, clip_seconds
from omniforcing.data.shards import MEMBERS, decode_media, shard_form
from omniforcing.data.tars import indices, read_tar
from omniforcing.data.tensors import (
    commit_shards,
    from_tokens,
    is_done,
    to_sample,
    write_shard,
    write_text,
)
from omniforcing.data.work import Done, Runner, in_process


@dataclass(frozen=True)
class EncodingTask:
    """A shard of clips to encode, with its index."""

    path: Path
    index: dict[str, Any]


class Encoder:
    """Worker that holds a codec and encodes shards of clips into ``work``."""

    def __init__(self, shards: Path, work: Path, codec: Path, device: str, batch: int) -> None:
        self.shards, self.work, self.batch = shards, work, batch
        self.codec = Codec.load(codec, device)
        self.grid = self.codec.token_grid(self.codec.height, self.codec.width)

    def __call__(self, task: EncodingTask, done: Done) -> None:
        if not is_done(self.work, task.path.stem):
            write_shard(self.work, task.path.stem, self._samples(task, done))

    def _samples(self, task: EncodingTask, done: Done) -> Iterator[dict[str, Any]]:
        raw, form = read_tar(task.path, task.index, MEMBERS), shard_form(self.shards)
        while part := list(islice(raw, self.batch)):
            media = [decode_media(form, task.path, sample) for sample in part]
            latents = self.codec.encode(
                Pair(
                    *(
                        torch.stack([torch.as_tensor(x) for x in each])
                        for each in zip(*media, strict=True)
                    )
                )
            ).to("cpu")
            clip_seconds(Counts(latents.video.shape[1], latents.audio.shape[1]))
            for i, sample in enumerate(part):
                tensors = from_tokens(latents.map(lambda z, i=i: z[i]), self.grid)
                yield to_sample(sample["__key__"], tensors, sample["txt"].decode(), sample["json"])
            done(len(part))


class CaptionEncoder:
    """Worker that holds a text encoder and writes the features of captions into a folder."""

    def __init__(self, codec: Path, device: str) -> None:
        self.encoder = TextEncoder.load(codec / "text", device)

    def __call__(self, task: tuple[Path, list[str]], _done: Done) -> None:
        write_text(task[0], self.encoder, task[1])


def encode_shards(
    shards: Path,
    folder: Path,
    work: Path,
    codec: Path,
    device: str,
    batch: int,
    run: Runner = in_process,
) -> dict[str, Any]:
    """Encode all clips and captions of a shard folder, with a progress bar.

    Args:
        shards: output folder of stage shards.
        folder: folder to fill.
        work: folder of finished shards; a later call goes on from what it holds.
        codec: folder of the codec, with the text encoder in ``text/``.
        device: device of each worker's codec.
        batch: clips encoded at a time.
        run: runs the work in this process, or on a cluster that sees all folders under the same
            paths.

    Returns:
        Numbers of clips and of distinct captions.

    Raises:
        LayoutError: if a clip does not give exactly 1+3K video and 1+25K audio latents.
        OmniForcingError: if a shard is damaged.
    """
    found = indices(shards, "shards")
    missing = [
        EncodingTask(path, index) for path, index in found.items() if not is_done(work, path.stem)
    ]
    total, left = (
        sum(index["n"] for index in found.values()),
        sum(task.index["n"] for task in missing),
    )
    with tqdm(total=total, initial=total - left, desc="latents", unit="clip") as progress:
        run(partial(Encoder, shards, work, codec, device, batch), missing, progress.update)
    grid = tuple(read_json(codec / DESCRIPTION)["grid"])
    commit_shards(work, folder, "latents", grid, [path.stem for path in found])
    captions: set[str] = set()
    for path, index in found.items():
        captions |= {sample["txt"].decode() for sample in read_tar(path, index, MEMBERS)}
    run(partial(CaptionEncoder, codec, device), [(folder, sorted(captions))], lambda _: None)
    return {"clips": total, "captions": len(captions)}
