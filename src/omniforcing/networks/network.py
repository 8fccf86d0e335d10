"""A network that knows the config it was built from, and its folder in diffusers' format."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from omniforcing.core.errors import OmniForcingError

CONFIG = "config.json"
# Version of diffusers whose format this is; a test fails when the pin moves.
FORMAT = "0.42.1"
_WEIGHTS = "diffusion_pytorch_model"

Init = TypeVar("Init", bound=Callable[..., None])


class NetworkConfig(dict[str, Any]):
    """Arguments of a network, by key or by attribute, with those left to their defaults."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(f"config has no {name}") from error


def records_config(init: Init) -> Init:
    """Let a network's ``__init__`` keep its arguments, defaults included, as ``config``."""
    signature = inspect.signature(init)

    @wraps(init)
    def recorded(self: Network, *args: Any, **kwargs: Any) -> None:
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        del bound.arguments["self"]
        self.config = NetworkConfig(bound.arguments)
        init(self, *args, **kwargs)

    return recorded  # type: ignore[return-value]


class Loaded(NamedTuple):
    """A network read from its folder.

    Attributes:
        network: the network, in eval mode.
        missing: names of tensors that the folder lacks; they have no values.
        unexpected: names of tensors that the network has no place for.
    """

    network: Any
    missing: list[str]
    unexpected: list[str]


class Network(nn.Module):
    """A torch module with a config and a folder."""

    config: NetworkConfig

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Build from a config; keys that it has no argument for are kept in its own config."""
        known = set(inspect.signature(cls.__init__).parameters) - {"self"}
        network = cls(**{key: value for key, value in config.items() if key in known})
        others = {k: v for k, v in config.items() if k not in known and not k.startswith("_")}
        network.config.update(others)
        return network

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype = torch.float32) -> Loaded:
        """Read a folder without any other copy of its weights.

        Args:
            folder: folder with ``config.json`` and safetensors.
            dtype: dtype of the weights in memory.

        Raises:
            OSError: if a file is missing or cannot be read.
            ValueError: if the config is no json object, or its values fit no network.
            RuntimeError: if a tensor has another shape than the config's.
            SafetensorError: if a weight file is damaged.
        """
        config = json.loads((folder / CONFIG).read_text())
        with torch.device("meta"):
            network = cls.from_config(config)
        state = {name: tensor.to(dtype) for name, tensor in _tensors(folder).items()}
        found = network.load_state_dict(state, strict=False, assign=True)
        return Loaded(network.eval(), found.missing_keys, found.unexpected_keys)

    def save_config(self, folder: Path) -> None:
        """Write ``config.json``."""
        folder.mkdir(parents=True, exist_ok=True)
        named = {"_class_name": type(self).__name__, "_diffusers_version": FORMAT}
        text = json.dumps({**self.config, **named}, indent=2, sort_keys=True)
        (folder / CONFIG).write_text(text + "\n")

    def save_pretrained(self, folder: Path, max_shard_size: str = "10GB") -> None:
        """Write config and weights; above ``max_shard_size`` the weights in shards."""
        from huggingface_hub import split_torch_state_dict_into_shards

        self.save_config(folder)
        state = self.state_dict()
        shards = split_torch_state_dict_into_shards(
            state, filename_pattern=_WEIGHTS + "{suffix}.safetensors", max_shard_size=max_shard_size
        )
        for name, tensors in shards.filename_to_tensors.items():
            part = {tensor: state[tensor].contiguous() for tensor in tensors}
            save_file(part, folder / name, metadata={"format": "pt"})
        if shards.is_sharded:
            index = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
            text = json.dumps(index, indent=2, sort_keys=True)
            (folder / f"{_WEIGHTS}.safetensors.index.json").write_text(text + "\n")

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device


def _tensors(folder: Path) -> dict[str, Tensor]:
    """Tensors of a folder's weight file, or of the shards that its index names."""
    index = folder / f"{_WEIGHTS}.safetensors.index.json"
    if not index.is_file():
        return load_file(folder / f"{_WEIGHTS}.safetensors")
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(json.loads(index.read_text())["weight_map"].values())):
        tensors |= load_file(folder / Path(name).name)
    return tensors


def stored_precision(*folders: Path) -> torch.dtype:
    """Return bf16 if all weights of some folders are stored so, else fp32.

    Raises:
        OmniForcingError: if a file is unreadable.
    """
    dtypes: set[str] = set()
    for folder in folders:
        for file in folder.glob("*.safetensors"):
            try:
                with safe_open(file, "pt") as opened:
                    dtypes |= {opened.get_slice(key).get_dtype() for key in opened.keys()}  # noqa: SIM118
            except (OSError, SafetensorError) as error:
                raise OmniForcingError(
                    "file.unreadable", f"{file} is truncated or damaged ({error}); copy it again"
                ) from error
    return torch.bfloat16 if dtypes == {"BF16"} else torch.float32


class Recomputes(nn.Module):
    """A module that can keep its children's inputs alone and recompute the rest in the backward.

    Attributes:
        gradient_checkpointing: whether it does; ``_gradient_checkpointing_func`` is set with it.
    """

    gradient_checkpointing = False
    _gradient_checkpointing_func: Callable[..., Any]

    def run(self, child: nn.Module, *inputs: Any) -> Any:
        """Call a child."""
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(child, *inputs)
        return child(*inputs)
