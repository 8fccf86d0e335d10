"""Base of the transformer stages: optimisers per modality, EMA, updates, micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from omniforcing.core.distributed import RowGenerator, Rows, local_rows, rank, world_size
from omniforcing.core.latents import Batch, Latents
from omniforcing.core.pair import Pair
from omniforcing.core.random import step_seed
from omniforcing.model.transformer import DualStream
from omniforcing.training.compat import scale_in_place
from omniforcing.training.config import OptimiserConfig, Weights
from omniforcing.training.cuts import Cut
from omniforcing.training.frozen import hold_frozen
from omniforcing.training.optimisers import bf16
from omniforcing.training.optimisers.averages import Ema
from omniforcing.training.optimisers.muon import Muon
from omniforcing.training.sharding import Sharding, global_norm, is_sharded, own_part

# Runs the backward pass of a loss; Lightning's, or ``Tensor.backward`` in a plain loop.
Backward = Callable[[Tensor], None]
Optimisers = Sequence[torch.optim.Optimizer]
# Makes a context in which a backward pass leaves its gradients in this process (DDP's ``no_sync``).
NoSync = Callable[[], AbstractContextManager[None]]

# Parameters that a student has on top of LTX-2's; all of them act on audio.
ADDED = ("sinks", "qk_gain", "tanh_gate")


def modality_of(name: str) -> str:
    """Name the stream that a parameter of LTX-2's transformer writes into, ``video`` or ``audio``.

    Args:
        name: the parameter's name in ``DualStream.named_parameters``.
    """
    for part in name.split("."):
        if part in ADDED or part.startswith(("video_to_audio", "av_cross_attn_audio")):
            return "audio"
        if part.startswith("audio_") and not part.startswith("audio_to_video"):
            return "audio"
    return "video"


def by_modality(model: nn.Module) -> Pair[list[nn.Parameter]]:
    """Split a model's trainable parameters by the stream they write into."""
    groups: dict[str, list[nn.Parameter]] = {"video": [], "audio": []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.numel():
            groups[modality_of(name)].append(parameter)
    return Pair(**groups)


def matrices(model: nn.Module) -> Pair[list[nn.Parameter]]:
    """Select the weight matrices of the transformer blocks, which Muon trains, by modality."""
    inside = set()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and "transformer_blocks" in name.split("."):
            inside.add(id(module.weight))
    return by_modality(model).map(lambda group: [p for p in group if id(p) in inside])


def _with_rates(groups: Pair[list[nn.Parameter]], lr: Weights) -> list[dict[str, Any]]:
    """Build an optimiser's parameter groups; ``peak`` keeps the learning rate after the warm-up."""
    return [
        {"params": group, "lr": getattr(lr, name), "peak": getattr(lr, name)}
        for name, group in groups.items()
    ]


def gradients(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """Gradients of the parameters that have one."""
    return [p.grad for p in parameters if p.grad is not None]


@torch.no_grad()
def clip(grads: Sequence[Tensor], largest: float) -> None:
    """Scale gradients down, in place, until their joint norm is at most ``largest``."""
    if grads:
        factor = (largest / (global_norm(grads) + 1e-6)).clamp(max=1.0)
        # On the local shards: torch's own clipping plans a DTensor operation for each of
        # thousands of parameters, which takes longer than the training step.
        scale_in_place([own_part(grad) for grad in grads], factor)


@dataclass(frozen=True)
class Randomness:
    """Random numbers of one micro-batch in one step, a function of seed, step, stage and rows.

    Attributes:
        seed: the run's seed.
        step: the training step.
        stage: name of the stage, which keeps the stages' streams of numbers apart.
        rows: rows of the global batch that the micro-batch holds.
        device: device of the generators.
    """

    seed: int
    step: int
    stage: str
    rows: Rows
    device: torch.device

    def __call__(self, stream: str = "") -> RowGenerator:
        """Make a fresh generator of the named stream; ``draw`` takes this micro-batch's rows."""
        generator = RowGenerator(device=self.device)
        generator.manual_seed(step_seed(self.seed, self.step, self.stage + stream))
        generator.rows = self.rows
        return generator


@dataclass(frozen=True)
class MicroBatch:
    """Rows of a batch that one forward and backward pass takes.

    Attributes:
        data: latents and text features.
        generator: makes a random generator by name.
    """

    data: Batch
    generator: Randomness


class Update:
    """One optimiser step on the mean of the micro-batches' losses.

    ``add`` runs the backward pass of a micro-batch at once, so that one autograd graph lives at a
    time. ``step`` clips the gradients, steps and frees the gradients: those of student and critic
    never live at the same time.

    Args:
        optimisers: the optimisers to step.
        backward: adds a loss's gradients to the parameters.
        micro_batches: how often ``add`` will be called.
        optim: gradient clipping and warm-up.
        no_sync: entered around backward passes that another of the same micro-batch follows.
    """

    def __init__(
        self,
        optimisers: Optimisers,
        backward: Backward,
        micro_batches: int,
        optim: OptimiserConfig,
        no_sync: NoSync = nullcontext,
    ) -> None:
        self.optimisers, self.backward = optimisers, backward
        self.micro_batches, self.optim, self.no_sync = micro_batches, optim, no_sync
        self._losses: list[Pair[Tensor]] = []

    def add(self, losses: Pair[Tensor], cuts: Sequence[Cut] = ()) -> None:
        """Run the backward pass of one micro-batch's losses.

        Args:
            losses: scalars per modality.
            cuts: where the losses' graph is cut, in the order in which its parts run backward.
        """
        loss = (losses.video + losses.audio) / self.micro_batches
        for cut in cuts:
            with self.no_sync():
                self.backward(loss)
            loss = cut.loss()
        self.backward(loss)
        self._losses.append(losses.map(Tensor.detach))

    def step(self, model: nn.Module, step: int, factor: float = 1.0) -> Pair[Tensor]:
        """Clip the gradients, set the learning rates and step the optimisers.

        Args:
            model: the model whose gradients are measured.
            step: the training step, which decides the warm-up.
            factor: the schedule's factor on the learning rates.

        Returns:
            Gradient norms per modality before clipping.
        """
        groups = [group for optimiser in self.optimisers for group in optimiser.param_groups]
        norms = by_modality(model).map(lambda parameters: global_norm(gradients(parameters)))
        clip(gradients(p for group in groups for p in group["params"]), self.optim.clip)
        scale = factor * min(1.0, (step + 1) / max(1, self.optim.warmup))
        for group in groups:
            group["lr"] = group["peak"] * scale
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad()
        return norms

    @property
    def losses(self) -> Pair[Tensor]:
        """Mean loss per modality over the micro-batches so far."""
        return mean(self._losses)


@dataclass(frozen=True)
class TrainingOptions:
    """How a stage trains, whatever its method.

    Attributes:
        accumulate: micro-batches per optimiser step.
        sharding: how the models are sharded over the process group; None keeps them whole.
        batched_guidance: whether a teacher scores with and without the caption in one batch.
        frozen: precision in which a frozen teacher is held, ``fp32``, ``bf16`` or ``int8``.
        averages: precision or place of the averaged weights, ``fp32``, ``bf16`` or ``cpu``.
        moments: precision of AdamW's moments, ``fp32`` or ``bf16``.
    """

    accumulate: int = 1
    sharding: Sharding | None = None
    batched_guidance: bool = True
    frozen: str = "fp32"
    averages: str = "fp32"
    moments: str = "fp32"


DEFAULT = TrainingOptions()


class StageModule(nn.Module):
    """Base of the trained transformer stages.

    It holds fp32 master weights, AdamW or Muon with one learning rate per modality, gradient
    clipping, EMA, and randomness that depends on the step alone. The training loop calls
    ``shard``, ``place`` and ``configure_optimizers`` in this order, then ``training_step`` once
    per step, under autocast for mixed precision.

    Args:
        model: the model to train.
        optim: optimiser, schedule and EMA.
        seed: the run's seed.
        muon_lr: learning rates of Muon for the blocks' matrices; None trains all with AdamW.
        options: micro-batches and sharding.
    """

    largest_norm: Tensor

    def __init__(
        self,
        model: DualStream,
        optim: OptimiserConfig,
        seed: int,
        muon_lr: Weights | None = None,
        options: TrainingOptions = DEFAULT,
    ) -> None:
        super().__init__()
        self.model, self.optim, self.seed, self.muon_lr = model, optim, seed, muon_lr
        self.options = options
        if model.base is not None:
            hold_frozen(model.base, options.frozen)
        self.no_sync: NoSync = nullcontext
        self.ema = Ema(model, optim.ema, options.averages)
        self.register_buffer("largest_norm", torch.zeros(2))

    @property
    def device(self) -> torch.device:
        """Device of the model's parameters."""
        return next(self.model.parameters()).device

    def models(self) -> list[DualStream]:
        """All models except the EMA."""
        return [self.model]

    def shard(self, device: torch.device) -> None:
        """Shard all models over the process group, if asked for and not done yet."""
        sharding = self.options.sharding
        if sharding and not is_sharded(self.model):
            sharding.apply(self.models(), device)
            sharding.apply([self.ema.model], device)

    def place(self, device: torch.device) -> None:
        """Move all models, a frozen teacher included; call it before making optimisers."""
        self.to(device)
        for model in self.models():
            if model.base is not None:
                model.base.to(device)

    def training_step(
        self, step: int, data: Batch, optimisers: Optimisers, backward: Backward
    ) -> dict[str, Tensor]:
        """Take one training step, optimiser steps included.

        Args:
            step: number of the step, which decides its randomness and learning rates.
            data: this process's rows of the batch, on the module's device.
            optimisers: those of ``configure_optimizers``, in its order.
            backward: called with each loss in turn; leaves its gradients in the parameters.

        Returns:
            Values to log, by name.
        """
        raise NotImplementedError

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Build the optimisers that ``training_step`` steps."""
        return self.optimisers_of(self.model, self.optim.lr, self.muon_lr)

    def optimisers_of(
        self, model: nn.Module, lr: Weights, muon_lr: Weights | None
    ) -> list[torch.optim.Optimizer]:
        """Build AdamW for a whole model, or with ``muon_lr`` AdamW and Muon for block matrices."""
        if muon_lr is None:
            return [self.adamw(model, lr)]
        inside = matrices(model)
        return [self.adamw(model, lr, left_out=inside), self.muon(inside, muon_lr)]

    def adamw(
        self, model: nn.Module, lr: Weights, left_out: Pair[list[nn.Parameter]] | None = None
    ) -> torch.optim.Optimizer:
        """Build AdamW, one learning rate per modality, without the parameters ``left_out``."""
        others = {id(p) for group in left_out or () for p in group}
        groups = by_modality(model).map(lambda group: [p for p in group if id(p) not in others])
        first, second = self.optim.betas
        rest: dict[str, Any] = {"betas": (first, second), "weight_decay": self.optim.weight_decay}
        if self.options.moments == "bf16":
            return bf16.AdamW(_with_rates(groups, lr), **rest)
        # One kernel per parameter instead of ten; on a GPU torch steps on many at once anyway.
        on_cpu = self.device.type == "cpu" and not is_sharded(model)
        return torch.optim.AdamW(_with_rates(groups, lr), fused=on_cpu or None, **rest)

    def muon(self, groups: Pair[list[nn.Parameter]], lr: Weights) -> torch.optim.Optimizer:
        """Build Muon (Jordan et al. 2024), its updates scaled so that AdamW's rates fit."""
        return Muon(
            _with_rates(groups, lr),
            weight_decay=self.optim.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        )

    def micro_batches(self, data: Batch, step: int) -> list[MicroBatch]:
        """Split this process's rows of a batch into ``options.accumulate`` micro-batches."""
        local = len(data.text.video)
        count = local // self.options.accumulate
        pieces = local_rows(local * world_size(), self.options.accumulate).split(
            self.options.accumulate
        )
        if any(model.kernels.draws for model in self.models()):
            # Dropout draws from torch's own generators, which must follow from the step too.
            torch.manual_seed(step_seed(self.seed, step, f"{type(self).__name__}/dropout/{rank()}"))
        # The meta device has no generators: a trace draws on the CPU.
        device = torch.device("cpu") if self.device.type == "meta" else self.device
        found = []
        for index, rows in enumerate(pieces):
            randomness = Randomness(self.seed, step, f"{type(self).__name__}/", rows, device)
            piece = data.rows(index * count, (index + 1) * count)
            found.append(MicroBatch(piece, randomness))
        return found

    def begin_update(self, optimisers: Optimisers, backward: Backward) -> Update:
        """Begin an update of both losses' sum."""
        return Update(optimisers, backward, self.options.accumulate, self.optim, self.no_sync)

    def record(self, norms: Pair[Tensor], losses: dict[str, Pair[Tensor]]) -> dict[str, Tensor]:
        """Remember the largest gradient norms; return the values to log.

        Returns:
            Each pair as ``name_video`` and ``name_audio``.
        """
        latest = torch.stack([*norms]).detach().to(self.largest_norm)
        self.largest_norm = torch.maximum(self.largest_norm, latest)
        logged = {}
        for name, pair in {**losses, "gradient_norm": norms}.items():
            for modality, value in pair.items():
                logged[f"{name}_{modality}"] = value.detach()
        return logged

    def summary(self) -> dict[str, float]:
        """Largest gradient norm of each modality over the whole training, before clipping."""
        video, audio = self.largest_norm.tolist()
        return {"largest_gradient_norm_video": video, "largest_gradient_norm_audio": audio}


def mean(pairs: list[Pair[Tensor]]) -> Pair[Tensor]:
    """Mean of pairs, per modality."""
    return pairs[0].map(lambda *values: sum(values[1:], values[0]) / len(values), *pairs[1:])


def mean_square(error: Latents) -> Pair[Tensor]:
    """Mean of squares, per modality."""
    return error.map(lambda e: e.square().mean())
