"""Clips to latents: one latent shard per clip shard, and every caption's text features once."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from omniforcing.codec.codec import Codec
from omniforcing.data.shards import MEMBERS, decode_media, shard_form
from omniforcing.data.tars import indices, read_tar
from omniforcing.data.tensors import commit_shards, from_tokens, to_sample, write_text
from omniforcing.latents import Pair
from omniforcing.layout import Counts, clip_seconds
from omniforcing.text.encoder import TextEncoder


def encode_shards(shards: Path, folder: Path, work: Path, codec: Codec, encoder: TextEncoder, batch: int) -> dict[str, Any]:
    """Encode every clip of ``shards`` into ``folder``; finished shards in ``work`` are not made again.

    Raises:
        LayoutError: if a clip does not give exactly 1+3K video and 1+25K audio latents.
        OmniForcingError: if a shard is damaged.
    """
    found = indices(shards, "shards")
    grid = codec.spatial(codec.height, codec.width)
    captions: set[str] = set()
    with tqdm(total=sum(index["n"] for index in found.values()), desc="latents", unit="clip") as progress:

        def samples(path: Path, index: dict[str, Any]) -> Iterator[dict[str, Any]]:
            raw, form = read_tar(path, index, MEMBERS), shard_form(shards)
            while part := list(islice(raw, batch)):
                media = [decode_media(form, path, sample) for sample in part]
                latents = codec.encode(
                    Pair(*(torch.stack([torch.as_tensor(x) for x in each]) for each in zip(*media, strict=True)))
                ).to("cpu")
                clip_seconds(Counts(latents.video.shape[1], latents.audio.shape[1]))
                for i, sample in enumerate(part):
                    tensors = from_tokens(latents.map(lambda z, i=i: z[i]), grid)
                    yield to_sample(sample["__key__"], tensors, sample["txt"].decode(), sample["json"])
                progress.update(len(part))

        commit_shards(work, folder, "latents", grid, {path.stem: samples(path, index) for path, index in found.items()})
    for path, index in found.items():
        captions |= {sample["txt"].decode() for sample in read_tar(path, index, MEMBERS)}
    write_text(folder, encoder, sorted(captions))
    return {"clips": sum(index["n"] for index in found.values()), "captions": len(captions)}
