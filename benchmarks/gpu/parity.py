"""Does the card compute what the CPU computes? Tiny students of every generation against an oracle.

The oracle is the plain student with a functional cache in fp32 on the CPU. Noise is drawn on the
CPU for every device, so all streams start alike. The figure of a generation is the root mean square
of the error over that of the oracle, over seven blocks, past the window and past the horizon;
`largest` is the largest single error over the oracle's largest value, `bound` the largest error
that is allowed.
"""

from __future__ import annotations

from functools import cache, partial
from itertools import islice

import torch

from benchmarks.gpu.networks import GENERATIONS, features, tiny_student
from benchmarks.gpu.rows import Figures, Measurement, OutOfBounds
from benchmarks.gpu.settings import PartSettings
from benchmarks.student.ratios import difference
from omniforcing.core.latents import Latents
from omniforcing.core.layout import LAYOUTS
from omniforcing.core.pair import Pair
from omniforcing.model.attention import Masked
from omniforcing.model.inference.fast import accelerate
from omniforcing.model.options import InferenceOptions
from omniforcing.model.rollout import Rollout, RolloutConfig, new_cache
from omniforcing.model.student import positions_for
from omniforcing.model.transformer import DualStream

BLOCKS = 7
CHANGED = 5  # the block that `causality` changes
ROLLOUT = RolloutConfig(
    LAYOUTS["prefix"], (2, 3), (1.0, 0.725), window=2, horizon=4, context_noise=0.1
)
PLAIN = InferenceOptions(layers=False, conditions=False, ring=False)
# Bounds of the relative error. On a CPU fp32 is 1.8e-7 off, by summing in another order, bf16 0.006
# and fp8 0.02; a window that is one block too narrow is 0.03 off.
FP32, BF16, FP8 = 1e-5, 0.02, 0.05
# Compiled streams are tried in two generations: each compiles some 28 graphs.
COMPILED_GENERATIONS = ("2.0", "2.5")


def measurements(settings: PartSettings) -> list[Measurement]:
    """List ways to compute a stream and oracles of the block-causal model on the card itself.

    Ways that compile come last: they take longest.
    """

    def way(
        name: str, dtype: torch.dtype, bound: float, cuda: bool = False, **switched: bool
    ) -> Measurement:
        options = InferenceOptions(**switched)
        return Measurement(
            name,
            partial(against_oracle, settings, dtype, options, bound),
            "stream seven blocks of four tiny students and compare them with the fp32 oracle",
            cuda=cuda,
            limit=120 if cuda else None,
        )

    fp32, bf16 = torch.float32, torch.bfloat16
    holds = "hold the oracle in fp32 on the card"
    return [
        way("fp32 plain", fp32, FP32, layers=False, conditions=False, ring=False),
        way("fp32 fast, ring", fp32, FP32),
        way("fp32 merged refresh", fp32, FP32, merged=True),
        way("bf16 fast, ring", bf16, BF16),
        Measurement("cached equals masked", partial(cached_against_masked, settings), holds),
        Measurement("blocks are causal", partial(causality, settings), holds),
        Measurement(
            "no wait in the hot path",
            partial(waiting, settings),
            "run a block with torch's check for synchronisation",
            cuda=True,
        ),
        way("fp32 concurrent", fp32, FP32, cuda=True, concurrent=True),
        way("bf16 fp8", bf16, FP8, cuda=True, fp8=True),
        way("fp32 compiled, graphs", fp32, FP32, cuda=True, compiled=True),
        way("fp32 compiled, concurrent", fp32, FP32, cuda=True, compiled=True, concurrent=True),
        way("bf16 everything", bf16, FP8, cuda=True, compiled=True, concurrent=True, fp8=True),
    ]


@cache
def oracle(generation: str) -> list[Latents]:
    """Stream a generation's tiny student in fp32 on the CPU."""
    return stream(tiny_student(generation), PLAIN)


def stream(student: DualStream, options: InferenceOptions) -> list[Latents]:
    """Stream seven blocks from the same noise on any device; return them in fp32 on the CPU."""
    text = features(student).map(lambda t: t.to(student.sinks.device, student.sinks.dtype))
    noise = torch.Generator().manual_seed(3)
    rollout = Rollout(accelerate(student, options), text, ROLLOUT, noise, options)
    return [block.map(lambda x: x.float().cpu()) for block in islice(rollout, BLOCKS)]


def against_oracle(
    settings: PartSettings, dtype: torch.dtype, options: InferenceOptions, bound: float
) -> Figures:
    """Stream every generation on the device and compare it with the oracle.

    Raises:
        OutOfBounds: if an error is beyond ``bound``.
    """
    errors: Figures = {}
    largest = 0.0
    for generation in COMPILED_GENERATIONS if options.compiled else GENERATIONS:
        student = tiny_student(generation).to(settings.device, dtype)
        blocks, expected = stream(student, options), oracle(generation)
        errors[generation] = relative_error(blocks, expected)
        largest = max(largest, difference(expected, blocks))
    return within(errors, bound, largest=largest)


def within(errors: Figures, bound: float, **more: float) -> Figures:
    """Return errors by generation, with their bound and further figures.

    Raises:
        OutOfBounds: names the generations beyond the bound.
    """
    figures = {**errors, **more, "bound": bound}
    beyond = [name for name, error in errors.items() if not error <= bound]  # NaN is beyond
    if beyond:
        raise OutOfBounds(figures, f"further from the oracle than {bound:g}: {', '.join(beyond)}")
    return figures


def relative_error(blocks: list[Latents], expected: list[Latents]) -> float:
    """Return the root mean square of the error over that of ``expected``."""
    error = total = 0.0
    for block, other in zip(blocks, expected, strict=True):
        for x, y in zip(block, other, strict=True):
            error += float((x - y).double().square().sum())
            total += float(y.double().square().sum())
    return (error / total) ** 0.5


def random_clip(student: DualStream, count: int) -> Latents:
    """Draw latents of the first ``count`` blocks on the CPU and move them to the student."""
    counts, core = ROLLOUT.table.total(count), student.core.config
    generator = torch.Generator().manual_seed(4)
    spatial = ROLLOUT.grid[0] * ROLLOUT.grid[1]
    video = torch.randn(1, counts.video, spatial, core.in_channels, generator=generator)
    audio = torch.randn(1, counts.audio, core.audio_in_channels, generator=generator)
    return Pair(video, audio).to(student.sinks.device)


def latents_of_block(x: Latents, index: int) -> Latents:
    """Slice a block's latents out of a clip's."""
    block = ROLLOUT.table.block(index)
    return Pair(x.video[:, block.video.slice], x.audio[:, block.audio.slice])


def masked_velocity(student: DualStream, x: Latents, sigma: torch.Tensor) -> Latents:
    """Predict a whole clip's velocity under the block-causal mask, with sigmas ``[1, blocks]``."""
    positions = positions_for(student, ROLLOUT.table.total(BLOCKS), ROLLOUT.grid, sinks=True)
    view = Masked(positions, ROLLOUT.table, BLOCKS, ROLLOUT.window, ROLLOUT.horizon)
    return student(x, sigma, student.cache_text(features(student).to(student.sinks.device)), view)


@torch.no_grad()
def cached_against_masked(settings: PartSettings) -> Figures:
    """Compare the whole clip under the mask with block by block from the ring cache.

    Raises:
        OutOfBounds: if an error is beyond fp32's bound.
    """
    errors: Figures = {}
    for generation in GENERATIONS:
        student = tiny_student(generation).to(settings.device)
        x = random_clip(student, BLOCKS)
        sigma = torch.linspace(0.1, 0.9, BLOCKS, device=settings.device)[None]
        masked = masked_velocity(student, x, sigma)
        text = student.cache_text(features(student).to(settings.device))
        cache = new_cache(student, ROLLOUT, static=True)
        blocks, expected = [], []
        for index in range(BLOCKS):
            view = cache.view(index, write=True)
            block = student(latents_of_block(x, index), sigma[:, index], text, view)
            blocks.append(block)
            expected.append(latents_of_block(masked, index))
        errors[generation] = relative_error(blocks, expected)
    return within(errors, FP32)


@torch.no_grad()
def causality(settings: PartSettings) -> Figures:
    """Change the sixth block of a clip and return the largest change of the blocks before it.

    Raises:
        OutOfBounds: if they change at all, or the sixth one does not.
    """
    changes: Figures = {}
    for generation in GENERATIONS:
        student = tiny_student(generation).to(settings.device)
        x = random_clip(student, BLOCKS)
        sigma = torch.full((1, BLOCKS), 0.5, device=settings.device)
        other, block = x.map(torch.clone), ROLLOUT.table.block(CHANGED)
        other.video[:, block.video.slice] += 1
        other.audio[:, block.audio.slice] -= 1
        before, after = masked_velocity(student, x, sigma), masked_velocity(student, other, sigma)
        largest = 0.0
        for index in range(CHANGED):
            earlier, changed = latents_of_block(before, index), latents_of_block(after, index)
            for a, b in zip(earlier, changed, strict=True):
                largest = max(largest, float((a - b).abs().max()))
        changes[generation] = largest
        if torch.equal(before.video[:, block.video.slice], after.video[:, block.video.slice]):
            raise OutOfBounds(changes, f"{generation}: the changed block itself did not change")
    return within(changes, 0.0)


def waiting(settings: PartSettings) -> Figures:
    """Run blocks in steady state under torch's check for synchronising calls, in bf16.

    Raises:
        OutOfBounds: names the first call that waits for the device.
    """
    ways = [(generation, InferenceOptions()) for generation in GENERATIONS]
    ways.append(("2.0", InferenceOptions(concurrent=True)))
    ways.append(("2.0", InferenceOptions(fp8=True)))
    for generation, options in ways:
        model = tiny_student(generation).to(settings.device, torch.bfloat16)
        student = accelerate(model, options)
        text = features(student).map(lambda t: t.to(settings.device, torch.bfloat16))
        generator = torch.Generator(settings.torch_device).manual_seed(3)
        rollout = Rollout(student, text, ROLLOUT, generator, options)
        for _ in range(BLOCKS):
            next(rollout)
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(3):
                next(rollout)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise OutOfBounds(
                {"ways": len(ways)}, f"{generation}, {options}: a block waits: {reason}"
            ) from error
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return {"ways": len(ways), "blocks_each": 3}
