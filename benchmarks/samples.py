"""Measure what samples of trained models show, one row per sampler.

`python -m benchmarks.samples [MODEL ...]`. MODEL is a stage (teacher, bidirectional_dmd,
causal_ode, self_forcing; default: all that the preset has), or MODEL=FOLDER for other weights.
Captions are held out, and noise is not the evaluation's. Columns: sync margin and its error, offset
of sound and picture, impacts seen and heard, share of frames with a ball, accuracy of colour and
pitch, standard deviation of the latents.

`--guidance` samples the teacher at several scales, to choose `teacher.sampler.guidance`. `--ode`
integrates Stage I's (or the guided teacher's) ODE in that many Euler steps through the student's
sigmas, as stage trajectories does. `--int8` also samples teacher and Stage I with their blocks'
weights in int8, as `trainer.frozen` holds the teacher's.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tqdm import tqdm

from omniforcing.core.config import project_root
from omniforcing.core.console import run_command
from omniforcing.core.errors import OmniForcingError
from omniforcing.core.latents import Latents, TextFeatures
from omniforcing.data.sources import HELDOUT
from omniforcing.distill.sampling import WholeClip, ode_states
from omniforcing.distill.trajectories import refine
from omniforcing.evaluation.evaluate import prompts_and_seeds
from omniforcing.evaluation.report import format_number
from omniforcing.evaluation.samplers import (
    CAUSAL,
    MODELS,
    LatentSampler,
    SamplerFactory,
    split_clips,
)
from omniforcing.evaluation.summary import pocket_world
from omniforcing.model.weights.student import load_model
from omniforcing.pipeline.config import load_config
from omniforcing.pipeline.stages.shared.factory import open_factory
from omniforcing.pocket.events import colours_in
from omniforcing.pocket.observe import observe
from omniforcing.pocket.sync import TOLERANCE_MS
from omniforcing.training.config import Weights
from omniforcing.training.frozen import hold_frozen

SHOWN = {
    **{"sync_margin": "margin", "sync_margin_error": "+-", "sync_offset_ms": "offset ms"},
    **{"events_video": "seen", "events_audio": "heard", "ball_present": "ball"},
    **{"colour_accuracy": "colour", "pitch_accuracy": "pitch"},
}


@dataclass(frozen=True)
class ModelRequest:
    """A model that the command line names, and how to sample from it.

    Attributes:
        label: the words of the command line.
        name: of the stage.
        folder: of the weights.
        guidance: scales to sample the teacher at; empty: the preset's.
        steps: numbers of Euler steps to integrate the ODE in.
        int8: whether to sample with quantised weights too.
    """

    label: str
    name: str
    folder: Path
    guidance: list[float]
    steps: list[int]
    int8: bool


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "models", nargs="*", metavar="MODEL[=FOLDER]", help="default: all of the preset's"
    )
    parser.add_argument("--preset", default="pocket", help="whose data to use (default: pocket)")
    parser.add_argument(
        "--guidance",
        type=float,
        nargs="+",
        default=[],
        help="scales of both streams for the teacher",
    )
    parser.add_argument(
        "--ode",
        type=int,
        nargs="+",
        default=[],
        metavar="STEPS",
        help="integrate the ODE in so many steps too",
    )
    parser.add_argument("--int8", action="store_true", help="sample with weights in int8 too")
    parser.add_argument("--clips", type=int, default=64, help="held-out captions (default: 64)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    arguments = parser.parse_args()

    def measure() -> None:
        torch.set_num_threads(arguments.threads)
        config = load_config(root=project_root(), preset=arguments.preset)
        data = project_root() / "data" / config.preset
        names = arguments.models or [name for name in MODELS if (data / name).is_dir()]
        asked = (arguments.guidance, arguments.ode, arguments.int8)
        requests = [_parse_model(word, data, *asked) for word in names]
        captions = split_clips(data / "shards", HELDOUT, arguments.clips).captions
        if not any(map(colours_in, captions)):
            raise OmniForcingError(
                "benchmarks.not-pocket",
                f"{data / 'shards'} holds no clips of the pocket world, "
                "which alone can be measured so",
            )
        factory = open_factory(config, data / "codec", data / "latents")
        print(
            f"{'sampler':<40}"
            + "".join(f"{name:>11}" for name in (*SHOWN.values(), "std video", "std audio"))
        )
        for request in requests:
            for label, draw in samplers(factory, request):
                print(
                    f"{label:<40}"
                    + "".join(
                        f"{format_number(value):>11}"
                        for value in row(factory, draw, captions, config.seed + 1)
                    ),
                    flush=True,
                )

    sys.exit(run_command(measure))


def _parse_model(
    word: str, data: Path, guidance: list[float], steps: list[int], int8: bool
) -> ModelRequest:
    name, _, folder = word.partition("=")
    if name not in MODELS:
        raise OmniForcingError(
            "option.unknown-name", f"{word}: no model of that name; there are {', '.join(MODELS)}"
        )
    path = Path(folder) if folder else data / name
    return ModelRequest(word, name, path, guidance, steps, int8)


def samplers(factory: SamplerFactory, request: ModelRequest) -> Iterator[tuple[str, LatentSampler]]:
    """Yield a label and a sampler for each requested way to draw from a model."""
    seconds = factory.clips.seconds
    if request.name == "teacher" and request.guidance:
        for scale in request.guidance:
            sampler = replace(factory.teacher_sampler, guidance=Weights(scale, scale))
            guided = replace(factory, teacher_sampler=sampler)
            yield (
                f"{request.label}, guidance {scale:g}",
                guided.draw(request.name, request.folder, seconds),
            )
    else:
        yield request.label, factory.draw(request.name, request.folder, seconds)
    if request.int8 and request.name not in CAUSAL:
        model = load_model(request.folder, device=factory.device, sinks=0).eval()
        hold_frozen(model, "int8")
        yield f"{request.label}, int8", factory.bind(request.name, model, seconds)
    if request.name not in CAUSAL:
        for steps in request.steps:
            yield f"{request.label}, ODE in {steps} steps", ode(factory, request, steps)


def ode(factory: SamplerFactory, request: ModelRequest, steps: int) -> LatentSampler:
    """Return a sampler that integrates the model's ODE.

    ``steps`` Euler steps are shared out over the intervals of the student's sigmas.
    """
    sigmas = refine(factory.student.sigmas, steps)
    clip = WholeClip(
        load_model(request.folder, device=factory.device, sinks=0).eval(),
        factory.clips.latent_counts,
        factory.grid,
    )
    unconditional = factory.text.unconditional.map(lambda x: x.to(factory.device))

    def draw(text: TextFeatures, generator: torch.Generator) -> Latents:
        denoise = clip.denoiser(
            text,
            unconditional,
            factory.teacher_sampler.guidance if request.name == "teacher" else None,
        )
        *_, last = ode_states(denoise, clip.noise(len(text.video), generator), sigmas)
        return last

    return draw


def row(
    factory: SamplerFactory, draw: LatentSampler, captions: list[str], seed: int
) -> list[float | None]:
    """Measure one sampler: the pocket world's measures, and the latents' standard deviation."""
    drawn: list[Latents] = []

    def kept(text: TextFeatures, generator: torch.Generator) -> Latents:
        drawn.append(draw(text, generator))
        return drawn[-1]

    media = factory.media(kept, *prompts_and_seeds(captions, 1, seed))
    shown = tqdm(
        zip(media, captions, strict=True), "sampling", len(captions), unit="clip", leave=False
    )
    figures = pocket_world([observe(*both) for both in shown], TOLERANCE_MS / 1000)
    deviations = drawn[0].map(lambda *parts: torch.cat(parts).std(), *drawn[1:])
    return [*(figures[name] for name in SHOWN), *map(float, deviations)]


if __name__ == "__main__":
    main()
