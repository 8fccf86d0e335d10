"""What ``dvc.yaml`` declares about a stage: the only list of what each stage reads, depends on and writes.

``pipelines/optional/dvc.yaml`` does so for the stages that no preset needs and `dvc repro` leaves alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omniforcing.config import Config, data_root, digest, to_dict
from omniforcing.errors import OmniForcingError
from omniforcing.files import folder_digest, tree_digest

OPTIONAL = "pipelines/optional/dvc.yaml"
_MEASURES = "src/omniforcing/metrics"
# Only presents what is measured: no figure and no kept clip depends on it.
PRESENTS = tuple(f"{_MEASURES}/{name}" for name in ("page.html", "report.py", "curves.py", "ablation.html", "ablation.py"))


@dataclass(frozen=True)
class Declaration:
    """One stage: its folder, the stage outputs it reads, the code and the config keys its result depends on."""

    name: str
    about: str
    folder: str
    inputs: tuple[str, ...]
    code: tuple[str, ...]
    keys: tuple[str, ...]

    def config_values(self, config: Config) -> dict[str, Any]:
        """The resolved values of ``keys``."""
        plain = to_dict(config)
        return {key: _lookup(plain, key) for key in self.keys}

    def input_digests(self, root: Path) -> dict[str, str]:
        """The digest of each input folder.

        Raises:
            OmniForcingError: naming the stage to run first, if one is missing.
        """
        for path in self.inputs:
            if not (data_root(root) / path).exists():
                raise OmniForcingError(f"{path} is missing, which {self.name} reads; run `dvc repro {self.name}`")
        return {path: folder_digest(data_root(root) / path) for path in self.inputs}

    def fingerprint(self, config: Config, root: Path) -> str:
        """sha256 of everything the result depends on: config values, inputs and code.

        And of the checkpoint interval: it counts the steps of an old checkpoint, so that none may be read under another.
        Code that only presents is left out, and where something is trained also code that only measures: DVC runs the stage
        again when it changes, to measure or present what is there already.
        """
        values = {**self.config_values(config), "checkpoint_every": config.trainer.checkpoint_every}
        return digest({"config": values, "inputs": self.input_digests(root), "code": self.code_digests(root)})

    def code_digests(self, root: Path) -> dict[str, str]:
        """The digest of each file or folder of code that the fingerprint covers."""
        left_out = PRESENTS if self.name == "evaluate" else _MEASURES
        return {path: tree_digest(root / path) for path in self.code if not path.startswith(left_out)}


def _lookup(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values[part]
    return values


def _has(values: Any, key: str) -> bool:
    try:
        _lookup(values, key)
    except (KeyError, TypeError):
        return False
    return True


def _stages(root: Path, file: str = "dvc.yaml") -> dict[str, Any]:
    from yaml import safe_load

    path = root / file
    if not path.is_file():
        raise OmniForcingError(f"{path} is missing; run inside a checkout of the project")
    stages: dict[str, Any] = safe_load(path.read_text(encoding="utf-8"))["stages"]
    return stages


def stage_names(root: Path) -> list[str]:
    """The stages of ``dvc.yaml``, in its order."""
    return list(_stages(root))


def optional_stages(root: Path) -> list[str]:
    """The stages of ``pipelines/optional/dvc.yaml``, if there is one."""
    return list(_stages(root, OPTIONAL)) if (root / OPTIONAL).is_file() else []


def check_preset(root: Path, preset: str) -> None:
    """Check that a preset's file names every key that ``dvc.yaml`` tracks in it; DVC cannot run without.

    Raises:
        OmniForcingError: naming the first key that is missing.
    """
    from yaml import safe_load

    path = root / "conf" / "preset" / f"{preset}.yaml"
    named = safe_load(path.read_text(encoding="utf-8")) or {}
    tracked = [entry.get("conf/preset/${preset}.yaml", []) for stage in _stages(root).values() for entry in stage["params"]]
    missing = [key for keys in tracked for key in keys if not _has(named, key)]
    if missing:
        raise OmniForcingError(f"{path} lacks {missing[0]!r}, which DVC tracks; name it there, if nothing differs with {{}}")


def read_declaration(name: str, root: Path, preset: str) -> Declaration:
    """What ``dvc.yaml`` says about one stage under a preset.

    Raises:
        OmniForcingError: if there is no such stage.
    """
    stages = _stages(root, OPTIONAL if name in optional_stages(root) else "dvc.yaml")
    if name not in stages:
        raise OmniForcingError(f"dvc.yaml has no stage {name!r}; it has: {', '.join(stages)}")
    stage = stages[name]
    deps = [dep.replace("${preset}", preset) for dep in stage.get("deps", [])]
    # Sorted and without repeats: conf/config.yaml and the preset's file list the same keys.
    keys = {key for entry in stage.get("params", []) for listed in entry.values() for key in listed}
    return Declaration(
        name=name,
        about=stage.get("desc", ""),
        folder=stage["outs"][0].replace("${preset}", preset),
        inputs=tuple(dep for dep in deps if dep.startswith("data/")),
        code=tuple(dep for dep in deps if not dep.startswith("data/")),
        keys=tuple(sorted(keys)),
    )
