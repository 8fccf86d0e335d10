"""Weights of measures: named in a YAML file by path and sha256, opened offline, never trusted."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from omniforcing.core.errors import OmniForcingError, did_you_mean, quoted
from omniforcing.core.files import sha256_file
from omniforcing.evaluation.measures.base import Measure

MODEL_FILE = "model.safetensors"
FOLDERS = ("clip", "clap", "pe_av", "dinov2", "vjepa2", "whisper")
PROGRAMS = ("i3d", "raft", "synchformer", "pair")
NAMES = (*FOLDERS, *PROGRAMS)
Encoder = TypeVar("Encoder")


class Unusable(Exception):
    """Weights that cannot be used; the message is the reason in the table."""


@dataclass(frozen=True)
class Entry:
    """Where weights lie, and the sha256 that their file must have."""

    path: Path
    sha256: str


@dataclass
class Weights:
    """Weights that the user has named.

    Attributes:
        entries: by name, one of ``NAMES``.
        device: where to compute.
    """

    entries: dict[str, Entry] = field(default_factory=dict)
    device: str = "cpu"
    _opened: dict[type, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def read(cls, file: Path, device: str = "cpu") -> Weights:
        """Read a YAML file: for each name, ``path`` (relative to the file) and ``sha256``.

        Raises:
            OmniForcingError: if it cannot be read, or an entry is malformed.
        """
        entries = {}
        for name, values in _yaml(file).items():
            if name not in NAMES:
                raise OmniForcingError(
                    "evaluation.malformed-weights",
                    f"{file} names {name!r}{did_you_mean(str(name), NAMES)}; "
                    f"there are {', '.join(NAMES)}",
                )
            entries[name] = _entry(file, name, values)
        return cls(entries, device)

    def folder(self, name: str, model_type: str) -> Path:
        """Folder of a model as `transformers` saves it, checked.

        Raises:
            Unusable: if it is not named or not there, its file has another sha256, or its config
                is of another architecture.
        """
        entry = self.entry(name)
        config, model = entry.path / "config.json", entry.path / MODEL_FILE
        for path in (config, model):
            if not path.is_file():
                raise Unusable(f"no weights: {path} is missing")
        found = json_object(config).get("model_type")
        if found != model_type:
            raise Unusable(
                f"weights of another architecture: {config} is {found}, not {model_type}"
            )
        _check(model, entry.sha256)
        return entry.path

    def encoder(self, kind: type[Encoder]) -> Encoder:
        """The encoder of a kind, loaded once for all measures that need it.

        Raises:
            Unusable: if it cannot be loaded.
        """
        if kind not in self._opened:
            try:
                self._opened[kind] = kind(self)  # type: ignore[call-arg]
            except Unusable as error:
                self._opened[kind] = error
            except ImportError as error:
                said = " ".join(str(error).split())[:120]
                self._opened[kind] = Unusable(f"a package does not load: {said}")
            except Exception as error:
                # What libraries raise for files that are not what they should be has no bound:
                # `tokenizers` raises plain exceptions, configs raise errors of their own.
                name = kind.name  # type: ignore[attr-defined]
                said = " ".join(f"{type(error).__name__}: {error}".split())[:160]
                why = f"{self.entries[name].path} cannot be loaded: {said}"
                self._opened[kind] = Unusable(why)
        opened = self._opened[kind]
        if isinstance(opened, Unusable):
            raise opened
        return opened  # type: ignore[no-any-return]

    def entry(self, name: str) -> Entry:
        """Where weights lie.

        Raises:
            Unusable: if they are not named.
        """
        if name not in self.entries:
            raise Unusable(f"no weights: name {name} in the file of --weights")
        return self.entries[name]


def _entry(file: Path, name: str, values: Any) -> Entry:
    if not isinstance(values, dict) or set(values) != {"path", "sha256"}:
        raise OmniForcingError(
            "evaluation.malformed-weights",
            f"{file}: {name} is {quoted(values)}; give it the keys path and sha256",
        )
    path, digest = values["path"], values["sha256"]
    if not isinstance(path, str) or not path:
        raise OmniForcingError(
            "evaluation.malformed-weights",
            f"{file}: the path of {name} is {quoted(path)}; name a file or folder",
        )
    if not isinstance(digest, str) or not re.fullmatch("[0-9a-fA-F]{64}", digest):
        hint = "" if isinstance(digest, str) else ", in quotes as YAML takes it for a number"
        raise OmniForcingError(
            "evaluation.malformed-weights",
            f"{file}: the sha256 of {name} is {quoted(digest)}; give the 64 hexadecimal digits "
            f"that `sha256sum` prints for {MODEL_FILE} or the program{hint}",
        )
    return Entry(file.parent / path, digest.lower())


def json_object(file: Path) -> dict[str, Any]:
    """Read a JSON file of weights that holds an object.

    Raises:
        Unusable: if it does not.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Unusable(f"{file} cannot be read as JSON") from error
    if not isinstance(found, dict):
        raise Unusable(f"{file} holds no JSON object")
    return found


def _check(path: Path, expected: str) -> None:
    found = sha256_file(path)
    if found != expected:
        raise Unusable(f"{path} has sha256 {found[:12]}..., not {expected[:12]}...")


def _yaml(file: Path) -> dict[Any, Any]:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        content = OmegaConf.to_container(OmegaConf.load(file))
    except (OSError, UnicodeDecodeError, YAMLError, OmegaConfBaseException) as error:
        said = " ".join(str(error).split())
        raise OmniForcingError(
            "file.unreadable", f"{file} cannot be read as YAML ({said}); mend it"
        ) from error
    if not isinstance(content, dict) or not content:
        raise OmniForcingError(
            "evaluation.malformed-weights",
            f"{file} names no weights; give a mapping such as "
            "`clip: {path: FOLDER, sha256: ...}`",
        )
    return content


class WithWeights(Measure):
    """Base of the measures that need an encoder.

    Its protocol names the weights: figures of two checkpoints must not be compared.

    Attributes:
        encoder_kind: class of the encoder; its ``name`` is that of its entry.
    """

    encoder_kind: type[Any]

    def __init__(self, weights: Weights) -> None:
        try:
            self.encoder = weights.encoder(self.encoder_kind)
        except Unusable as error:
            self.missing = str(error)
            return
        digest = weights.entries[self.encoder_kind.name].sha256
        self.protocol = f"{self.protocol}; weights {digest[:12]}"
