"""Train a model as a low-rank adapter (LoRA, Hu et al. 2021) on frozen weights that others share.

An ``AdaptedStream`` is a ``DualStream`` over another one's weights, its base. It owns its adapter
and its sinks or other stabiliser, and refers to everything else. So teacher, student and critic
are one model in memory; each knows its own adapter, and nothing is switched or copied between
their forwards, also where two of them share an autograd graph. Optimisers, EMA and checkpoints see
what it owns. The layers, their start and their names are peft's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from omniforcing.core.errors import OmniForcingError
from omniforcing.core.latents import Latents, TextFeatures
from omniforcing.model.attention import View
from omniforcing.model.conditioning import Sigma, TextCache
from omniforcing.model.config import ADAPTABLE, Stabiliser
from omniforcing.model.kernels import AdaptedKernels, Kernels
from omniforcing.model.transformer import DualStream
from omniforcing.model.weights.checkpoint import Checkpoint
from omniforcing.model.weights.lora import (
    BASE_DIGEST,
    BASE_NAME,
    Factors,
    Lora,
    WeightsError,
    check_rank,
)
from omniforcing.training.config import AdapterConfig
from omniforcing.training.sharding import gathered

NAME = "default"  # peft's name of a model's only adapter


class SharedLinear(nn.Linear):
    """A linear layer of the base, of which peft's layer must own nothing.

    Args:
        linear: the base's layer, which computes and keeps its weights.
    """

    shared: nn.Linear

    def __init__(self, linear: nn.Linear) -> None:
        nn.Module.__init__(self)
        # Past nn.Module's own way, which would make the layer a part of this one.
        self.__dict__["shared"] = linear
        self.in_features, self.out_features = linear.in_features, linear.out_features

    def forward(self, x: Tensor) -> Tensor:
        return self.shared(x)

    def __deepcopy__(self, _memo: dict[int, Any]) -> SharedLinear:
        return SharedLinear(self.shared)


class GradientDropout(nn.Dropout):
    """Dropout in forwards with gradient alone.

    A model that is trained also makes samples and scores them, which must not be noisy.
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if torch.is_grad_enabled() else x


def target_layers(base: DualStream, config: AdapterConfig) -> dict[str, nn.Linear]:
    """Layers of a base that an adapter changes, by diffusers name."""
    found = {}
    for name, module in base.core.named_modules():
        inside = name.removeprefix("transformer_blocks.").partition(".")[2]
        if inside in ADAPTABLE and any(config.names(target, inside) for target in config.targets):
            found[name] = module
    return found


def check_targets(config: AdapterConfig, checkpoint: Checkpoint, where: str) -> None:
    """Refuse an adapter that does not fit a base, before any weight is read.

    Args:
        config: the adapter.
        checkpoint: the base.
        where: the adapter's key in the configuration.

    Raises:
        OmniForcingError: for a target that the base does not have, or a rank above a matrix.
    """
    wanted = dict.fromkeys(config.targets, False)
    for name, entry in checkpoint.entries.items():
        layer = name.removesuffix(".weight")
        inside = layer.removeprefix("transformer_blocks.").partition(".")[2]
        if layer == name or inside not in ADAPTABLE:
            continue
        for target in config.targets:
            if config.names(target, inside):
                wanted[target] = True
                check_rank(config.rank, layer, entry.shape, where)
    for target, met in wanted.items():
        if not met:
            raise OmniForcingError(
                "adapter.no-such-target",
                f"{where}.targets: {target!r} is no layer of {checkpoint.source}; "
                "name layers that it has",
            )


def build_layers(base: DualStream, config: AdapterConfig, seed: int) -> nn.Module:
    """Build peft's layers for a base, in a tree with diffusers' names; they change nothing yet.

    Args:
        base: the model to adapt; on any device.
        config: rank, alpha, targets and dropout.
        seed: of the first factors; the second ones are zero.
    """
    from peft import LoraConfig, inject_adapter_in_model

    targets = target_layers(base, config)
    tree = nn.Module()
    for name, linear in targets.items():
        place = tree
        *path, last = name.split(".")
        for part in path:
            if part not in place._modules:
                place.add_module(part, nn.Module())
            place = place.get_submodule(part)
        # Empty stand-ins: peft would move adapters to the base's device and precision.
        size = (linear.in_features, linear.out_features)
        place.add_module(last, nn.Linear(*size, bias=False, device="meta"))
    settings = LoraConfig(
        r=config.rank,
        lora_alpha=config.rank if config.alpha is None else config.alpha,  # type: ignore[arg-type]
        target_modules=list(targets),
        lora_dropout=config.dropout,
    )
    # peft asks a model for its config, which an adapter on some layers does not need.
    tree.config = SimpleNamespace(to_dict=dict)  # type: ignore[assignment]
    inject_adapter_in_model(settings, tree, NAME, low_cpu_mem_usage=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, linear in targets.items():
            layer: Any = tree.get_submodule(name)
            for factor in (layer.lora_A, layer.lora_B):
                factor.to_empty(device="cpu")
            layer.reset_lora_parameters(NAME, True)
            layer.base_layer = SharedLinear(linear)
            if config.dropout:
                layer.lora_dropout[NAME] = GradientDropout(config.dropout)
    return tree


def peft_layers(adapter: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the layers of a tree of ``build_layers``, by diffusers name."""
    for name, module in adapter.named_modules():
        if isinstance(getattr(module, "base_layer", None), SharedLinear):
            yield name, module


class AdaptedStream(DualStream):
    """A model that is an adapter on another one's frozen weights.

    Args:
        base: the model whose weights it shares; it is frozen.
        adapter: peft's layers (``build_layers``).
        digest: sha256 of the base's weights, which checkpoints and files name.
        sinks: number of sink tokens, which it owns.
        stabiliser: kind of stabiliser, which it owns.
        added: parameters of sinks and stabiliser, by name; None makes fresh ones.
    """

    def __init__(
        self,
        base: DualStream,
        adapter: nn.Module,
        digest: str,
        sinks: int = 0,
        stabiliser: Stabiliser = Stabiliser.sinks,
        added: Mapping[str, nn.Parameter | None] | None = None,
    ) -> None:
        layers = {id(module.base_layer.shared): module for _, module in peft_layers(adapter)}
        recompute = base.blocks[0].checkpoint_activations
        draws = any(isinstance(module, GradientDropout) for module in adapter.modules())
        kernels = AdaptedKernels(layers, draws)
        super().__init__(base.core, sinks, stabiliser, recompute, kernels, added)
        # Plain attributes, not modules: the weights belong to the base.
        self.__dict__["core"] = self._modules.pop("core")
        self.__dict__["base"] = base.requires_grad_(False)
        self.adapter, self.digest = adapter, digest
        for block in self.blocks:
            block.holders.append(adapter.get_submodule(f"transformer_blocks.{block.index}"))
        # In checkpoints, so that a training does not go on upon another base.
        own = torch.tensor(list(bytes.fromhex(digest)), dtype=torch.uint8)
        self.register_buffer("base_digest", own)

    def __deepcopy__(self, memo: dict[int, Any]) -> AdaptedStream:
        added = {
            name: nn.Parameter(p.detach().clone(), p.requires_grad)
            for name, p in self.named_parameters(recurse=False)
        }
        adapter = copy.deepcopy(self.adapter, memo)
        kind = (len(self.sinks), self.stabiliser)
        return AdaptedStream(self._base, adapter, self.digest, *kind, added).train(self.training)

    def with_kernels(self, kernels: Kernels) -> DualStream:
        """Refuse other kernels, which would compute the base alone."""
        raise TypeError(
            f"{type(kernels).__name__} know no adapters: load the merged weights that a stage wrote"
        )

    @property
    def _base(self) -> DualStream:
        assert self.base is not None
        return self.base

    def units(self) -> list[nn.Module]:
        return list(self.adapter.get_submodule("transformer_blocks").children())

    def _load_from_state_dict(self, state: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        kept = state.get(f"{prefix}base_digest")
        if kept is not None and bytes(kept.tolist()).hex() != self.digest:
            raise OmniForcingError(
                "adapter.other-base",
                f"the checkpoint is an adapter for weights with sha256 "
                f"{bytes(kept.tolist()).hex()[:12]}, and the base has {self.digest[:12]}; go on "
                "with the base it was trained on, or remove the checkpoint to start afresh",
            )
        super()._load_from_state_dict(state, prefix, *rest)

    def cache_text(self, text: TextFeatures) -> TextCache:
        return self._with_base(super().cache_text, text)

    def forward(self, x: Latents, sigma: Sigma, text: TextCache, view: View) -> Latents:
        return self._with_base(super().forward, x, sigma, text, view)

    def _with_base(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run a function that uses the base's weights; a sharded base gathers them around it."""
        run = getattr(self.base, "run_gathered", None)
        return function(*arguments) if run is None else run(function, *arguments)

    def lora(self, source: Path, base: str) -> Lora:
        """The adapter as a file holds it; where the model is sharded, all workers call it together.

        Args:
            source: the file it will be written to.
            base: name of the base.
        """
        layers, ranks = {}, set()
        for name, layer in peft_layers(self.adapter):
            a, b = (gathered(part[NAME].weight) for part in (layer.lora_A, layer.lora_B))
            layers[name] = Factors(a, b * layer.scaling[NAME])
            ranks.add(layer.r[NAME])
        facts = {BASE_NAME: base, BASE_DIGEST: self.digest, "rank": str(max(ranks))}
        return Lora(source, layers, {**facts, "rope": self.core.config.rope_type})

    @torch.no_grad()
    def take(self, lora: Lora) -> None:
        """Go on from an adapter on the same base.

        Raises:
            WeightsError: if it is for another base, or has other layers or another rank.
        """
        lora.check_base(self.digest, "the base")
        own = dict(peft_layers(self.adapter))
        extra, missing = sorted(lora.layers.keys() - own), sorted(own.keys() - lora.layers)
        if extra or missing:
            name = (missing or extra)[0]
            raise WeightsError(
                "adapter.other-targets",
                f"{lora.source} {'lacks' if missing else 'changes'} {name}, which the adapter's "
                f"targets {'name' if missing else 'do not name'} ({len(missing)} missing, "
                f"{len(extra)} extra layers); set targets to what it was trained with",
            )
        for name, (a, b) in lora.layers.items():
            layer = own[name]
            if len(a) != layer.r[NAME]:
                raise WeightsError(
                    "adapter.other-rank",
                    f"{lora.source}: {name} has rank {len(a)}, expected {layer.r[NAME]}; set rank "
                    "to what it was trained with",
                )
            layer.lora_A[NAME].weight.copy_(a)
            layer.lora_B[NAME].weight.copy_(b / layer.scaling[NAME])
