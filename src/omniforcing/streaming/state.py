"""Saved state of a stream at a border between blocks: one safetensors file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from omniforcing.core.errors import OmniForcingError
from omniforcing.core.files import new_file
from omniforcing.core.states import State, join_states, part_of

SCHEMA = 1
_KEY = "omniforcing"  # metadata of safetensors maps text to text: ours is JSON under this key


class StateError(OmniForcingError):
    """A saved stream that cannot be continued."""


@dataclass(frozen=True)
class StreamState:
    """Everything that the coming blocks depend on.

    Attributes:
        artifact: sha256 of the manifest of the artifact that generated the stream.
        prompt: current prompt.
        seed: seed of the stream.
        generation: K/V caches, state of the random generator, text features, block index.
        decoding: state of the decoder, counts of frames and samples.
    """

    artifact: str
    prompt: str
    seed: int
    generation: State
    decoding: State

    @property
    def block(self) -> int:
        """Index of the next block."""
        return int(self.generation["index"])

    @property
    def frames(self) -> int:
        """Number of frames before the next block."""
        return int(self.decoding["counts"][0])

    def save(self, path: Path) -> None:
        """Write the state to a file that appears when it is complete.

        Raises:
            FileError: if the disk is full or the place cannot be written.
        """
        facts = {
            "schema": SCHEMA,
            "artifact": self.artifact,
            "prompt": self.prompt,
            "seed": self.seed,
        }
        tensors = {
            name: x.contiguous()
            for name, x in join_states(generation=self.generation, decoding=self.decoding).items()
        }
        with new_file(path) as file:
            file.write(save(tensors, {_KEY: json.dumps(facts)}))

    @classmethod
    def load(cls, path: Path, artifact: str, device: str = "cpu") -> StreamState:
        """Read a file that ``save`` wrote for this artifact.

        Raises:
            StateError: if the file is missing, is not a saved stream, has another schema, or
                belongs to another artifact.
        """
        try:
            with safe_open(path, "pt", backend="pread") as file:
                facts, tensors = json.loads(file.metadata()[_KEY]), file.get_tensors()
            schema, owner = facts["schema"], facts["artifact"]
        except FileNotFoundError as error:
            raise StateError(
                "file.missing",
                f"{path} does not exist; give a file that a stream's state was saved to",
            ) from error
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise StateError(
                "file.unreadable",
                f"{path} is not the state of a stream ({error}); give a file that one was saved to",
            ) from error
        if schema != SCHEMA:
            raise StateError(
                "file.unknown-schema",
                f"{path} has schema {schema}, this version reads schema {SCHEMA}; "
                "save the stream again",
            )
        if owner != artifact:
            raise StateError(
                "streaming.other-artifact",
                f"{path} belongs to another artifact (manifest {owner[:12]}, this one's is "
                f"{artifact[:12]}); give the artifact with which it was saved",
            )
        on_device = {
            name: x if name.endswith("generator") else x.to(device) for name, x in tensors.items()
        }
        return cls(
            owner,
            facts["prompt"],
            facts["seed"],
            part_of(on_device, "generation"),
            part_of(on_device, "decoding"),
        )
