"""What the trained models share: EMA, optimisers per modality, gradient norms, and the batch that stages train on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from omniforcing.core.config import OptimiserConfig, Weights
from omniforcing.core.distributed import RowGenerator, Rows, own_rows, size
from omniforcing.core.latents import Batch, Latents, Pair
from omniforcing.core.random import step_seed
from omniforcing.model.transformer import DualStream
from omniforcing.training.muon import Muon
from omniforcing.training.sharding import Sharding, global_norm, is_sharded, own_part

Backward = Callable[[Tensor], None]

# What students have beside LTX-2's parameters: all of it acts on audio.
ADDED = ("sinks", "qk_gain", "tanh_gate")


def modality_of(name: str) -> str:
    """The stream that a parameter of LTX-2's transformer writes into, by its name."""
    parts = name.split(".")
    audio = any(
        p in ADDED or (p.startswith("audio_") and not p.startswith("audio_to_video")) for p in parts
    )
    return (
        "audio"
        if audio or any(p.startswith(("video_to_audio", "av_cross_attn_audio")) for p in parts)
        else "video"
    )


def by_modality(model: nn.Module) -> Pair[list[nn.Parameter]]:
    """A model's trainable parameters, split by the stream they write into."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad and p.numel()]
    return Pair(
        [p for n, p in named if modality_of(n) == "video"],
        [p for n, p in named if modality_of(n) == "audio"],
    )


def matrices(model: nn.Module) -> Pair[list[nn.Parameter]]:
    """The weight matrices of a transformer's layers, split by the stream they write into: what Muon is made for."""
    inside = {
        id(module.weight)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and "transformer_blocks" in name.split(".")
    }
    return by_modality(model).map(lambda group: [p for p in group if id(p) in inside])


def _with_rates(groups: Pair[list[nn.Parameter]], lr: Weights) -> list[dict[str, Any]]:
    return [
        {"params": group, "lr": getattr(lr, name), "peak": getattr(lr, name)}
        for name, group in groups.items()
    ]


def gradients(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """Those that there are."""
    return [p.grad for p in parameters if p.grad is not None]


@torch.no_grad()
def clip(grads: Sequence[Tensor], largest: float) -> None:
    """Scale gradients whose norm together is above ``largest`` down to it."""
    if grads:
        factor = (largest / (global_norm(grads) + 1e-6)).clamp(max=1.0)
        # Of the shards themselves: torch's own clipping lets DTensor plan each of thousands, slower than the step.
        torch._foreach_mul_([own_part(grad) for grad in grads], factor)


class Ema(nn.Module):
    """Exponential moving average of a model's weights, with a warm-up so that early averages are not the start's."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for mean, value in zip(self.model.parameters(), model.parameters(), strict=True):
            mean.lerp_(value, 1 - decay)


@dataclass(frozen=True)
class Randomness:
    """What a micro-batch draws in one step: its rows of what the whole batch draws, a function of seed, stage and step."""

    seed: int
    step: int
    stage: str
    rows: Rows
    device: torch.device

    def __call__(self, stream: str = "") -> RowGenerator:
        """A generator at its start."""
        generator = RowGenerator(device=self.device)
        generator.manual_seed(step_seed(self.seed, self.step, self.stage + stream))
        generator.rows = self.rows
        return generator


class Part(NamedTuple):
    """A micro-batch, and its generators by name."""

    data: Batch
    generator: Randomness


class StageModule(nn.Module):
    """Base of the trained stages: fp32 master weights, AdamW or Muon per modality, clipping, EMA, randomness per step.

    The training loop calls ``shard``, ``place`` and ``configure_optimizers`` in this order, then
    ``training_step`` once per step. For mixed precision, it runs under autocast.
    """

    largest_norm: Tensor

    def __init__(
        self, model: DualStream, optim: OptimiserConfig, seed: int, muon_lr: Weights | None = None
    ) -> None:
        super().__init__()
        self.model, self.optim, self.seed, self.muon_lr = model, optim, seed, muon_lr
        self.accumulate = 1  # micro-batches per step
        # Device of the random generators; None: that of the model.
        self.generator_device: torch.device | None = None
        self.sharding: Sharding | None = None
        self.ema = Ema(model, optim.ema)
        self.register_buffer("largest_norm", torch.zeros(2))

    @property
    def device(self) -> torch.device:
        """Device of the model's parameters."""
        return next(self.model.parameters()).device

    def shard(self, device: torch.device) -> None:
        """Shard all models over the process group, if ``sharding`` is set and they are whole."""
        if self.sharding and not is_sharded(self.model):
            self.sharding.apply(self.models(), device)
            self.sharding.apply([self.ema.model], device)

    def place(self, device: torch.device) -> None:
        """Move all models, also a frozen teacher, to a device; call it before making optimisers."""
        self.to(device)

    def models(self) -> list[DualStream]:
        """All models but the averaged one."""
        return [self.model]

    def recompute(self) -> None:
        """Keep one activation per layer of what is trained."""
        for model in self.models():
            model.core.gradient_checkpointing = True

    def training_step(
        self, step: int, data: Batch, optimisers: list[torch.optim.Optimizer], backward: Backward
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
        """AdamW for all of a model, or with ``muon_lr`` Muon for its layers' matrices and AdamW for the rest."""
        if muon_lr is None:
            return [self.adamw(model, lr)]
        inside = matrices(model)
        return [self.adamw(model, lr, left_out=inside), self.muon(inside, muon_lr)]

    def adamw(
        self, model: nn.Module, lr: Weights, left_out: Pair[list[nn.Parameter]] | None = None
    ) -> torch.optim.Optimizer:
        """AdamW with one learning rate per modality, for all trainable parameters but those ``left_out``."""
        others = {id(p) for group in left_out or () for p in group}
        groups = by_modality(model).map(lambda group: [p for p in group if id(p) not in others])
        return torch.optim.AdamW(
            _with_rates(groups, lr),
            betas=tuple(self.optim.betas),
            weight_decay=self.optim.weight_decay,
        )

    def muon(self, groups: Pair[list[nn.Parameter]], lr: Weights) -> torch.optim.Optimizer:
        """Muon (Jordan et al. 2024), which steps along the nearest orthogonal matrix, scaled so that AdamW's rates fit."""
        return Muon(
            _with_rates(groups, lr),
            weight_decay=self.optim.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        )

    def parts(self, data: Batch, step: int) -> list[Part]:
        """The micro-batches of this process's rows of a step's batch."""
        local = len(data.text.video)
        rows = own_rows(local * size(), self.accumulate).split(self.accumulate)
        stage, count = f"{type(self).__name__}/", local // self.accumulate
        device = self.generator_device or self.device

        def part(index: int, mine: Rows) -> Part:
            own = data.rows(index * count, (index + 1) * count)
            return Part(own, Randomness(self.seed, step, stage, mine, device))

        return [part(index, mine) for index, mine in enumerate(rows)]

    def update(
        self,
        optimisers: list[torch.optim.Optimizer],
        backward: Backward,
        model: nn.Module,
        losses: Iterator[Pair[Tensor]],
        weights: Weights,
        step: int,
        factor: float = 1.0,
    ) -> tuple[Pair[Tensor], Pair[Tensor]]:
        """Step a model's optimisers on the mean of the micro-batches' losses.

        Each loss is computed after the backward of the one before: only one graph lives at a time.

        Returns:
            The mean losses, and the gradient norms before clipping, per modality.
        """
        groups = [group for optimiser in optimisers for group in optimiser.param_groups]
        for optimiser in optimisers:
            optimiser.zero_grad()
        means = []
        for loss in losses:
            backward(weighted(loss, weights) / self.accumulate)
            means.append(loss.map(Tensor.detach))
        norms = by_modality(model).map(lambda mine: global_norm(gradients(mine)))
        clip(gradients(p for group in groups for p in group["params"]), self.optim.clip)
        scale = factor * min(1.0, (step + 1) / max(1, self.optim.warmup))
        for group in groups:
            group["lr"] = group["peak"] * scale
        for optimiser in optimisers:
            optimiser.step()
        return mean(means), norms

    def record(self, norms: Pair[Tensor], losses: dict[str, Pair[Tensor]]) -> dict[str, Tensor]:
        """Remember the largest gradient norms; return the values to log.

        Returns:
            Each pair as ``name_video`` and ``name_audio``.
        """
        self.largest_norm = torch.maximum(
            self.largest_norm, torch.stack([*norms]).detach().to(self.largest_norm)
        )
        pairs = {**losses, "gradient_norm": norms}
        return {
            f"{name}_{m}": value.detach()
            for name, pair in pairs.items()
            for m, value in pair.items()
        }

    def summary(self) -> dict[str, float]:
        """Largest gradient norm of each modality over the whole training, before clipping."""
        return {
            f"largest_gradient_norm_{m}": float(self.largest_norm[i])
            for i, m in enumerate(("video", "audio"))
        }


def weighted(losses: Pair[Tensor], weights: Weights) -> Tensor:
    """``w_v L_v + w_a L_a``."""
    return weights.video * losses.video + weights.audio * losses.audio


def mean(pairs: list[Pair[Tensor]]) -> Pair[Tensor]:
    """Mean of pairs."""
    return pairs[0].map(lambda *values: sum(values[1:], values[0]) / len(values), *pairs[1:])


def mean_square(error: Latents) -> Pair[Tensor]:
    """Mean of squares per modality."""
    return error.map(lambda e: e.square().mean())
