"""The block table, for the shipped layouts and for any legal one."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from omniforcing.core.layout import (
    AUDIO_LATENTS_PER_SECOND,
    FPS,
    HOP,
    LAYOUTS,
    SAMPLE_RATE,
    VIDEO_LATENTS_PER_SECOND,
    BlockTable,
    Counts,
    Span,
    clip_frames,
    clip_latents,
    clip_samples,
    clip_seconds,
    frames_of,
    join_spans,
    mel_of,
    samples_of,
)
from tests.support.refusals import refuses


def legal(parts: list[int], lead: int) -> BlockTable:
    """Blocks of ``parts`` video latents after a first one of ``1 + lead``.

    Audio borders fall where they are due, or before.
    """
    due = [
        (lead + sum(parts[:i])) * AUDIO_LATENTS_PER_SECOND // VIDEO_LATENTS_PER_SECOND
        for i in range(len(parts) + 1)
    ]
    cycle = tuple(Counts(n, b - a) for n, a, b in zip(parts, due[:-1], due[1:], strict=True))
    return BlockTable(Counts(1 + lead, 1 + due[0]), cycle)


@st.composite
def tables(draw: st.DrawFn) -> BlockTable:
    """The shipped tables and random legal ones; a cycle is whole seconds."""
    if draw(st.booleans()):
        return draw(st.sampled_from(list(LAYOUTS.values())))
    parts = draw(st.lists(st.integers(1, 6), min_size=1, max_size=6))
    assume(sum(parts) % VIDEO_LATENTS_PER_SECOND == 0)
    return legal(parts, draw(st.integers(0, 6)))


def test_the_shipped_layouts_have_the_papers_counts() -> None:
    prefix, merged, thirds = (LAYOUTS[name] for name in ("prefix", "merged", "thirds"))
    assert [prefix.counts(i) for i in range(3)] == [Counts(1, 1), Counts(3, 25), Counts(3, 25)]
    assert [merged.counts(i) for i in range(3)] == [Counts(4, 26), Counts(3, 25), Counts(3, 25)]
    assert [thirds.counts(i).audio for i in range(5)] == [1, 8, 8, 9, 8]
    second = prefix.block(1)
    assert (second.frames, second.mel, second.samples) == (
        Span(1, 25),
        Span(1, 101),
        Span(0, SAMPLE_RATE),
    )
    assert second.seconds == (1 / FPS, 25 / FPS)


@given(st.integers(1, 10_000))
def test_clips_of_whole_seconds_agree_in_every_unit(seconds: int) -> None:
    counts = clip_latents(seconds)
    assert clip_seconds(counts) == seconds
    assert frames_of(Span(0, counts.video)) == Span(0, clip_frames(seconds))
    mel = mel_of(Span(0, counts.audio))
    assert len(mel) == 1 + clip_samples(seconds) // HOP
    assert samples_of(mel) == Span(0, clip_samples(seconds))


@given(tables(), st.integers(1, 40))
def test_blocks_cover_every_unit_once_and_in_order(table: BlockTable, count: int) -> None:
    blocks = table.blocks(count)
    for name in ("video", "audio", "frames", "mel", "samples"):
        spans = [getattr(block, name) for block in blocks]
        assert spans[0].start == 0
        assert all(a.stop == b.start for a, b in pairwise(spans))
        assert sum(len(span) for span in spans) == spans[-1].stop
    assert table.total(count) == sum((block.counts for block in blocks), Counts(0, 0))
    assert table.count_for(table.total(count)) == count
    assert [len(table.video_owner(count)), len(table.audio_owner(count))] == [
        blocks[-1].video.stop,
        blocks[-1].audio.stop,
    ]
    assert all(
        latent in range(*_ends(blocks[owner].audio))
        for latent, owner in enumerate(table.audio_owner(count))
    )


def _ends(span: Span) -> tuple[int, int]:
    return span.start, span.stop


@given(tables(), st.integers(0, 10**6))
def test_sound_and_picture_never_part_by_an_audio_latent(table: BlockTable, index: int) -> None:
    block = table.block(index)
    due = (block.video.stop - 1) / VIDEO_LATENTS_PER_SECOND
    assert (
        abs((block.audio.stop - 1) / AUDIO_LATENTS_PER_SECOND - due)
        < 1 / AUDIO_LATENTS_PER_SECOND + 1e-9
    )


@given(tables(), st.integers(0, 500), st.integers(0, 10**6))
def test_the_closed_form_equals_the_sum_at_any_index(
    table: BlockTable, small: int, rounds: int
) -> None:
    summed = sum((table.counts(i) for i in range(small)), Counts(0, 0))
    assert (table.block(small).video.start, table.block(small).audio.start) == (
        summed.video,
        summed.audio,
    )
    whole = sum(table.cycle, Counts(0, 0))
    far = table.block(1 + small + rounds * len(table.cycle))
    near = table.block(1 + small)
    assert far.video.start - near.video.start == rounds * whole.video
    assert far.audio.start - near.audio.start == rounds * whole.audio
    assert far.counts == near.counts


@given(tables(), st.integers(0, 300), st.one_of(st.none(), st.integers(1, 9)))
def test_a_query_sees_the_prefix_its_window_and_itself(
    table: BlockTable, index: int, window: int | None
) -> None:
    seen = table.visible(index, window)
    assert seen == tuple(sorted(set(seen)))
    assert seen[0] == 0
    assert seen[-1] == index
    assert set(seen) == {
        b for b in range(index + 1) if b == 0 or window is None or index - b <= window
    }


@given(tables(), st.integers(1, 300), st.integers(1, 5))
def test_live_blocks_never_share_a_ring_slot(table: BlockTable, index: int, cycles: int) -> None:
    slots = cycles * len(table.cycle)
    live = [table.slot(b, slots) for b in range(max(1, index - slots + 1), index + 1)]
    taken = [i for slot in live for i in range(*_ends(slot.audio))]
    assert len(taken) == len(set(taken))
    assert min(taken) >= table.first.audio
    assert max(taken) < table.total(1 + slots).audio
    assert [slot.counts for slot in live][-1] == table.counts(index)
    assert table.slot(0, slots) == table.block(0)


@given(tables(), st.integers(0, 10**5), st.integers(1, 4))
def test_positions_stop_at_the_horizon_and_keep_the_kind_of_block(
    table: BlockTable, index: int, cycles: int
) -> None:
    horizon = cycles * len(table.cycle)
    place = table.position(index, horizon)
    assert place == index if index <= horizon else horizon - len(table.cycle) < place <= horizon
    if index:
        assert table.counts(place) == table.counts(index)


@pytest.mark.extended
@given(tables(), st.floats(0.01, 500))
def test_a_stream_of_seconds_takes_the_fewest_blocks(table: BlockTable, seconds: float) -> None:
    count = table.blocks_for_seconds(seconds)
    assert table.block(count - 1).frames.stop - 1 >= seconds * FPS - 1e-6
    assert count == 1 or table.block(count - 2).frames.stop - 1 < seconds * FPS


def test_tokens_of_a_block_count_pixels_and_sinks() -> None:
    table = LAYOUTS["prefix"]
    assert table.block(0).tokens(4, sinks=16) == (Span(0, 4), Span(0, 17))
    assert table.block(1).tokens(4, sinks=16) == (Span(4, 16), Span(17, 42))


@pytest.mark.parametrize(
    ("first", "cycle", "code", "facts"),
    [
        (
            Counts(1, 1),
            (Counts(3, 24),),
            "layout.drifting-streams",
            ["needs 25 audio latents", "found 24"],
        ),
        (
            Counts(1, 1),
            (Counts(0, 25), Counts(6, 25)),
            "layout.empty-block",
            ["cycle block 0", "0 video"],
        ),
        (Counts(1, 0), (Counts(3, 25),), "layout.empty-block", ["first block", "0 audio"]),
        (Counts(1, 1), (), "layout.empty-cycle", []),
        (
            Counts(1, 2),
            (Counts(3, 25),),
            "layout.drifting-streams",
            ["1 audio latents are due", "audio latent 2"],
        ),
        (
            Counts(1, 1),
            (Counts(1, 6), Counts(1, 10), Counts(1, 9)),
            "layout.drifting-streams",
            ["block 1", "video latent 2"],
        ),
    ],
)
def test_tables_that_do_not_fit_are_refused_with_the_count_that_is_off(
    first: Counts, cycle: tuple[Counts, ...], code: str, facts: list[str]
) -> None:
    with refuses(code, *facts):
        BlockTable(first, cycle)


@pytest.mark.parametrize(
    ("counts", "code", "facts"),
    [
        (Counts(12, 101), "layout.partial-second", ["12 video latents"]),
        (Counts(13, 100), "layout.partial-second", ["100 audio latents"]),
        (
            Counts(13, 76),
            "layout.unequal-lengths",
            ["13 video latents", "4 s", "76 audio latents", "3 s", "101"],
        ),
        (Counts(1, 1), "layout.partial-second", ["1 video latents"]),
    ],
)
def test_wrong_latent_counts_are_refused_with_the_one_that_is_off(
    counts: Counts, code: str, facts: list[str]
) -> None:
    with refuses(code, *facts):
        clip_seconds(counts)


def test_impossible_questions_are_refused() -> None:
    table = LAYOUTS["thirds"]
    cases: list[tuple[Any, ...]] = [
        (lambda: table.block(-1), "layout.no-such-block", "block -1"),
        (lambda: table.visible(3, 0), "layout.window-too-small", "window of 0"),
        (lambda: table.slot(4, 4), "layout.partial-cycle", "ring of 4", "cycles of 3"),
        (lambda: table.blocks_for_seconds(-1), "layout.no-time", "-1 seconds"),
        (
            lambda: table.count_for(Counts(4, 27)),
            "layout.partial-block",
            "27 audio",
            "4 blocks hold 26",
        ),
        (lambda: table.check_window(10, 12), "layout.window-too-large", "window of 10", "1 to 9"),
    ]
    for question, code, *facts in cases:
        with refuses(code, *facts):
            question()


def test_spans_are_joined_where_they_follow_one_another_on_every_axis() -> None:
    pieces = [(Span(0, 2), Span(3, 5)), (Span(2, 4), Span(5, 7)), (Span(4, 5), Span(9, 10))]
    assert join_spans(pieces) == [(Span(0, 4), Span(3, 7)), pieces[2]]
    assert join_spans([]) == []
