"""The foundation: codec and teacher that the package keeps, with the record of how they were trained.

``omniforcing/assets/pocket/<part>`` holds a stage's output as it was published, ``<part>.json`` its sha256 sums, config,
seed, commit and metrics, ``<part>.curves.csv`` its training curves. Nothing in it is made by hand: ``make foundation`` runs
the stages with ``source=train`` and calls ``publish``.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from omniforcing.core.config import Config, digest, flatten, load_config, to_dict
from omniforcing.core.environment import git_commit
from omniforcing.core.errors import OmniForcingError
from omniforcing.core.files import atomic_dir, read_json, tree_digest, verify_manifest, write_json

KEPT = Path(__file__).resolve().parents[1] / "assets" / "pocket"
PARTS = ("codec", "teacher")
# What shapes the weights; the rest of the sections only says how they were trained.
_ARCHITECTURE = {"codec": ("video", "audio", "vocoder", "text"), "teacher": ("model",)}
_TRAINING_KEYS = {
    *("steps", "batch", "crops", "seconds", "mel_frames", "lr", "precision"),
    *("foreground_weight", "kl", "kl_from"),
}
_REMEDY = "retrain it with `make foundation`, or set {part}.source=train"


def architecture(config: Config, part: str) -> dict[str, Any]:
    """The values of a part's config that its weights must fit."""
    section = to_dict(getattr(config, part))
    return {
        name: {k: v for k, v in section[name].items() if k not in _TRAINING_KEYS}
        for name in _ARCHITECTURE[part]
    }


def weights_digest(folder: Path) -> str:
    """sha256 over the names and contents of a folder's weight files."""
    return digest({p.relative_to(folder).as_posix(): tree_digest(p) for p in _weights(folder)})


def _weights(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def latent_space_digest(codec: Path) -> str:
    """sha256 of what decides latents and text features: all of a codec but its vocoder, which may be trained again alone."""
    return digest(
        {
            p.relative_to(codec).as_posix(): tree_digest(p)
            for p in _weights(codec)
            if "vocoder" not in p.parts
        }
    )


def _differences(kept: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    old, new = flatten(kept), flatten(wanted)
    return [
        f"{key} was {old.get(key)}, is {new.get(key)}"
        for key in sorted(old.keys() | new)
        if old.get(key) != new.get(key)
    ]


def take_kept(
    config: Config, part: str, destination: Path, codec: Path | None = None
) -> dict[str, Any]:
    """Copy a kept part (``codec`` or ``teacher``) into the empty folder ``destination`` and return its record.

    ``codec`` is the codec's folder; a teacher is only good for the latents that it was trained on.

    Raises:
        OmniForcingError: if the part is missing or altered, or was trained for another architecture or another codec.
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
            f"the weights in {folder} are not those that {part}.json records; restore them, or {remedy}",
        )
    different = _differences(record["architecture"], architecture(config, part))
    if different:
        raise OmniForcingError(
            "pocket.other-config",
            f"the kept {part} does not fit preset {config.preset}: {part}.{different[0]}; {remedy}",
        )
    if codec is not None and record.get("latent_space") != latent_space_digest(codec):
        raise OmniForcingError(
            "pocket.other-codec",
            f"the kept {part} was trained on another codec than {codec}; {remedy}",
        )
    shutil.copytree(folder, destination, dirs_exist_ok=True)
    return record


def publish(root: Path, preset: str) -> None:
    """Keep the codec and teacher below ``data/<preset>`` in the package, each with its record.

    Raises:
        OmniForcingError: if one is missing or its manifest does not hold.
    """
    config = load_config(["codec.source=train", "teacher.source=train"], root, preset)
    data = root / "data" / preset
    for part in PARTS:
        verify_manifest(data / part)
        kept = KEPT / part
        with atomic_dir(kept) as folder:
            shutil.copytree(data / part, folder, dirs_exist_ok=True)
        record = {
            "weights": weights_digest(kept),
            "architecture": architecture(config, part),
            "config": {"clips": to_dict(config.clips), part: to_dict(getattr(config, part))},
            "seed": config.seed,
            "git_commit": git_commit(root),
            "metrics": read_json(data / f"{part}.metrics.json"),
        }
        if part != "codec":
            record["latent_space"] = latent_space_digest(data / "codec")
        write_json(kept.with_suffix(".json"), record)
        shutil.copyfile(data / f"{part}.curves.csv", kept.with_suffix(".curves.csv"))
