"""Measure Stage III block by block against the whole rollout in one graph.

`python -m benchmarks.stage_three [--preset pocket] [--rounds 9] [--no-recompute] [KEY=VALUE ...]`
trains on noise, in one process, with layers recomputed in the backward pass: once as
`distill/self_forcing.py` does, every block backward by itself, and once as it was done before
(``WholeRollout``): one graph of all blocks, whose backward pass holds a gradient of every weight
until the last block has added its share. With `--trace` it only traces, at any preset. Prints

    activations   most bytes that live at once in an update without gradients, weights and optimiser
                  states, by the planner's trace; every gradient counts that is no parameter's yet
    allocated     most bytes that torch's allocator hands out for a student's gradients, those among
                  them, on top of what is held before (a CPU's profile, or a GPU's statistics)
    seconds       an update, least and median of the rounds, which take turns: CPU time of this
                  process, or on a GPU time by the clock
    gradients     largest difference of the student's gradients, relative to each weight's largest
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from benchmarks.timing import Clock
from omniforcing.core.config import project_root
from omniforcing.core.distributed import draw
from omniforcing.core.latents import (
    Batch,
    HeldText,
    Latents,
    TextFeatures,
    broadcast,
    concatenate,
)
from omniforcing.distill.dmd import dmd_loss
from omniforcing.distill.self_forcing import SelfForcing
from omniforcing.model.attention import SITES, View, sdpa
from omniforcing.model.cache import CacheKey, FunctionalCache, FunctionalView
from omniforcing.model.conditioning import KeyValue, TextCache
from omniforcing.model.rollout import RolloutConfig, few_step, gaussian, new_cache, refresh
from omniforcing.model.transformer import DualStream
from omniforcing.pipeline.config import Config, load_config
from omniforcing.pipeline.planner.cost import DEPTHS, few_critic_steps
from omniforcing.pipeline.planner.measured import allocated_bytes
from omniforcing.pipeline.planner.networks import Sizes
from omniforcing.pipeline.planner.trace import Trace, deepened, trace_step
from omniforcing.training.cuts import Cut


class _HoldingView(FunctionalView):
    """A view that holds the rotated history of all layers for as long as it lives."""

    def __init__(self, view: FunctionalView, history: dict[CacheKey, KeyValue]) -> None:
        super().__init__(view.cache, view.index, view.past, view.record)
        self.history = history

    def attend(self, layer: int, site: str, heads: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        key, (queries, keys, axes) = CacheKey(layer, site), SITES[site]
        if self.record is not None:
            self.record[key] = KeyValue(k.detach(), v.detach())
        rotate, span = self.places.positions.rotate, self.places.span
        q = rotate(q, axes, queries, span(self.place, queries))
        k = rotate(k, axes, keys, span(self.place, keys))
        if self.history:
            past = self.history[key]
            k, v = torch.cat([past.keys, k], 1), torch.cat([past.values, v], 1)
        return sdpa(q, k, v, heads)


class _HoldingCache(FunctionalCache):
    """A cache that rotates the history of all layers once per block, for the block's views."""

    held: tuple[int, dict[CacheKey, KeyValue]] = (0, {})

    def view(self, index: int, write: bool = False) -> View:
        view = super().view(index, write)
        assert isinstance(view, FunctionalView)
        if self.held[0] != index:
            history = {}
            for key in view.past[0]:
                values = [written[key].values for written in view.past.values()]
                keys = self.rotated(index, view.past, key)
                history[key] = KeyValue(keys, torch.cat(values, 1))
            self.held = (index, history)
        return _HoldingView(view, self.held[1])


class WholeRollout(SelfForcing):
    """Stage III with one graph of the whole rollout; the yardstick of the one that trains."""

    def generate(
        self, student: DualStream, text: TextFeatures, generator: torch.Generator
    ) -> tuple[Latents, list[Cut]]:
        """Roll the student out over the whole clip, ``[B, T, ...]``, with no cut in its graph."""
        batch, device = len(text.video), generator.device
        sigmas = len(self.rollout.sigmas)
        exit_step = int(torch.randint(sigmas, (), generator=generator, device=device))
        own = student.cache_text(text)
        if not self.config.steered:
            blocks = self.roll_out(student, self.blocks * [own], batch, exit_step, generator)
            return concatenate(blocks), []

        steered = draw(torch.rand, (batch,), generator, device=device) < self.config.steered
        switch = 1 + int(torch.randint(self.blocks - 1, (), generator=generator, device=device))
        former = student.cache_text(self.former_text(text, steered, generator))
        texts = switch * [former] + (self.blocks - switch) * [own]
        blocks = self.roll_out(student, texts, batch, exit_step, generator)
        for index in range(switch):
            blocks[index] = blocks[index].map(
                lambda x: torch.where(broadcast(steered, x), x.detach(), x)
            )
        return concatenate(blocks), []

    def roll_out(
        self,
        student: DualStream,
        texts: Sequence[TextCache],
        batch: int,
        step: int,
        generator: torch.Generator,
    ) -> list[Latents]:
        """Blocks ``[B, T, ...]``, each with gradient through its exit forward."""
        config: RolloutConfig = self.rollout
        of = new_cache(student, config, static=False)
        assert isinstance(of, FunctionalCache)
        places = of.places
        cache = _HoldingCache(places.positions, places.table, places.window, places.horizon)
        output: list[Latents] = []
        for index, text in enumerate(texts):
            noise = gaussian(student, config.table.counts(index), config.grid, batch, generator)
            view = cache.view(index)
            output.append(few_step(student, noise, config.sigmas, text, view, generator, step))
            if index + 1 < len(texts):
                refresh(student, config, cache, text, index, output[-1], generator)
        return output


# The random numbers of a step follow from its stage's name.
WholeRollout.__name__ = SelfForcing.__name__


def build(
    kind: type[SelfForcing], config: Config, sizes: Sizes, dtype: torch.dtype = torch.float32
) -> SelfForcing:
    """Stage III over random weights, the same for every kind."""
    torch.manual_seed(0)
    stabiliser = config.student.stabiliser
    networks = [
        sizes.network(config.student.sinks, dtype, stabiliser=stabiliser),
        sizes.network(dtype=dtype),
        sizes.network(dtype=dtype),
    ]
    counts, text = config.clips.latent_counts, noise_text(sizes, 1)
    captions, where = HeldText(text), (counts, sizes.grid, config.seed)
    return kind.from_config(config.self_forcing, config.student, networks, text, captions, *where)


def noise_text(sizes: Sizes, batch: int) -> TextFeatures:
    """Text features of noise; none on the meta device."""
    return sizes.text(batch).map(torch.randn_like)


def noise_batch(config: Config, sizes: Sizes, size: int) -> Batch:
    """A batch of which Stage III uses the text alone."""
    return Batch(sizes.batch(config, size).latents, noise_text(sizes, size))


def traced_bytes(kind: type[SelfForcing], config: Config, sizes: Sizes, batch: int) -> float:
    """Most bytes of an update besides gradients, weights and optimiser states."""
    few_updates = few_critic_steps(config)
    dtype = torch.bfloat16 if config.trainer.precision == "bf16-mixed" else torch.float32

    def traced(layers: int) -> Trace:
        meta = replace(sizes, device="meta").with_layers(layers)
        return trace_step(build(kind, few_updates, meta, dtype), meta.batch(config, batch))

    few, more = map(traced, DEPTHS)
    peaks, _ = deepened(few, more, (*DEPTHS, sizes.core["num_layers"]), 0.0)
    return max(rest for _, rest in peaks)


def student_gradients(
    module: SelfForcing, batch: Batch, precision: str = "32-true"
) -> dict[str, Tensor]:
    """Gradients of one student's update by parameter, without its optimiser's step."""
    module.model.zero_grad()
    student_step(module, batch, precision)
    found = {}
    for name, parameter in module.model.named_parameters():
        if parameter.grad is not None:
            found[name] = parameter.grad.clone()
    return found


def student_step(module: SelfForcing, batch: Batch, precision: str) -> None:
    """Rollout, score and backward pass of the student, as in ``training_step``."""
    update = module.begin_update([], Tensor.backward)
    with torch.autocast(module.device.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
        for micro_batch in module.micro_batches(batch, 0):
            text = micro_batch.data.text
            x, cuts = module.generate(module.model, text, micro_batch.generator("rollout"))
            gradient = module.score(x, text, micro_batch.generator("score"))
            update.add(dmd_loss(x, gradient), cuts)


def cost_of(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of a call: CPU time, which other processes leave alone; of a GPU by the clock."""
    clock, began = Clock(device), time.process_time()
    run()
    return clock.elapsed() if device.type == "cuda" else time.process_time() - began


def largest_difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """Largest difference of gradients, relative to the largest gradient of each parameter."""
    assert ours.keys() == theirs.keys()
    found = []
    for name, gradient in theirs.items():
        scale = gradient.abs().max().clamp_min(1e-12)
        found.append(float((ours[name] - gradient).abs().max() / scale))
    return max(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--preset", default="pocket", help="sizes of networks and clips")
    parser.add_argument("--rounds", type=int, default=9, help="updates of either kind, timed")
    parser.add_argument("--batch", type=int, default=1, help="clips per update")
    parser.add_argument("--no-recompute", action="store_true", help="keep all activations")
    parser.add_argument("--trace", action="store_true", help="only trace, at any size")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="keys of the config")
    options = parser.parse_args()
    config = load_config(options.overrides, project_root(), options.preset)
    device = torch.device(options.device)
    sizes = Sizes.from_config(config, project_root())
    sizes = replace(sizes, device=options.device, checkpoint_activations=not options.no_recompute)
    kinds: dict[str, type[SelfForcing]] = {"whole": WholeRollout, "blocks": SelfForcing}
    traced = {
        name: traced_bytes(kind, config, sizes, options.batch) for name, kind in kinds.items()
    }
    if options.trace:
        for name, size in traced.items():
            print(f"{name:<8}{size / 1e9:>8.2f} GB of activations")
        return
    modules = {name: build(kind, config, sizes) for name, kind in kinds.items()}
    batch = noise_batch(config, sizes, options.batch)

    precision = config.trainer.precision
    gradients = [student_gradients(module, batch, precision) for module in modules.values()]
    difference = largest_difference(gradients[1], gradients[0])
    del gradients
    allocated = {}
    for name, module in modules.items():
        module.model.zero_grad()
        allocated[name] = allocated_bytes(partial(student_step, module, batch, precision), device)
    optimisers = {name: module.configure_optimizers() for name, module in modules.items()}

    def update(name: str, step: int) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
            modules[name].training_step(step, batch, optimisers[name], Tensor.backward)

    rows: dict[str, tuple[float, float, float, float]] = {}
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for name in kinds:
        update(name, 0)  # makes the optimisers' states
    for step in range(1, 1 + options.rounds):
        # Each kind goes first every other round.
        for name in list(kinds)[:: 1 if step % 2 else -1]:
            seconds[name].append(cost_of(partial(update, name, step), device))
    for name in kinds:
        median = statistics.median(seconds[name])
        rows[name] = (traced[name] / 1e6, allocated[name] / 1e6, min(seconds[name]), median)
    print(f"{'':<8}{'activations MB':>16}{'allocated MB':>14}{'least s':>10}{'median s':>10}")
    for name, row in rows.items():
        print(f"{name:<8}{row[0]:>16.2f}{row[1]:>14.2f}{row[2]:>10.3f}{row[3]:>10.3f}")
    ratios = [ours / theirs for ours, theirs in zip(rows["blocks"], rows["whole"], strict=True)]
    print(f"{'ratio':<8}{ratios[0]:>16.3f}{ratios[1]:>14.3f}{ratios[2]:>10.3f}{ratios[3]:>10.3f}")
    print(f"gradients differ by {difference:.2e} of the largest of each weight")


if __name__ == "__main__":
    main()
