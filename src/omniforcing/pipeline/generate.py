"""Generate ``dvc.yaml`` from the declared stages.

Each preset has its own pipeline and lock: the tracked preset at the top of the checkout, any other
in ``pipelines/presets/<name>``. The first stage of each pipeline writes the digests of the code on
which the other stages depend (``omniforcing.pipeline.code``).

Pipelines of other presets and of optional stages are generated when they are first run, and not
committed. DVC's commands without a target look at every ``dvc.yaml`` of a checkout: pipelines that
have never run would make `dvc pull` fail and fill `dvc status` and `dvc metrics show`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omniforcing.core.errors import OmniForcingError
from omniforcing.core.files import atomic_write, remove
from omniforcing.pipeline.code import SOURCES, CodeBase
from omniforcing.pipeline.config import load_config
from omniforcing.pipeline.declaration import (
    DECLARATION,
    PRESETS,
    StageSpec,
    check_preset,
    known_presets,
    lock_file,
    optional_file,
    optional_stages,
    pipeline_file,
    read_specs,
    tracked_keys,
    tracked_preset,
)
from omniforcing.pipeline.yaml_files import read_names

CODE = "code"
WRITE = "omniforcing pipeline --write"
_HEAD = f"# Made by `{WRITE}` of {DECLARATION}; edit that file, not this one.\n"


def write_digests(root: Path, preset: str) -> None:
    """Write the digest of each stage's code below ``data/<preset>/code``."""
    base = CodeBase(root)
    for spec in read_specs(root):
        atomic_write(root / spec.code(preset), base.digest(spec.module, spec.files) + "\n")


def write_pipelines(root: Path, presets: Iterable[str] = ()) -> list[str]:
    """Renew the generated files of a checkout, and create those of more presets.

    Args:
        root: the checkout.
        presets: names of presets that shall have a ``dvc.yaml``.

    Returns:
        Paths of the files that changed, relative to the checkout.

    Raises:
        OmniForcingError: if a preset is unknown or lacks a section.
    """
    for preset in presets:
        load_config(root=root, preset=preset)
    wanted = _wanted(root)
    for preset in presets:
        file = pipeline_file(root, preset)
        wanted[file] = pipelines_of(root, preset)[file]
    changed = [path for path, text in wanted.items() if _content(root / path) != text]
    for path in changed:
        _replace(root / path, wanted[path])
    return changed


def check_pipelines(root: Path) -> None:
    """Check that the generated files of a checkout are up to date.

    Raises:
        OmniForcingError: naming the first stale one and the command that renews it.
    """
    for path, text in _wanted(root).items():
        if _content(root / path) != text:
            raise _stale_error(root, path)


def ensure_pipeline(root: Path, preset: str, stages: Iterable[str] = ()) -> None:
    """Create the ``dvc.yaml`` of a preset if there is none, and print its path.

    Args:
        root: the checkout.
        preset: name of the preset.
        stages: stages to run; for an optional one its ``dvc.yaml`` is created too.

    Raises:
        OmniForcingError: if a file is stale, if the preset lacks a section, or if the lock was
            written for an older ``dvc.yaml``.
    """
    texts = pipelines_of(root, preset)
    optional = set(stages) & set(optional_stages(root))
    files = [pipeline_file(root, preset)]
    if optional:
        files.append(optional_file(root, preset))
    for path in files:
        present = _content(root / path)
        if present is None:
            _replace(root / path, texts[path])
            print(f"written: {path}, the pipeline of preset {preset}", flush=True)
        elif present != texts[path]:
            raise _stale_error(root, path)
    refuse_old_lock(root, preset)


def pipelines_of(root: Path, preset: str) -> dict[str, str]:
    """Return the texts of a preset's generated files, by path relative to the checkout.

    Raises:
        OmniForcingError: if the preset lacks a section.
    """
    check_preset(root, preset)
    specs = read_specs(root)
    file, optional = pipeline_file(root, preset), optional_file(root, preset)
    stages = {CODE: _code_stage(specs, preset)}
    extra: dict[str, Any] = {}
    for spec in specs:
        (extra if spec.optional else stages)[spec.name] = _stage(root, spec, specs, preset)
    about = f"# Pipeline of preset {preset}.\n"
    asked = f"# Stages that preset {preset} runs only when asked: `dvc repro {optional}`.\n"
    return {file: _text(about, stages, file), optional: _text(asked, extra, optional)}


def refuse_old_lock(root: Path, preset: str) -> None:
    """Refuse a lock that was written before stages depended on digests of their code.

    With such a lock DVC would find every dependency changed and train everything again.

    Raises:
        OmniForcingError: with the two ways to go on.
    """
    path = root / lock_file(root, preset)
    locked = read_names(path) if path.is_file() else {}
    for name, entry in (locked.get("stages") or {}).items():
        modules = [dep["path"] for dep in entry.get("deps", []) if dep["path"].startswith("src/")]
        if modules and name != CODE:
            raise OmniForcingError(
                "pipeline.old-lock",
                f"{path} was written for an older dvc.yaml: its stage {name} depends on "
                f"{modules[0]}; `git checkout` a newer one, or delete it to run every stage again",
            )


def _stale_error(root: Path, path: str) -> OmniForcingError:
    return OmniForcingError("pipeline.stale-file", f"{root / path} is stale; run `{WRITE}`")


def _wanted(root: Path) -> dict[str, str | None]:
    """Return the text of each generated file; None for files of presets that are gone."""
    load_config(root=root)  # refuses an unknown tracked preset
    texts: dict[str, str] = {}
    for preset in known_presets(root):
        if _is_used(root, preset):
            texts |= pipelines_of(root, preset)
    top = pipeline_file(root, tracked_preset(root))
    others = [root / "pipelines" / "optional" / "dvc.yaml", *(root / PRESETS).rglob("dvc.yaml")]
    present = [path.relative_to(root).as_posix() for path in others if path.is_file()]
    return {path: texts.get(path) for path in [top, *sorted(present)]}


def _is_used(root: Path, preset: str) -> bool:
    """Tell whether a checkout has generated files of a preset, as it always has of the tracked."""
    tracked = preset == tracked_preset(root)
    return tracked or (root / pipeline_file(root, preset)).parent.is_dir()


def _content(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None


def _replace(path: Path, text: str | None) -> None:
    if text is None:
        remove(path)
    else:
        atomic_write(path, text)


def _text(about: str, stages: dict[str, Any], file: str) -> str:
    from yaml import safe_dump

    # Paths of stages are relative to the checkout; DVC takes them relative to the file by default.
    depth = len(Path(file).parents) - 1
    if depth:
        up = "/".join([".."] * depth)
        stages = {name: {"wdir": up, **stage} for name, stage in stages.items()}
    return _HEAD + about + safe_dump({"stages": stages}, sort_keys=False, width=100)


def _code_stage(specs: tuple[StageSpec, ...], preset: str) -> dict[str, Any]:
    used = [file for spec in specs for file in (spec.module, *spec.files)]
    others = [file for file in used if not file.startswith(SOURCES)]
    return {
        "desc": "Write one digest per stage of the code that it uses, without comments.",
        "cmd": f"exec python -m omniforcing pipeline --digests --preset {preset}",
        "deps": [DECLARATION, SOURCES, *others],
        "outs": [f"data/{preset}/{CODE}"],
    }


def _stage(
    root: Path, spec: StageSpec, specs: tuple[StageSpec, ...], preset: str
) -> dict[str, Any]:
    """Return the entry of a stage in ``dvc.yaml``."""
    named = {other.name: other for other in specs}
    params: list[dict[str, list[str]]] = [{"conf/config.yaml": list(spec.keys)}]
    for file, keys in tracked_keys(root, preset, spec.keys).items():
        if keys:
            params.append({file: keys})
    # `exec` replaces the shell, so that the stage is a child of DVC and dies when DVC is killed.
    stage: dict[str, Any] = {
        "desc": spec.about,
        "cmd": f"exec python -m omniforcing stage {spec.name} --preset {preset}",
        "deps": [*(named[read].folder(preset) for read in spec.reads), spec.code(preset)],
        "params": params,
        "outs": [spec.folder(preset)],
        "metrics": [spec.metrics(preset)],
    }
    if spec.curves:
        stage["plots"] = [{spec.curve(preset): {"x": "step", "title": spec.name}}]
    return stage
