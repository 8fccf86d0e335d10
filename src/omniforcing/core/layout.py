"""The block table: the only source of spans, masks, sigmas per block and cache offsets.

A table is a first block and a cycle of following blocks, each counted in video and audio latents.
All times follow from it and from LTX-2's fixed rates. One second is 24 frames or 3 video latents,
and 16 000 samples (at the encoder), 100 mel frames or 25 audio latents. The first latent of each
stream covers a single frame.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from omniforcing.core.errors import OmniForcingError

FPS = 24
FRAMES_PER_LATENT = 8
VIDEO_LATENTS_PER_SECOND = 3
SAMPLE_RATE = 16_000
HOP = 160
MEL_RATE = SAMPLE_RATE // HOP  # mel frames per second
MEL_PER_LATENT = 4
AUDIO_LATENTS_PER_SECOND = 25


class LayoutError(OmniForcingError):
    """A block table or latent counts that do not fit the rates."""


@dataclass(frozen=True)
class Counts:
    """Number of latents of each stream."""

    video: int
    audio: int

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.video + other.video, self.audio + other.audio)


@dataclass(frozen=True)
class Span:
    """A half-open range of units of one stream."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def slice(self) -> slice:
        return slice(self.start, self.stop)


def join_spans(pieces: Iterable[tuple[Span, ...]]) -> list[tuple[Span, ...]]:
    """Join consecutive pieces, each one span per axis, that adjoin on every axis."""
    joined: list[tuple[Span, ...]] = []
    for piece in pieces:
        if joined and all(a.stop == b.start for a, b in zip(joined[-1], piece, strict=True)):
            joined[-1] = tuple(
                Span(a.start, b.stop) for a, b in zip(joined[-1], piece, strict=True)
            )
        else:
            joined.append(piece)
    return joined


def _first_single(latents: Span, per_latent: int) -> Span:
    """Span of frames of latents: latent 0 covers one frame, every other ``per_latent`` frames."""
    return Span(*(0 if n == 0 else 1 + per_latent * (n - 1) for n in (latents.start, latents.stop)))


def frames_of(latents: Span) -> Span:
    """Frames of a span of video latents: latent 0 is frame 0, latent n is frames 8n-7 to 8n."""
    return _first_single(latents, FRAMES_PER_LATENT)


def mel_of(latents: Span) -> Span:
    """Mel frames of a span of audio latents: latent 0 is frame 0, n is frames 4n-3 to 4n."""
    return _first_single(latents, MEL_PER_LATENT)


def samples_of(mel: Span, rate: int = SAMPLE_RATE) -> Span:
    """Samples at ``rate`` Hz of a span of mel frames; frame 0, centred on sample 0, has none."""
    hop = rate // MEL_RATE
    return Span(*(hop * max(0, m - 1) for m in (mel.start, mel.stop)))


def clip_latents(seconds: int) -> Counts:
    """Number of latents of a clip of K seconds: 1+3K video, 1+25K audio."""
    return Counts(1 + VIDEO_LATENTS_PER_SECOND * seconds, 1 + AUDIO_LATENTS_PER_SECOND * seconds)


def clip_frames(seconds: int) -> int:
    """Number of frames of a clip of K seconds: 1+24K."""
    return 1 + FPS * seconds


def clip_samples(seconds: int) -> int:
    """Number of samples of a clip of K seconds: 16000K."""
    return SAMPLE_RATE * seconds


def clip_seconds(counts: Counts) -> int:
    """Length K of a clip in whole seconds.

    Raises:
        LayoutError: if the counts are not 1+3K video and 1+25K audio latents with one K >= 1.
    """
    video, rest_v = divmod(counts.video - 1, VIDEO_LATENTS_PER_SECOND)
    audio, rest_a = divmod(counts.audio - 1, AUDIO_LATENTS_PER_SECOND)
    if rest_v or video < 1:
        raise LayoutError(
            "layout.partial-second",
            f"{counts.video} video latents are not 1+3K for any K >= 1 seconds; "
            "check the frame count (1+24K)",
        )
    if rest_a or audio < 1:
        raise LayoutError(
            "layout.partial-second",
            f"{counts.audio} audio latents are not 1+25K for any K >= 1 seconds; "
            "check the sample count (16000K)",
        )
    if video != audio:
        raise LayoutError(
            "layout.unequal-lengths",
            f"{counts.video} video latents last {video} s but {counts.audio} audio latents last "
            f"{audio} s; "
            f"{clip_latents(video).audio} audio latents would fit the video",
        )
    return video


@dataclass(frozen=True)
class Block:
    """One unit of generation: number in the stream, from 0, and spans of latents."""

    index: int
    video: Span
    audio: Span

    @property
    def frames(self) -> Span:
        """Frames that the video latents decode to."""
        return frames_of(self.video)

    @property
    def mel(self) -> Span:
        """Mel frames that the audio latents decode to."""
        return mel_of(self.audio)

    @property
    def samples(self) -> Span:
        """Samples that the audio latents decode to, at the encoder's rate."""
        return samples_of(self.mel)

    @property
    def counts(self) -> Counts:
        """Number of latents of each stream."""
        return Counts(len(self.video), len(self.audio))

    @property
    def seconds(self) -> tuple[float, float]:
        """Start and end of its frames in the stream, seconds."""
        return self.frames.start / FPS, self.frames.stop / FPS

    def tokens(self, spatial: int, sinks: int = 0) -> tuple[Span, Span]:
        """Spans of its video and audio tokens.

        Args:
            spatial: tokens per video latent.
            sinks: number of sink tokens, which stand before audio latent 0 and belong to block 0.
        """
        return (
            Span(self.video.start * spatial, self.video.stop * spatial),
            Span(self.audio.start + (sinks if self.index else 0), self.audio.stop + sinks),
        )


@dataclass(frozen=True)
class BlockTable:
    """A first block, then a cycle of blocks that repeats without end.

    Attributes:
        first: latents of block 0.
        cycle: latents of the blocks after it.

    Raises:
        LayoutError: if a block lacks a latent of either stream, the streams drift apart, or the
            audio of a block ends a whole latent or more away from its video.
    """

    first: Counts
    cycle: tuple[Counts, ...]

    def __post_init__(self) -> None:
        for name, counts in [
            ("first block", self.first),
            *((f"cycle block {i}", c) for i, c in enumerate(self.cycle)),
        ]:
            if counts.video < 1 or counts.audio < 1:
                raise LayoutError(
                    "layout.empty-block",
                    f"{name} has {counts.video} video and {counts.audio} audio latents; "
                    "both need at least 1",
                )
        if not self.cycle:
            raise LayoutError(
                "layout.empty-cycle", "the cycle is empty: name at least one block after the first"
            )
        total = sum(self.cycle, Counts(0, 0))
        if total.video * AUDIO_LATENTS_PER_SECOND != total.audio * VIDEO_LATENTS_PER_SECOND:
            fitting = total.video * AUDIO_LATENTS_PER_SECOND / VIDEO_LATENTS_PER_SECOND
            raise LayoutError(
                "layout.drifting-streams",
                f"a cycle of {total.video} video latents needs {fitting:g} audio latents, "
                f"found {total.audio}: "
                "the streams would drift apart",
            )
        for block in self.blocks(1 + len(self.cycle)):
            due = (block.video.stop - 1) * AUDIO_LATENTS_PER_SECOND / VIDEO_LATENTS_PER_SECOND
            if abs(block.audio.stop - 1 - due) >= 1:
                raise LayoutError(
                    "layout.drifting-streams",
                    f"block {block.index} ends at video latent {block.video.stop}, where "
                    f"{1 + due:g} audio latents are due, but at audio latent {block.audio.stop}",
                )

    # --- blocks ---

    def counts(self, index: int) -> Counts:
        """Number of latents of block ``index``."""
        return self.first if index == 0 else self.cycle[(index - 1) % len(self.cycle)]

    def block(self, index: int) -> Block:
        """Return block ``index``, from 0, with its absolute spans."""
        if index < 0:
            raise LayoutError(
                "layout.no-such-block", f"block {index} does not exist: blocks are counted from 0"
            )
        return _block(self, index)

    def blocks(self, count: int) -> tuple[Block, ...]:
        """Return the first ``count`` blocks."""
        return tuple(self.block(i) for i in range(count))

    def total(self, count: int) -> Counts:
        """Number of latents of the first ``count`` blocks."""
        return (
            Counts(0, 0)
            if count == 0
            else Counts(self.block(count - 1).video.stop, self.block(count - 1).audio.stop)
        )

    def count_for(self, latents: Counts) -> int:
        """Number of blocks that hold exactly these latents.

        Raises:
            LayoutError: if either stream ends inside a block.
        """
        count = 0
        for block in self:
            if block.video.stop > latents.video or block.audio.stop > latents.audio:
                break
            count = block.index + 1
        total = self.total(count)
        if total != latents:
            name, found, whole = (
                ("video", latents.video, total.video)
                if total.video != latents.video
                else ("audio", latents.audio, total.audio)
            )
            raise LayoutError(
                "layout.partial-block",
                f"{found} {name} latents do not fill whole blocks: {count} blocks hold {whole}",
            )
        return count

    def blocks_for_seconds(self, seconds: float) -> int:
        """Smallest number of blocks whose picture lasts at least ``seconds``, above 0."""
        if seconds <= 0:
            raise LayoutError(
                "layout.no-time",
                f"a stream of {seconds:g} seconds is not possible: ask for more than 0",
            )
        return next(
            block.index + 1 for block in self if block.frames.stop - 1 >= seconds * FPS - 1e-9
        )

    def __iter__(self) -> Iterator[Block]:
        index = 0
        while True:
            yield self.block(index)
            index += 1

    # --- latents ---

    def video_owner(self, count: int) -> tuple[int, ...]:
        """Index of the block of each video latent, for the first ``count`` blocks."""
        return tuple(block.index for block in self.blocks(count) for _ in range(len(block.video)))

    def audio_owner(self, count: int) -> tuple[int, ...]:
        """Index of the block of each audio latent, for the first ``count`` blocks."""
        return tuple(block.index for block in self.blocks(count) for _ in range(len(block.audio)))

    # --- visibility ---

    def visible(self, index: int, window: int | None = None) -> tuple[int, ...]:
        """Indices of the blocks that block ``index`` sees: prefix, past blocks, itself.

        Args:
            index: the block.
            window: number of past blocks besides the prefix; None for all.
        """
        if window is not None and window < 1:
            raise LayoutError(
                "layout.window-too-small",
                f"a window of {window} blocks sees nothing: the least is 1",
            )
        oldest = 1 if window is None else max(1, index - window)
        return (0, *range(oldest, index + 1)) if index else (0,)

    def position(self, index: int, horizon: int) -> int:
        """Index of the block whose rotary position block ``index`` takes.

        Up to ``horizon``, the last block of a training clip, that is the block itself; then the
        last block at or before the horizon with the same place in the cycle. In an endless stream
        the present block therefore stays at the horizon, the window lies just before it and the
        prefix keeps its own position, so that no distance between tokens, and no phase against a
        sink, exceeds those seen in training.
        """
        return index if index <= horizon else horizon - (horizon - index) % len(self.cycle)

    def seen_at(self, index: int, past: int, horizon: int) -> int:
        """Index of the block whose position a past block takes when block ``index`` looks at it."""
        return 0 if past == 0 else self.position(index, horizon) - (index - past)

    def check_window(self, window: int, horizon: int) -> None:
        """Refuse a window that reaches the prefix's position once a stream is past the horizon.

        Raises:
            LayoutError: if the window does not fit; names the largest that does.
        """
        most = horizon - len(self.cycle)
        if not 1 <= window <= most:
            raise LayoutError(
                "layout.window-too-large",
                f"a window of {window} blocks does not fit a horizon of {horizon + 1} blocks: it "
                f"must be 1 to {most}; train on longer clips or narrow the window",
            )

    def ring(self, window: int) -> int:
        """Number of slots of a ring for ``window`` past blocks and the present one.

        Rounded up to whole cycles, so that a slot always holds blocks of one size.
        """
        return -(-(window + 1) // len(self.cycle)) * len(self.cycle)

    def slot(self, index: int, slots: int) -> Block:
        """Block whose spans are the place of block ``index`` in a cache.

        A cache holds block 0, then a ring of ``slots`` blocks; its slots lie where the first blocks
        of a stream do.

        Raises:
            LayoutError: if the ring does not hold whole cycles.
        """
        if slots % len(self.cycle):
            raise LayoutError(
                "layout.partial-cycle",
                f"a ring of {slots} blocks does not hold whole cycles of {len(self.cycle)} blocks",
            )
        return self.block(1 + (index - 1) % slots if index else 0)


@lru_cache(maxsize=1024)  # bounded: streams are endless
def _block(table: BlockTable, index: int) -> Block:
    # Closed form, so that block 100 000 of an endless stream costs as much as block 1.
    rounds, rest = divmod(max(0, index - 1), len(table.cycle))
    whole = sum(table.cycle, Counts(0, 0))
    start = Counts(0, 0)
    if index:
        start = sum(
            table.cycle[:rest], table.first + Counts(whole.video * rounds, whole.audio * rounds)
        )
    stop = start + table.counts(index)
    return Block(index, Span(start.video, stop.video), Span(start.audio, stop.audio))


LAYOUTS: dict[str, BlockTable] = {
    # The paper's: a prefix of one frame, then blocks of one second.
    "prefix": BlockTable(Counts(1, 1), (Counts(3, 25),)),
    # The authors' later layout: the prefix merged into the first second.
    "merged": BlockTable(Counts(4, 26), (Counts(3, 25),)),
    # Blocks of a third of a second; both streams end together at every whole second.
    "thirds": BlockTable(Counts(1, 1), (Counts(1, 8), Counts(1, 8), Counts(1, 9))),
}
