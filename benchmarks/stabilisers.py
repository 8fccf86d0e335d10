"""Train Stage II with each stabiliser and several numbers of sinks, beside the paper's table 3.

`python -m benchmarks.stabilisers --preset pocket --updates 240` reads latents, trajectories and
Stage I's student below `data/pocket` and trains in fp32 and bf16. Every variant is one MLflow run,
below one that has table and plot. Killed, it resumes. Columns:

    largest_gradient_norm                 of the training
    entropy_prefix, entropy_first_second  of the first audio latents' self-attention, in nats
    loss_video, loss_audio, loss          of one-step clean estimates at sigma 0.5, held-out clips
    paper_norm, paper_loss                the paper's figures at its own size

A dash: training diverged, or the paper does not say.
"""

import argparse
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from omniforcing.core.config import project_root
from omniforcing.core.console import run_command
from omniforcing.core.environment import git_commit
from omniforcing.core.errors import OmniForcingError
from omniforcing.core.files import read_json, write_json
from omniforcing.core.latents import Batch, Latents, noise_like
from omniforcing.core.pair import Pair
from omniforcing.core.random import step_generator
from omniforcing.core.schedule import add_noise
from omniforcing.data.tensors import TensorShards
from omniforcing.distill.causal_ode import CausalOde
from omniforcing.evaluation.plots import BAR, CHANCE, new_figure, save_figure
from omniforcing.model.attention import Masked
from omniforcing.model.config import Stabiliser
from omniforcing.model.rollout import predict_x0
from omniforcing.model.student import positions_for
from omniforcing.model.transformer import DualStream
from omniforcing.model.weights.student import load_model
from omniforcing.pipeline import tracking
from omniforcing.pipeline.config import Config, load_config
from omniforcing.training.loop import fit

SIGMA = 0.5
# The paper's table 3: largest gradient norm and one-step loss at sigma 0.5; None: NaN or not given.
PAPER: dict[str, tuple[float | None, float | None]] = {
    "none": (None, None),
    "sinks-2": (None, None),
    "sinks-4": (49.71, 0.141),
    "sinks-8": (21.95, 0.129),
    "sinks-16": (9.23, 0.081),
    "sinks-24": (9.15, 0.110),
    "sinks_rope_growing-16": (None, 0.402),
    "qk_norm": (None, 0.232),
    "tanh_gate": (None, 1.258),
}
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
SHOWN = (
    "largest_gradient_norm",
    "entropy_prefix",
    "entropy_first_second",
    "loss_video",
    "loss_audio",
    "loss",
)


@dataclass(frozen=True)
class StabiliserVariant:
    """A row of the paper's table in one precision.

    Attributes:
        stabiliser: of the first audio tokens.
        sinks: number of sink tokens.
        precision: of weights, moments and activations, as the authors train.
    """

    stabiliser: Stabiliser
    sinks: int
    precision: str

    @property
    def row(self) -> str:
        """Name of the row in the paper's table."""
        return f"{self.stabiliser.value}-{self.sinks}" if self.sinks else self.stabiliser.value

    @property
    def name(self) -> str:
        return f"{self.row}-{self.precision}"

    @classmethod
    def from_row(cls, row: str, precision: str) -> "StabiliserVariant":
        """Return the variant of a row of the table."""
        stabiliser, _, sinks = row.partition("-")
        return cls(Stabiliser(stabiliser), int(sinks or 0), precision)


class Diverged(OmniForcingError):
    """A gradient norm is not finite, which here is a result."""


class StopAtDivergence(CausalOde):
    """Stage II that stops at the first gradient that is not finite."""

    def record(self, norms: Pair[Tensor], losses: dict[str, Pair[Tensor]]) -> dict[str, Tensor]:
        if not all(torch.isfinite(norm) for norm in norms):
            raise Diverged("training.not-finite", "a gradient norm is not finite")
        return super().record(norms, losses)


class Entropies(Masked):
    """A block-causal view that records the entropy of audio self-attention, in nats."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.recorded: dict[int, list[Tensor]] = {0: [], 1: []}

    def mix(self, site: str, block: int, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        if site == "audio" and block in self.recorded:
            asked = q if block else q[:, self.positions.sinks :]
            a, b = (x.float().unflatten(-1, (heads, -1)).transpose(1, 2) for x in (asked, k))
            weights = (a @ b.transpose(-1, -2) / math.sqrt(a.shape[-1])).softmax(-1)
            self.recorded[block].append(torch.special.entr(weights).sum(-1).mean())
        return super().mix(site, block, q, k, v, heads)

    def means(self) -> dict[str, float]:
        """Return the mean over layers, heads, latents and samples, per block.

        Block 0 is the prefix, block 1 the first second after it.
        """
        names = {0: "entropy_prefix", 1: "entropy_first_second"}
        return {
            names[block]: float(torch.stack(noted).mean()) for block, noted in self.recorded.items()
        }


@dataclass(frozen=True)
class Experiment:
    """Trains and measures variants on a preset's data.

    Attributes:
        config: of the preset.
        data: folder of its outputs.
        work: folder of unfinished and finished variants.
        updates: of each variant's training.
    """

    config: Config
    data: Path
    work: Path
    updates: int

    def variant(
        self, variant: StabiliserVariant, client: Any, parent: str
    ) -> dict[str, float | None]:
        """Train and measure one variant, or take what an earlier command results."""
        work = self.work / variant.name
        if (work / "result.json").is_file():
            return read_json(work / "result.json")
        work.mkdir(parents=True, exist_ok=True)
        tags = {
            "experiment": "stabilisers",
            "preset": self.config.preset,
            "mlflow.parentRunId": parent,
        }
        params = {
            "stabiliser": variant.stabiliser.value,
            "sinks": variant.sinks,
            "precision": variant.precision,
        }
        run = tracking.open_run(
            client, variant.name, work / "run.json", tags, params | {"updates": self.updates}
        )
        with tracking.closing(run):
            results = self._train(variant, work, run)
            run.log_metrics({name: value for name, value in results.items() if value is not None})
        write_json(work / "result.json", results)
        return results

    def _train(
        self, variant: StabiliserVariant, work: Path, run: tracking.Run
    ) -> dict[str, float | None]:
        config, dtype = self.config, PRECISIONS[variant.precision]
        optim = replace(config.causal_ode.optim, steps=self.updates)
        source = self.data / config.causal_ode.init.value
        student = load_model(source, variant.sinks, stabiliser=variant.stabiliser, fresh=True).to(
            dtype
        )
        data = TensorShards(self.data / "trajectories", "train", config.clips.latent_counts)
        view = self._view(Masked, student, data.grid)
        stage = replace(config.causal_ode, optim=optim)
        module = StopAtDivergence(
            student, stage, config.student.sigmas, config.student.table, view, config.seed
        )
        trainer = replace(config.trainer, precision="32-true", probes=0)
        every = min(trainer.checkpoint_every, self.updates)

        def batches(epoch: int) -> Iterator[Batch]:
            return data.batches(optim.batch, every, config.seed, epoch)

        try:
            fit(
                module,
                batches,
                steps=self.updates,
                work=work,
                trainer=trainer,
                log=run.log_metrics,
                name=variant.name,
            )
        except Diverged:
            return dict.fromkeys(SHOWN)
        largest = max(module.summary().values())
        return {"largest_gradient_norm": largest, **self._measure(module.ema.model, data.grid)}

    def _view(self, kind: type[Masked], student: DualStream, grid: tuple[int, int]) -> Masked:
        config = self.config
        positions = positions_for(student, config.clips.latent_counts, grid, sinks=True)
        return kind(
            positions,
            config.student.table,
            config.horizon + 1,
            config.student.window,
            config.horizon,
        )

    @torch.no_grad()
    def _measure(self, student: DualStream, grid: tuple[int, int]) -> dict[str, float]:
        """Measure entropies and the loss of one-step clean estimates on held-out clips.

        All blocks are noised to sigma 0.5.
        """
        batch = next(held_out(self.data / "latents", self.config))
        view = self._view(Entropies, student, grid)
        noise = noise_like(batch.latents, step_generator(self.config.seed, 0, "stabilisers"))
        x = batch.latents.map(lambda a, n: add_noise(a, n, SIGMA), noise)
        x0 = predict_x0(student, x, SIGMA, student.cache_text(batch.text), view)
        losses = x0.map(lambda a, b: float((a - b).square().mean()), batch.latents)
        assert isinstance(view, Entropies)
        return {
            **view.means(),
            **{f"loss_{m}": v for m, v in losses.items()},
            "loss": (losses.video + losses.audio) / 2,
        }


def held_out(folder: Path, config: Config) -> Iterator[Batch]:
    """Yield the held-out clips, at most 64, as one batch."""
    shards = TensorShards(folder, "heldout", config.clips.latent_counts)
    samples = [
        (latents, caption)
        for (_, latents, caption, _), _ in zip(shards.samples(), range(64), strict=False)
    ]
    latents: Latents = samples[0][0].map(
        lambda *parts: torch.stack(parts), *(sample for sample, _ in samples[1:])
    )
    yield Batch(latents, shards.text.of([caption for _, caption in samples]))


def draw(path: Path, results: Mapping[str, Mapping[str, float | None]]) -> Path:
    """Plot gradient norm, loss and entropy of every row beside the paper's; a gap: diverged."""
    figure, axes = new_figure(1, 3, width=12, height=4.2, sharey=True)
    rows, gap = list(PAPER), math.nan
    columns = {"fp32": (BAR, -0.25), "bf16": ("#edae49", 0.0)}
    for axis, metric in zip(
        axes, ("largest_gradient_norm", "loss", "entropy_first_second"), strict=True
    ):
        for precision, (colour, offset) in columns.items():
            values = [results.get(f"{row}-{precision}", {}).get(metric) for row in rows]
            places = [i + offset for i in range(len(rows))]
            axis.barh(
                places,
                [gap if v is None else v for v in values],
                0.25,
                color=colour,
                label=precision,
            )
        if metric != "entropy_first_second":
            values = [PAPER[row][metric == "loss"] for row in rows]
            axis.barh(
                [i + 0.25 for i in range(len(rows))],
                [gap if v is None else v for v in values],
                0.25,
                color=CHANCE,
            )
        axis.set_title(
            {"loss": f"one-step loss at sigma {SIGMA}"}.get(metric, metric.replace("_", " ")),
            fontsize=10,
        )
    axes[0].set_yticks(range(len(rows)), rows)
    axes[0].invert_yaxis()
    axes[0].plot([], color=CHANCE, lw=6, label="paper, at its own size")
    axes[0].legend(fontsize=8)
    return save_figure(figure, path)


def table(results: Mapping[str, Mapping[str, float | None]]) -> str:
    """Format a row per variant, with the paper's two figures at its end."""
    lines = [
        f"{'variant':<30}" + "".join(f"{name:>23}" for name in (*SHOWN, "paper_norm", "paper_loss"))
    ]
    for name, values in results.items():
        shown = [*(values[key] for key in SHOWN), *PAPER[name.rpartition("-")[0]]]
        lines.append(
            f"{name:<30}" + "".join(f"{'-' if v is None else f'{v:.4g}':>23}" for v in shown)
        )
    return "\n".join(lines)


def run(preset: str, updates: int, rows: list[str], precisions: list[str]) -> None:
    """Train and measure variants, print the table and draw the plot.

    Raises:
        OmniForcingError: if the preset lacks an output.
    """
    root = project_root()
    config = load_config(root=root, preset=preset)
    data = root / "data" / config.preset
    for needed in ("latents", "trajectories", config.causal_ode.init.value):
        if not (data / needed).is_dir():
            raise OmniForcingError(
                "file.missing",
                f"{data / needed} is missing; run `omniforcing run --preset {preset}` first",
            )
    experiment = Experiment(
        config, data, root / ".work" / preset / "stabilisers" / f"{updates}-updates", updates
    )
    experiment.work.mkdir(parents=True, exist_ok=True)
    client = tracking.connect(root)
    tags = {"experiment": "stabilisers", "preset": preset, "git_commit": git_commit(root)}
    whole = tracking.open_run(
        client, f"stabilisers {preset}", experiment.work / "run.json", tags, {"updates": updates}
    )
    with tracking.closing(whole):
        variants = [
            StabiliserVariant.from_row(row, precision) for row in rows for precision in precisions
        ]
        results = {
            variant.name: experiment.variant(variant, client, whole.id) for variant in variants
        }
        write_json(experiment.work / "stabilisers.json", results)
        whole.log_artifact(experiment.work / "stabilisers.json")
        whole.log_artifact(draw(experiment.work / "stabilisers.png", results))
    print(table(results))
    print(f"plot: {experiment.work / 'stabilisers.png'}")


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="pocket", help="whose data to use (default: pocket)")
    parser.add_argument(
        "--updates", type=int, default=240, help="updates of each variant (default: 240, pocket's)"
    )
    parser.add_argument(
        "--rows",
        nargs="+",
        choices=list(PAPER),
        default=list(PAPER),
        help="rows of the table (default: all)",
    )
    parser.add_argument(
        "--precisions",
        nargs="+",
        choices=list(PRECISIONS),
        default=list(PRECISIONS),
        help="default: both",
    )
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    arguments = parser.parse_args()

    def measure() -> None:
        torch.set_num_threads(arguments.threads)
        run(arguments.preset, arguments.updates, arguments.rows, arguments.precisions)

    sys.exit(run_command(measure))


if __name__ == "__main__":
    main()
