"""Clips to latents: one latent shard per clip shard, and every caption's text features once."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from omniforcing.codec.codec import DESCRIPTION, Codec
from omniforcing.codec.text import TextEncoder, text_precision
from omniforcing.codec.tokens import PromptTokenizer, TokenCount
from omniforcing.core.files import read_json
from omniforcing.core.layout import Counts, clip_seconds
from omniforcing.core.pair import Pair
from omniforcing.data.rejects import Reject, refuse_share, summary
from omniforcing.data.shards import MEMBERS, decode_media, read_raw
from omniforcing.data.tars import indices, read_tar, shard_form
from omniforcing.data.tensors import (
    commit_shards,
    from_tokens,
    is_done,
    place_text,
    to_sample,
    write_shard,
    write_text,
)
from omniforcing.data.work import Done, Runner, in_process

MOST_WORDS = 20  # unknown words that a manifest lists


@dataclass(frozen=True)
class CaptionSurvey:
    """How a text encoder takes the captions of clips.

    Attributes:
        counts: tokens of each distinct caption.
        rejects: clips whose caption would be cut.
    """

    counts: dict[str, TokenCount]
    rejects: list[Reject]

    @property
    def too_long(self) -> frozenset[str]:
        """Captions that would be cut."""
        return frozenset(caption for caption, count in self.counts.items() if count.lost)

    @property
    def kept(self) -> list[str]:
        """Captions that fit, sorted."""
        return sorted(self.counts.keys() - self.too_long)

    def summary(self) -> dict[str, Any]:
        """Return figures of the kept captions for a manifest, with the rejects."""
        counts = [self.counts[caption] for caption in self.kept]
        words = Counter(word for count in counts for word in count.unknown)
        tokens = {
            "limit": max((count.limit for count in counts), default=0),
            "longest": max((count.tokens for count in counts), default=0),
            "captions_with_unknown_words": sum(bool(count.unknown) for count in counts),
            "unknown_words": dict(sorted(words.most_common(MOST_WORDS))),
        }
        return {"tokens": tokens, **summary(self.rejects)}


def survey_captions(
    shards: Path, tokenizer: PromptTokenizer, max_reject_share: float
) -> CaptionSurvey:
    """Count the tokens of all captions, before anything costly is done with their clips.

    Args:
        shards: output folder of stage shards.
        tokenizer: tokenizer of the text encoder.
        max_reject_share: share of the clips whose caption may be too long.

    Raises:
        OmniForcingError: if more of them would be cut, or a shard is damaged.
    """
    counts: dict[str, TokenCount] = {}
    rejects: list[Reject] = []
    clips = 0
    for _, sample in read_raw(shards):
        caption, info = sample["txt"].decode(), json.loads(sample["json"])
        clips += 1
        if caption not in counts:
            counts[caption] = tokenizer.count(caption)
        if counts[caption].lost:
            detail = f"the caption has {counts[caption].excess}"
            name = str(info.get("name", "a clip"))
            rejects.append(Reject(name, info.get("start"), "caption too long", detail))
    refuse_share(rejects, clips - len(rejects), max_reject_share, "clips")
    return CaptionSurvey(counts, rejects)


@dataclass(frozen=True)
class EncodingTask:
    """A shard of clips to encode, with its index."""

    path: Path
    index: dict[str, Any]


class Encoder:
    """Worker that holds a codec and encodes shards of clips into ``work``.

    Clips with one of the captions ``too_long`` are left out.
    """

    def __init__(
        self,
        shards: Path,
        work: Path,
        codec: Path,
        device: str,
        batch: int,
        too_long: frozenset[str] = frozenset(),
    ) -> None:
        self.shards, self.work, self.batch, self.too_long = shards, work, batch, too_long
        self.codec = Codec.load(codec, device)
        self.grid = self.codec.token_grid(self.codec.height, self.codec.width)

    def __call__(self, task: EncodingTask, done: Done) -> None:
        if not is_done(self.work, task.path.stem):
            write_shard(self.work, task.path.stem, self._samples(task, done))

    def _samples(self, task: EncodingTask, done: Done) -> Iterator[dict[str, Any]]:
        raw, form = read_tar(task.path, task.index, MEMBERS), shard_form(self.shards)
        while read := list(islice(raw, self.batch)):
            part = [sample for sample in read if sample["txt"].decode() not in self.too_long]
            done(len(read) - len(part))
            if not part:
                continue
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
    """Worker that holds a text encoder and writes the features of captions into ``work``."""

    def __init__(self, work: Path, codec: Path, device: str) -> None:
        text = codec / "text"
        self.work, self.encoder = work, TextEncoder.load(text, device, text_precision(text))

    def __call__(self, captions: list[str], done: Done) -> None:
        write_text(self.work, self.encoder, captions, done)


def encode_shards(
    shards: Path,
    folder: Path,
    work: Path,
    codec: Path,
    device: str,
    batch: int,
    max_reject_share: float,
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
        max_reject_share: share of the clips whose captions may be too long for the text encoder.
        run: runs the work in this process, or on a cluster that sees all folders under the same
            paths.

    Returns:
        Numbers of clips, of distinct captions, of those with words that the text encoder has never
        seen, and of clips left out because their caption is too long.

    Raises:
        LayoutError: if a clip does not give exactly 1+3K video and 1+25K audio latents.
        OmniForcingError: if a shard is damaged, or too many captions would be cut.
    """
    found = indices(shards, "shards")
    survey = survey_captions(shards, PromptTokenizer.load(codec / "text"), max_reject_share)
    missing = [
        EncodingTask(path, index) for path, index in found.items() if not is_done(work, path.stem)
    ]
    total, left = (
        sum(index["n"] for index in found.values()),
        sum(task.index["n"] for task in missing),
    )
    with tqdm(total=total, initial=total - left, desc="latents", unit="clip") as progress:
        build = partial(Encoder, shards, work, codec, device, batch, survey.too_long)
        run(build, missing, progress.update)
    grid = tuple(read_json(codec / DESCRIPTION)["grid"])
    told = survey.summary()
    with tqdm(total=len({"", *survey.kept}), desc="captions", unit="caption") as progress:
        run(partial(CaptionEncoder, work, codec, device), [survey.kept], progress.update)
    place_text(work, folder, Path.replace)  # before the manifest, which counts all files
    commit_shards(work, folder, "latents", grid, [path.stem for path in found], told)
    return {
        "clips": total - len(survey.rejects),
        "captions": len(survey.kept),
        "captions_with_unknown_words": told["tokens"]["captions_with_unknown_words"],
        "rejected": len(survey.rejects),
    }
