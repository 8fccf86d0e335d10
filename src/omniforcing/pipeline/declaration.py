"""Declaration of the stages: reads ``pipelines/stages.py`` of a checkout for one preset.

That file alone says what a stage reads, which configuration keys its result depends on and where it
writes. ``omniforcing.pipeline.generate`` makes every ``dvc.yaml`` from it.
"""

from __future__ import annotations

import runpy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omniforcing.core.config import digest, to_dict
from omniforcing.core.environment import data_root
from omniforcing.core.errors import OmniForcingError, did_you_mean
from omniforcing.core.files import folder_digest
from omniforcing.pipeline.code import SOURCES, CodeBase
from omniforcing.pipeline.config import BASE, Config, preset_files
from omniforcing.pipeline.yaml_files import read_names

DECLARATION = "pipelines/stages.py"
PRESETS = "pipelines/presets"
STAGE_MODULES = f"{SOURCES}/pipeline/stages"
# Keys that conf/config.yaml sets for every preset.
COMMON_KEYS = ("seed",)
# Code that only measures: when it changes, a stage that trains continues its unfinished training.
MEASURING_CODE = (
    f"{SOURCES}/evaluation/",
    *(f"{SOURCES}/pocket/{name}.py" for name in ("drift", "events", "observe", "sync")),
)
# Code and templates that only present figures: when they change, `evaluate` keeps its samples.
PRESENTING_CODE = tuple(
    f"{SOURCES}/evaluation/{name}"
    for name in ("base.html", "page.html", "report.py", "curves.py", "ablation", "compare.html")
)


def _never(_config: Config) -> bool:
    return False


@dataclass(frozen=True)
class StageSpec:
    """One stage as ``pipelines/stages.py`` declares it, for every preset.

    Attributes:
        name: name in DVC and for ``omniforcing stage``.
        about: one sentence for ``--help`` and ``dvc.yaml``.
        reads: names of the stages whose outputs it reads.
        keys: configuration keys that its result depends on.
        writes: name of the output folder below ``data/<preset>``; the stage's name if None.
        files: files other than Python that its result depends on, relative to the checkout.
        curves: whether it writes training curves.
        optional: whether `dvc repro` runs it only when it is named.
        trains: tells whether, under a configuration, it trains a transformer, which the workers of
            a cluster do together.
        body: file with the stage's ``run(stage)``, relative to the checkout; the module of the
            same name in ``omniforcing.pipeline.stages`` if None.
    """

    name: str
    about: str
    reads: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    writes: str | None = None
    files: tuple[str, ...] = ()
    curves: bool = False
    optional: bool = False
    trains: Callable[[Config], bool] = _never
    body: str | None = None

    @property
    def module(self) -> str:
        """File with the stage's ``run(stage)``, relative to the checkout."""
        return self.body or f"{STAGE_MODULES}/{self.name}.py"

    def folder(self, preset: str) -> str:
        """Output folder, relative to the checkout."""
        return f"data/{preset}/{self.writes or self.name}"

    def metrics(self, preset: str) -> str:
        """Metrics file, relative to the checkout."""
        return f"data/{preset}/{self.name}.metrics.json"

    def curve(self, preset: str) -> str:
        """File of the training curves, relative to the checkout."""
        return f"data/{preset}/{self.name}.curves.csv"

    def code(self, preset: str) -> str:
        """File with the digest of the stage's code, relative to the checkout."""
        return f"data/{preset}/code/{self.name}"


@dataclass(frozen=True)
class Declaration:
    """A stage under one preset.

    Attributes:
        spec: the stage's declaration.
        folder: its output folder, relative to the checkout.
        inputs: output folders that it reads, relative to the checkout.
    """

    spec: StageSpec
    folder: str
    inputs: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name of the stage."""
        return self.spec.name

    @property
    def about(self) -> str:
        """One sentence on what the stage does."""
        return self.spec.about

    @property
    def keys(self) -> tuple[str, ...]:
        """Configuration keys that the result depends on, sorted."""
        return tuple(sorted(self.spec.keys))

    def config_values(self, config: Config) -> dict[str, Any]:
        """Return the values of ``keys`` under a configuration."""
        plain = to_dict(config)
        return {key: _lookup(plain, key) for key in self.keys}

    def input_digests(self, root: Path) -> dict[str, str]:
        """Compute the digest of each input folder, by its path.

        Raises:
            OmniForcingError: if one is missing, naming the command that makes it.
        """
        for path in self.inputs:
            if not (data_root(root) / path).exists():
                command = f"omniforcing run --preset {Path(path).parts[1]} {self.name}"
                raise OmniForcingError(
                    "file.missing",
                    f"{path} is missing, which {self.name} reads; `{command}` makes it first",
                )
        return {path: folder_digest(data_root(root) / path) for path in self.inputs}

    def fingerprint(self, config: Config, root: Path) -> str:
        """Compute the sha256 of everything that unfinished work depends on.

        That is config values, inputs and code.

        Raises:
            OmniForcingError: if an input is missing.
        """
        # A checkpoint counts its steps in intervals: it cannot be continued with another interval.
        values = self.config_values(config) | {"checkpoint_every": config.trainer.checkpoint_every}
        inputs = self.input_digests(root)
        return digest({"config": values, "inputs": inputs, "code": self.work_digest(root)})

    def work_digest(self, root: Path) -> str:
        """Compute the digest of the code that unfinished work depends on.

        Unlike the digest that DVC compares, it leaves out code that only measures, or for
        ``evaluate`` code that only presents. When that code changes, DVC runs the stage again, and
        the stage continues from its work.
        """
        left_out = PRESENTING_CODE if self.name == "evaluate" else MEASURING_CODE
        files = [file for file in self.spec.files if not file.startswith(left_out)]
        return CodeBase(root).digest(self.spec.module, files, left_out)


def read_specs(root: Path) -> tuple[StageSpec, ...]:
    """Read all stages of a checkout, in the order in which they run; optional ones last.

    Raises:
        OmniForcingError: if ``pipelines/stages.py`` is missing or declares no stages.
    """
    path = root / DECLARATION
    if not path.is_file():
        raise OmniForcingError(
            "file.missing", f"{path} is missing; run inside a checkout of the project"
        )
    try:
        specs: tuple[StageSpec, ...] = runpy.run_path(str(path))["STAGES"]
    except (SyntaxError, NameError, TypeError, KeyError) as error:
        raise OmniForcingError(
            "pipeline.bad-declaration", f"{path} does not declare STAGES: {error}; mend it"
        ) from error
    return tuple(sorted(specs, key=lambda spec: spec.optional))


def stage_names(root: Path) -> list[str]:
    """List the names of the stages that `dvc repro` runs, in order."""
    return [spec.name for spec in read_specs(root) if not spec.optional]


def optional_stages(root: Path) -> list[str]:
    """List the names of the stages that run only when they are named."""
    return [spec.name for spec in read_specs(root) if spec.optional]


def read_declaration(name: str, root: Path, preset: str) -> Declaration:
    """Read one stage under a preset.

    Args:
        name: name of the stage.
        root: the checkout.
        preset: name of the preset.

    Raises:
        OmniForcingError: if there is no such stage.
    """
    specs = {spec.name: spec for spec in read_specs(root)}
    if name not in specs:
        known = ", ".join(specs)
        hint = did_you_mean(name, specs)
        raise OmniForcingError(
            "pipeline.unknown-stage", f"the pipeline has no stage {name!r}; it has: {known}{hint}"
        )
    spec = specs[name]
    inputs = tuple(specs[other].folder(preset) for other in spec.reads)
    return Declaration(spec, spec.folder(preset), inputs)


def check_preset(root: Path, preset: str) -> None:
    """Check that a preset's file names every key that DVC tracks in it.

    DVC refuses to run a stage with a parameter that its file lacks.

    Raises:
        OmniForcingError: naming the keys that are missing.
    """
    specs = read_specs(root)
    for file in preset_files(root, preset):
        named = read_names(root / file)
        tracked = [key for spec in specs for key in tracked_keys(root, preset, spec.keys)[file]]
        if missing := [key for key in dict.fromkeys(tracked) if not _has(named, key)]:
            raise OmniForcingError(
                "config.missing-value",
                f"{root / file} lacks {', '.join(missing)}, which DVC tracks; "
                "name them there, where nothing differs with {}",
            )


def tracked_keys(root: Path, preset: str, keys: Iterable[str]) -> dict[str, list[str]]:
    """List the keys that DVC tracks in each file of a preset, for a stage that depends on ``keys``.

    Of a preset with a base these are the keys in the base's file, and whole sections in its own: a
    section may say ``{}`` there, and DVC still notices when it says more.
    """
    wanted = preset_keys(keys)
    *bases, own = preset_files(root, preset)
    if not bases or not wanted:
        return dict.fromkeys([*bases, own], wanted)
    sections = list(dict.fromkeys(key.partition(".")[0] for key in wanted))
    return {bases[0]: wanted, own: [BASE, *sections]}


def preset_keys(keys: Iterable[str]) -> list[str]:
    """Return the keys that a preset's file must name: all but those common to all presets."""
    return [key for key in keys if key not in COMMON_KEYS]


def known_presets(root: Path) -> list[str]:
    """List the names of the presets, the files in ``conf/preset``."""
    return sorted(path.stem for path in (root / "conf" / "preset").glob("*.yaml"))


def tracked_preset(root: Path) -> str:
    """Return the preset whose pipeline is tracked: the key ``preset`` of ``conf/config.yaml``.

    Raises:
        OmniForcingError: if the file is not YAML, or has no such key.
    """
    path = root / "conf" / "config.yaml"
    named = read_names(path).get("preset")
    if not isinstance(named, str):
        raise OmniForcingError(
            "config.missing-value",
            f"{path} has no line `preset: NAME`; add one, such as `preset: pocket`",
        )
    return named


def pipeline_file(root: Path, preset: str) -> str:
    """Return the path of a preset's ``dvc.yaml``, relative to the checkout."""
    return "dvc.yaml" if preset == tracked_preset(root) else f"{PRESETS}/{preset}/dvc.yaml"


def optional_file(root: Path, preset: str) -> str:
    """Return the path of the ``dvc.yaml`` of optional stages, relative to the checkout."""
    folder = "pipelines" if preset == tracked_preset(root) else f"{PRESETS}/{preset}"
    return f"{folder}/optional/dvc.yaml"


def lock_file(root: Path, preset: str) -> str:
    """Return the path of a preset's ``dvc.lock``, relative to the checkout."""
    return str(Path(pipeline_file(root, preset)).with_suffix(".lock"))


def dvc_target(root: Path, preset: str, stage: str) -> str:
    """Return the target of a stage for DVC's commands: ``stage`` or ``path/dvc.yaml:stage``."""
    optional = stage in optional_stages(root)
    file = optional_file(root, preset) if optional else pipeline_file(root, preset)
    return stage if file == "dvc.yaml" else f"{file}:{stage}"


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
