"""What streams run against what is trained: equal blocks, no synchronisation, nothing as large as
the history made anew.
"""

from itertools import islice
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.gpu.networks import GENERATIONS
from omniforcing.core.layout import LAYOUTS, Counts
from omniforcing.core.pair import Pair
from omniforcing.model.cache import RingCache
from omniforcing.model.config import Stabiliser
from omniforcing.model.inference.fast import accelerate
from omniforcing.model.rollout import Rollout, RolloutConfig, new_cache
from omniforcing.model.stabiliser import WITH_SINKS
from omniforcing.model.transformer import DualStream
from tests.support.tiny_models import GRID, TOLERANCE, difference, features, latents, tiny_model

CONFIG = RolloutConfig(LAYOUTS["prefix"], GRID, (1.0, 0.6), window=2, horizon=3, context_noise=0.1)


def stream(model: DualStream, text: Any, blocks: int = 6) -> list[Pair[torch.Tensor]]:
    return list(islice(Rollout(model, text, CONFIG, torch.Generator().manual_seed(3)), blocks))


def test_a_fast_stream_equals_the_students_own(rope: str, generation: dict[str, Any]) -> None:
    """Past the window and the horizon, in every generation and both layouts of RoPE."""
    model = tiny_model(3, rope_type=rope, **generation)
    text = features(model=model)
    for ours, fast in zip(stream(model, text), stream(accelerate(model), text), strict=True):
        assert difference(ours, fast) < 10 * TOLERANCE


@pytest.mark.extended
@pytest.mark.parametrize("stabiliser", Stabiliser)
def test_a_fast_stream_keeps_the_stabiliser(stabiliser: Stabiliser) -> None:
    model = tiny_model(3 if stabiliser in WITH_SINKS else 0, stabiliser)
    for ours, fast in zip(
        stream(model, features()), stream(accelerate(model), features()), strict=True
    ):
        assert difference(ours, fast) < 10 * TOLERANCE


def test_a_fast_student_leaves_the_weights_it_is_made_of_alone() -> None:
    model = tiny_model(3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fast = accelerate(model)
    stream(fast, features())
    assert fast.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in fast.state_dict().items())


@pytest.mark.parametrize("generation", ["2.0", "2.5"])
def test_a_student_that_releases_what_it_copied_streams_the_same_from_less_memory(
    generation: str,
) -> None:
    """What only the fast layers use is gone from the model, and nothing that the stream still
    needs.
    """
    kept, given_up = (tiny_model(3, **GENERATIONS[generation]) for _ in range(2))
    text = features(model=kept)
    whole = sum(p.numel() for p in given_up.parameters())
    fast = accelerate(given_up, release=True)
    block = kept.core.transformer_blocks[0]
    attentions = [
        block.attn1,
        block.audio_attn1,
        block.audio_to_video_attn,
        block.video_to_audio_attn,
    ]
    copied = sum(p.weight.numel() for a in attentions for p in (a.to_q, a.to_k, a.to_v))
    assert whole - sum(p.numel() for p in given_up.parameters()) == 2 * copied > whole // 10
    for ours, theirs in zip(stream(accelerate(kept), text), stream(fast, text), strict=True):
        assert difference(ours, theirs) == 0


class Watch(TorchDispatchMode):
    """Counts what would wait for a GPU, and the largest tensor that an operation makes (views
    aside).
    """

    def __init__(self) -> None:
        super().__init__()
        self.syncs: list[str] = []
        self.largest = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        result = function(*arguments, **(options or {}))
        name = str(function)
        if any(
            part in name
            for part in ("_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal")
        ):
            self.syncs.append(name)
        given = {
            t.untyped_storage().data_ptr()
            for t in arguments
            if isinstance(t, torch.Tensor) and not t.is_mkldnn
        }
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if (
                isinstance(tensor, torch.Tensor)
                and tensor.untyped_storage().data_ptr() not in given
            ):
                self.largest = max(self.largest, tensor.numel())
        return result


@torch.no_grad()
@pytest.mark.parametrize("index", [7, 12])
def test_a_step_waits_for_nothing_and_makes_nothing_as_large_as_the_history(index: int) -> None:
    """Neither a step nor a refresh, inside the window's first round and far beyond the horizon."""
    model = accelerate(tiny_model(2))
    config = RolloutConfig(LAYOUTS["prefix"], GRID, (1.0,), window=10, horizon=11)
    cache, text = new_cache(model, config, static=True), model.cache_text(features())
    assert isinstance(cache, RingCache)
    text.prepare((0.5,), batch=2)
    for i in range(index):
        model(latents(Counts(3, 25) if i else Counts(1, 1)), 0.5, text, cache.view(i, write=True))
    block = latents(Counts(3, 25))
    for write in (False, True):
        view = cache.view(index, write)
        with Watch() as watch:
            model(block, 0.5, text, view)
        history = (
            2 * (min(index, 11) - 1) * 18 * 48
        )  # batch, blocks, tokens, width: of the video's keys alone
        assert watch.syncs == []
        # The widest activation of the block itself, of the feed-forward, is four times the hidden
        # states.
        assert watch.largest == 2 * 18 * 4 * 48 < history


@torch.no_grad()
def test_a_block_past_the_horizon_turns_its_keys_once_for_all_of_its_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = accelerate(tiny_model(2))
    cache, text = new_cache(model, CONFIG, static=True), model.cache_text(features())
    for i in range(6):
        model(latents(Counts(3, 25) if i else Counts(1, 1)), 0.5, text, cache.view(i, write=True))
    turned: list[int] = []
    assert isinstance(cache, RingCache)
    rotate = cache.rotate_history

    def rotating(index: int) -> None:
        turned.append(index)
        rotate(index)

    monkeypatch.setattr(cache, "rotate_history", rotating)
    for _ in range(3):
        cache.view(6)
    assert turned == [6]
