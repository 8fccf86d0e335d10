"""The foundation: codec and teacher that the package keeps, with the record of their training.

In ``omniforcing/assets/pocket``, ``<part>`` is a stage's output as it was published,
``<part>.json`` its sha256, config, seed, commit and metrics, ``<part>.curves.csv`` its training
curves. Nothing there is made by hand: ``make foundation`` runs the stages with ``source=train`` and
calls ``publish``.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omniforcing.core.config import Section, digest, flatten, to_dict
from omniforcing.core.errors import OmniForcingError
from omniforcing.core.files import atomic_dir, read_json, tree_digest, verify_manifest, write_json

KEPT = Path(__file__).resolve().parents[1] / "assets" / "pocket"
PARTS = ("codec", "teacher")
# Subsections of a part's config that shape its weights; the others say how it is trained.
_ARCHITECTURE = {"codec": ("video", "audio", "vocoder", "text"), "teacher": ("model",)}
_TRAINING_KEYS = {"steps", "batch", "crops", "mel_frames", "lr"}
_REMEDY = "retrain it with `make foundation`, or set {part}.source=train"


def architecture(section: Section, part: str) -> dict[str, Any]:
    """Return the values of a part's section that its weights must fit.

    Args:
        section: section of the part.
        part: ``codec`` or ``teacher``.

    Returns:
        The values by subsection, those of training left out.
    """
    values, kept = to_dict(section), {}
    for name in _ARCHITECTURE[part]:
        kept[name] = {k: v for k, v in values[name].items() if k not in _TRAINING_KEYS}
    return kept


def weights_digest(folder: Path) -> str:
    """Compute the sha256 of the names and contents of a folder's weight files."""
    return digest({p.relative_to(folder).as_posix(): tree_digest(p) for p in _weights(folder)})


def _weights(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def latent_space_digest(codec: Path) -> str:
    """Compute the sha256 of the weights that decide latents and text features.

    These are all of a codec but its vocoder, which may be trained again alone.
    """
    files = [path for path in _weights(codec) if "vocoder" not in path.parts]
    return digest({path.relative_to(codec).as_posix(): tree_digest(path) for path in files})


def _differences(kept: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    # A record may hold more: keys of its day that are constants of the networks now.
    old, new = flatten(kept), flatten(wanted)
    return [
        f"{key} was {old.get(key)}, is {new[key]}"
        for key in sorted(new)
        if old.get(key) != new[key]
    ]


def take_kept(
    part: str, section: Section, preset: str, destination: Path, codec: Path | None = None
) -> dict[str, Any]:
    """Copy a part that the package keeps.

    Args:
        part: ``codec`` or ``teacher``.
        section: its section of the configuration, whose architecture it must fit.
        preset: name of the preset, for errors.
        destination: empty folder to copy into.
        codec: folder of the codec in use; a teacher is only good for the latents it was trained on.

    Returns:
        The part's record.

    Raises:
        OmniForcingError: if the part is missing or altered, or was trained for another architecture
            or another codec.
    """
    folder = KEPT / part
    remedy = _REMEDY.format(part=part)
    if not folder.is_dir():
        raise OmniForcingError(
            "file.missing", f"the package keeps no {part} ({folder} is missing); {remedy}"
        )
    verify_manifest(folder)
    record: dict[str, Any] = read_json(folder.with_suffix(".json"))
    if record["weights"] != weights_digest(folder):
        raise OmniForcingError(
            "file.altered",
            f"the weights in {folder} are not those that {part}.json records; "
            f"restore them, or {remedy}",
        )
    different = _differences(record["architecture"], architecture(section, part))
    if different:
        raise OmniForcingError(
            "pocket.other-config",
            f"the kept {part} does not fit preset {preset}: {part}.{different[0]}; {remedy}",
        )
    if codec is not None and record.get("latent_space") != latent_space_digest(codec):
        raise OmniForcingError(
            "pocket.other-codec",
            f"the kept {part} was trained on another codec than {codec}; {remedy}",
        )
    shutil.copytree(folder, destination, dirs_exist_ok=True)
    return record


def publish(
    data: Path, sections: Mapping[str, Section], clips: Section, seed: int, commit: str
) -> None:
    """Copy a trained codec and teacher into the package, each with its record.

    Args:
        data: folder of the preset's stages.
        sections: configuration sections of codec and teacher, by part.
        clips: section of the clips that they were trained on.
        seed: seed that they were trained with.
        commit: git commit of the code that trained them.

    Raises:
        OmniForcingError: if one is missing or its manifest does not hold.
    """
    for part in PARTS:
        verify_manifest(data / part)
        kept = KEPT / part
        with atomic_dir(kept) as folder:
            shutil.copytree(data / part, folder, dirs_exist_ok=True)
        record = {
            "weights": weights_digest(kept),
            "architecture": architecture(sections[part], part),
            "config": {"clips": to_dict(clips), part: to_dict(sections[part])},
            "seed": seed,
            "git_commit": commit,
            "metrics": read_json(data / f"{part}.metrics.json"),
        }
        if part != "codec":
            record["latent_space"] = latent_space_digest(data / "codec")
        write_json(kept.with_suffix(".json"), record)
        shutil.copyfile(data / f"{part}.curves.csv", kept.with_suffix(".curves.csv"))
