"""Our forward against diffusers' own, causality, caches against masks."""

import copy
from itertools import combinations
from typing import Any

import pytest
import torch

from benchmarks.gpu.networks import GENERATIONS
from benchmarks.published.transformer import tiny_config
from omniforcing.core.latents import Latents
from omniforcing.core.layout import LAYOUTS, BlockTable, Counts, clip_latents
from omniforcing.core.pair import Pair
from omniforcing.distill.sampling import full_view
from omniforcing.model.attention import Masked
from omniforcing.model.cache import Cache, FunctionalCache, RingCache
from omniforcing.model.conditioning import prompt_follows_sigma
from omniforcing.model.config import Stabiliser
from omniforcing.model.rollout import RolloutConfig, new_cache
from omniforcing.model.stabiliser import WITH_SINKS, gate_heads, normalise_heads
from omniforcing.model.student import build_core, positions_for
from omniforcing.model.transformer import DualStream
from tests.support.refusals import refuses
from tests.support.tiny_models import (
    GRID,
    TOLERANCE,
    difference,
    features,
    latents,
    library_core,
    tiny_model,
)

WINDOWS = [
    *((name, None, 99) for name in LAYOUTS),
    *(("prefix", 1, 99), ("prefix", 2, 3), ("merged", 2, 3), ("merged", 1, 4), ("thirds", 2, 6)),
]


def masked(
    model: DualStream, table: BlockTable, count: int, window: int | None = None, horizon: int = 99
) -> Masked:
    positions = positions_for(model, table.total(count), GRID, sinks=True)
    return Masked(positions, table, count, window, horizon)


def of_block(x: Latents, table: BlockTable, index: int) -> Latents:
    block = table.block(index)
    return Pair(x.video[:, block.video.slice], x.audio[:, block.audio.slice])


@torch.no_grad()
@pytest.mark.parametrize("per_block_sigma", [False, True])
def test_full_visibility_equals_diffusers_forward(
    rope: str, generation: dict[str, Any], per_block_sigma: bool
) -> None:
    """With one sigma, and with a sigma per block given to diffusers token by token, which its text
    path allows or not.
    """
    model, counts, table = (
        tiny_model(rope_type=rope, **generation),
        clip_latents(2),
        LAYOUTS["prefix"],
    )
    if per_block_sigma and prompt_follows_sigma(model.core):
        pytest.skip(
            "diffusers' text path takes one sigma; cached against masked holds it for several"
        )
    x, text = latents(counts), features(model=model)
    sigma = (
        torch.tensor([[0.9, 0.5, 0.1], [0.3, 1.0, 0.6]])
        if per_block_sigma
        else torch.tensor([[0.3], [0.8]])
    )
    view = full_view(model, counts, GRID)
    owners = Pair(*(torch.tensor(o) for o in (table.video_owner(3), table.audio_owner(3))))
    tokens = Pair(owners.video.repeat_interleave(6), owners.audio)
    if per_block_sigma:
        view.group_ids = Pair(tokens.video, tokens.audio)
    ours = model(x, sigma, model.cache_text(text), view)
    core = library_core(model.core)
    rows = tokens.map(lambda o: sigma[:, o] if per_block_sigma else sigma[:, 0])
    # Coordinates in fp64, as ours are: diffusers' own fp32 angles are off by 1e-3 rad.
    video, audio = core(
        hidden_states=x.video.flatten(1, 2),
        audio_hidden_states=x.audio,
        encoder_hidden_states=text.video,
        audio_encoder_hidden_states=text.audio,
        timestep=rows.video * 1000,
        audio_timestep=rows.audio * 1000,
        sigma=sigma[:, 0] * 1000,
        video_coords=core.rope.prepare_video_coords(2, counts.video, *GRID, device="cpu").double(),
        audio_coords=core.audio_rope.prepare_audio_coords(2, counts.audio, device="cpu").double(),
        use_cross_timestep=False,
        # As diffusers' DFR pipeline says it: its plain pipeline leaves LTX-2.5's marker out.
        video_keyframes_mask=(torch.arange(6 * counts.video) < 6)[None, :, None].expand(2, -1, 1),
        return_dict=False,
    )
    assert difference(ours, Pair(video.reshape(x.video.shape), audio)) < TOLERANCE


@torch.no_grad()
def test_first_video_latent_of_2_5_is_marked_whatever_the_view() -> None:
    """Whole, block-causal, and in a forward that refreshes block 0 and steps block 1."""
    model, table = tiny_model(3, **GENERATIONS["2.5"]), LAYOUTS["prefix"]
    x, text = latents(table.total(2)), model.cache_text(features(model=model))
    cache = RingCache(positions_for(model, table.total(6), GRID, sinks=True), table, 2, 4)
    cases: list[tuple[Any, Any]] = [
        (full_view(model, table.total(2), GRID), 0.5),
        (masked(model, table, 2), (0.5, 0.5)),
        (cache.merged_view(1), (0.5, 0.5)),
    ]
    marked = [model(x, sigma, text, view) for view, sigma in cases]
    assert difference(marked[1], marked[2]) < TOLERANCE
    model.core.keyframes_abs_pos_embedding.zero_()
    for (view, sigma), with_marker in zip(cases, marked, strict=True):
        plain = model(x, sigma, text, view)
        assert (with_marker.video - plain.video)[:, 0].abs().max() > 0.01


@torch.no_grad()
def test_a_stream_computes_text_and_modulation_once_per_prompt_and_sigma(
    generation: dict[str, Any],
) -> None:
    """Prepared sigmas give what sigmas on the fly give, and no text or time module runs again."""
    model, counts = tiny_model(**generation), clip_latents(1)
    x, view, text = (
        latents(counts),
        full_view(model, counts, GRID),
        model.cache_text(features(model=model)),
    )
    fresh = [model(x, sigma, text, view) for sigma in (0.9, 0.3)]
    text.prepare((0.9, 0.3), batch=2)
    conditioning = [
        m
        for n, m in model.named_modules()
        if n.endswith(("embed", "adaln", "attn2.to_k", "projection", "gate"))
    ]
    ran: list[str] = []
    for module in conditioning:
        module.register_forward_hook(lambda *_: ran.append("again"))
    assert [
        difference(model(x, sigma, text, view), old)
        for sigma, old in zip((0.9, 0.3), fresh, strict=True)
    ] == [0, 0]
    assert ran == []
    model(x, 0.5, text, view)
    assert ran


@torch.no_grad()
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("sinks", [0, 3])
def test_changing_a_block_leaves_every_earlier_output_bit_identical(
    layout: str, sinks: int
) -> None:
    model, table, count = tiny_model(sinks), LAYOUTS[layout], 5
    x, sigma = latents(table.total(count)), torch.rand(2, count)
    view, text = masked(model, table, count), model.cache_text(features())
    before = model(x, sigma, text, view)
    for changed in range(1, count):
        block = table.block(changed)
        y, other = x.map(torch.clone), sigma.clone()
        y.video[:, block.video.slice] += 1
        y.audio[:, block.audio.slice] -= 1
        other[:, changed] = 0.123
        after = model(y, other, text, view)
        for earlier in range(changed):
            for old, new in zip(
                of_block(before, table, earlier), of_block(after, table, earlier), strict=True
            ):
                assert torch.equal(old, new)
        assert difference(of_block(before, table, changed), of_block(after, table, changed)) > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize(("layout", "window", "horizon"), WINDOWS)
@pytest.mark.parametrize("sinks", [0, 3])
def test_cached_equals_masked_for_every_block(
    rope: str, sinks: int, layout: str, window: int | None, horizon: int, static: bool
) -> None:
    """Any table, window and horizon; the cache survives denoising steps between its refreshes."""
    model, table, count = tiny_model(sinks, rope_type=rope), LAYOUTS[layout], 9
    x, sigma, text = latents(table.total(count)), torch.rand(2, count), model.cache_text(features())
    whole = model(x, sigma, text, masked(model, table, count, window, horizon))
    positions = positions_for(model, table.total(count + 3), GRID, sinks=True)
    kind = RingCache if static else FunctionalCache
    cache: Cache = kind(positions, table, window or count, horizon)
    for index in range(count):
        part = of_block(x, table, index)
        model(part.map(lambda t: 2 * t), torch.full((2,), 0.7), text, cache.view(index))
        ours = model(part, sigma[:, index], text, cache.view(index, write=True))
        assert difference(ours, of_block(whole, table, index)) < TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_cached_equals_masked_in_every_generation(
    generation: dict[str, Any], layout: str, static: bool
) -> None:
    """Also where every block has text keys and values of its own, those of its sigma."""
    model, table, count = tiny_model(3, **generation), LAYOUTS[layout], 5
    x, sigma, text = (
        latents(table.total(count)),
        torch.rand(2, count),
        model.cache_text(features(model=model)),
    )
    whole = model(x, sigma, text, masked(model, table, count, 2, 4))
    kind = RingCache if static else FunctionalCache
    cache: Cache = kind(positions_for(model, table.total(count + 3), GRID, sinks=True), table, 2, 4)
    for index in range(count):
        ours = model(
            of_block(x, table, index), sigma[:, index], text, cache.view(index, write=True)
        )
        assert difference(ours, of_block(whole, table, index)) < TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("stabiliser", Stabiliser)
def test_cached_equals_masked_with_every_stabiliser(stabiliser: Stabiliser, static: bool) -> None:
    model, table, count = (
        tiny_model(4 if stabiliser in WITH_SINKS else 0, stabiliser),
        LAYOUTS["prefix"],
        5,
    )
    x, sigma, text = latents(table.total(count)), torch.rand(2, count), model.cache_text(features())
    whole = model(x, sigma, text, masked(model, table, count, 2, 4))
    kind = RingCache if static else FunctionalCache
    cache: Cache = kind(positions_for(model, table.total(count + 3), GRID, sinks=True), table, 2, 4)
    for index in range(count):
        ours = model(
            of_block(x, table, index), sigma[:, index], text, cache.view(index, write=True)
        )
        assert difference(ours, of_block(whole, table, index)) < TOLERANCE


@torch.no_grad()
def test_every_stabiliser_changes_the_audio() -> None:
    table, x, sigma = LAYOUTS["prefix"], latents(Counts(4, 26)), torch.rand(2, 2)
    outputs = {}
    for stabiliser in Stabiliser:
        model = tiny_model(4 if stabiliser in WITH_SINKS else 0, stabiliser, num_layers=1)
        outputs[stabiliser] = model(
            x, sigma, model.cache_text(features()), masked(model, table, 2)
        ).audio
    for one, other in combinations(outputs.values(), 2):
        assert (one - other).abs().max() > 1e-4


@torch.no_grad()
def test_qk_norm_bounds_what_a_head_may_attend_by_and_a_closed_tanh_gate_adds_nothing() -> None:
    x = torch.randn(2, 5, 24) * torch.tensor([1.0] * 12 + [1000.0] * 12)
    heads = normalise_heads(x, 2).unflatten(-1, (2, 12))
    torch.testing.assert_close(heads.square().mean(-1), torch.ones(2, 5, 2))
    assert not gate_heads(x, torch.zeros(2)).any()


@pytest.mark.extended
@torch.no_grad()
def test_an_endless_stream_repeats_itself_bit_for_bit_once_past_the_horizon() -> None:
    """Equal blocks far from the start meet equal tables: no phase grows, no precision is lost."""
    model = tiny_model(2)
    config = RolloutConfig(LAYOUTS["prefix"], GRID, (1.0,), window=2, horizon=3)
    cache, text, sigma = (
        new_cache(model, config, static=True),
        model.cache_text(features()),
        torch.full((2,), 0.5),
    )
    first, later = latents(Counts(1, 1), seed=1), latents(Counts(3, 25), seed=2)
    outputs = [
        model(later if i else first, sigma, text, cache.view(i, write=True)) for i in range(400)
    ]
    steady = [o for i, o in enumerate(outputs) if i > 20]
    assert max(difference(o, steady[0]) for o in steady) < TOLERANCE


@torch.no_grad()
def test_ring_buffers_stay_the_same_size_and_place() -> None:
    model = tiny_model(2)
    config = RolloutConfig(LAYOUTS["prefix"], GRID, (1.0,), window=2, horizon=3)
    cache, text, sigma = (
        new_cache(model, config, static=True),
        model.cache_text(features()),
        torch.full((2,), 0.5),
    )
    assert isinstance(cache, RingCache)
    places = []
    for i in range(12):
        model(latents(Counts(3, 25) if i else Counts(1, 1)), sigma, text, cache.view(i, write=True))
        places.append([t.data_ptr() for buffers in cache.buffers.values() for t in buffers])
    assert all(p == places[0] for p in places)


@pytest.mark.extended
@pytest.mark.parametrize(
    ("layout", "window", "horizon"), [("prefix", 3, 99), ("merged", 1, 3), ("thirds", 2, 5)]
)
@pytest.mark.parametrize("release", ["2.0", "2.5"])
def test_gradients_of_a_cached_rollout_equal_masked_forwards_with_detached_history(
    layout: str, window: int, horizon: int, release: str
) -> None:
    """Every block's own forward carries gradient, history (noised to the context noise) none: sinks
    and text included.
    """
    table, count, context = LAYOUTS[layout], 4, torch.full((2,), 0.1)
    noisy, clean, sigma = (
        latents(table.total(count)),
        latents(table.total(count), seed=1),
        torch.rand(2, count),
    )
    model = tiny_model(3, **GENERATIONS[release])
    features_ = features(model=model)
    oracle = copy.deepcopy(model)

    cache = FunctionalCache(
        positions_for(model, table.total(count + 3), GRID, sinks=True), table, window, horizon
    )
    text = model.cache_text(features_)
    for index in range(count):
        energy(
            model(of_block(noisy, table, index), sigma[:, index], text, cache.view(index))
        ).backward(retain_graph=True)
        with torch.no_grad():
            model(of_block(clean, table, index), context, text, cache.view(index, write=True))

    for index in range(count):
        past, now = table.total(index), of_block(noisy, table, index)
        x = clean.map(
            lambda c, n, t: torch.cat([c[:, :t], n], 1), now, Pair(past.video, past.audio)
        )
        sigmas = torch.stack([*[context] * index, sigma[:, index]], 1)
        view = _DetachedHistory(masked(oracle, table, index + 1, window, horizon))
        energy(
            of_block(oracle(x, sigmas, oracle.cache_text(features_), view), table, index)
        ).backward()

    for (name, ours), theirs in zip(model.named_parameters(), oracle.parameters(), strict=True):
        found, expected = (
            torch.zeros_like(p) if p.grad is None else p.grad for p in (ours, theirs)
        )
        torch.testing.assert_close(
            found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()) + 1e-6, msg=name
        )
    assert model.sinks.grad is not None and model.sinks.grad.abs().max() > 0


def energy(x: Latents) -> torch.Tensor:
    return x.video.square().sum() + x.audio.square().sum()


class _DetachedHistory:
    """A masked view whose tokens of earlier blocks are constants to the last block."""

    starts = takes_sinks = True
    graph_key = None

    def __init__(self, view: Masked) -> None:
        self.view, self.group_ids = view, view.group_ids

    def attend(
        self, layer: int, site: str, heads: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> torch.Tensor:
        from omniforcing.model.attention import SITES

        owner = getattr(self.view.group_ids, SITES[site][1])
        start = int((owner == self.view.count - 1).nonzero()[0])
        k, v = (torch.cat([t[:, :start].detach(), t[:, start:]], 1) for t in (k, v))
        return self.view.attend(layer, site, heads, q, k, v)


@torch.no_grad()
def test_sinks_change_every_block_through_audio_and_video() -> None:
    table, count = LAYOUTS["prefix"], 3
    x, sigma, text = latents(table.total(count)), torch.rand(2, count), features()
    outputs = []
    for scale in (1.0, 3.0):
        model = tiny_model(3)
        model.sinks.mul_(scale)
        outputs.append(model(x, sigma, model.cache_text(text), masked(model, table, count)))
    for index in range(count):
        for a, b in zip(*(of_block(o, table, index) for o in outputs), strict=True):
            assert (a - b).abs().max() > 1e-5


@torch.no_grad()
def test_a_prompt_of_one_row_serves_a_batch() -> None:
    model, counts = tiny_model(), clip_latents(1)
    one = features(batch=1)
    x, sigma, view = latents(counts), torch.tensor([0.2, 0.7]), full_view(model, counts, GRID)
    both = one.map(lambda t: t.expand(2, -1, -1))
    assert (
        difference(
            model(x, sigma, model.cache_text(one), view),
            model(x, sigma, model.cache_text(both), view),
        )
        < TOLERANCE
    )


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            {"audio_num_attention_heads": 4, "audio_attention_head_dim": 8},
            "audio_num_attention_heads is 4",
        ),
        ({"patch_size": 2}, "patch_size is 2"),
        ({"audio_hop_length": 128}, "audio_hop_length is 128"),
        ({"vae_scale_factors": (4, 16, 16)}, "vae_scale_factors starts with 4"),
    ],
)
def test_architectures_that_would_be_computed_wrongly_are_refused(
    change: dict[str, Any], named: str
) -> None:
    with refuses("weights.unsupported-config", named):
        tiny_model(**change)


def test_a_config_key_of_a_later_architecture_is_refused_by_name() -> None:
    core = build_core(tiny_config(), 0)
    core.config["rotary_flavour"] = "new"
    with refuses("weights.unknown-key", "rotary_flavour"):
        DualStream(core)


def test_a_window_that_would_reach_below_the_prefix_is_refused() -> None:
    with refuses("layout.window-too-large", "a window of 4", "1 to 3"):
        RolloutConfig(LAYOUTS["prefix"], GRID, (1.0,), window=4, horizon=4)


@torch.no_grad()
def test_a_copy_of_a_model_computes_with_its_own_weights() -> None:
    """Blocks are built once and refer to modules; a copy's (an EMA's) must refer to the copy's."""
    model, counts = tiny_model(), clip_latents(1)
    twin = copy.deepcopy(model)
    view = full_view(model, counts, GRID)
    x, text = latents(counts), features()

    def velocity(of: DualStream) -> Latents:
        return of(x, 0.5, of.cache_text(text), view)

    before = velocity(model)
    for parameter in twin.parameters():
        parameter.mul_(0.5)
    assert difference(velocity(model), before) == 0
    assert difference(velocity(twin), before) > 0.01
