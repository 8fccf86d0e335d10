"""The artifact: a folder that streams on a machine with torch, diffusers and PyAV alone.

transformer/        the student; ``LTX2VideoTransformer3DModel.from_pretrained`` opens it
sinks.safetensors   its sink tokens
codec/              video_vae/, audio_vae/, vocoder/, codec.json; diffusion_decoder/ if it decodes
text/               tokenizer, Gemma and connectors
streaming.json      settings of the stream: ``StreamSettings``
README.md           model card
manifest.json       bytes and sha256 of all of these
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omniforcing.codec.config import DIFFUSION_DECODER
from omniforcing.codec.reach import described_reach
from omniforcing.core.errors import OmniForcingError
from omniforcing.core.files import read_json, verify_manifest, write_json, write_manifest
from omniforcing.core.layout import FPS, LAYOUTS, Counts, LayoutError
from omniforcing.media.boxes import SAMPLE_RATES
from omniforcing.model.config import Stabiliser, StudentConfig
from omniforcing.pocket import student as kept_student
from omniforcing.streaming.publishing.card import CARD, NO_FACTS, CardFacts, model_card
from omniforcing.tracking.origin import artifact_folder

if TYPE_CHECKING:
    from omniforcing.model.rollout import RolloutConfig

SCHEMA = 1
SETTINGS_FILE = "streaming.json"
STUDENT_PARTS = ("transformer", "sinks.safetensors")
CODEC_PARTS = ("video_vae", "audio_vae", "vocoder", "codec.json")


class ArtifactError(OmniForcingError):
    """An artifact folder that cannot be used."""


@dataclass(frozen=True)
class StreamSettings:
    """Settings of a stream: the content of ``streaming.json`` without its schema version.

    Attributes:
        preset: preset that the student was trained with.
        layout: name of the block table.
        height: height of the picture, pixels.
        width: width of the picture, pixels.
        grid: spatial tokens of a video latent, [rows, columns].
        window: number of past blocks that a block sees besides the prefix.
        horizon: index of the last block seen in training.
        sigmas: noise levels of the denoising steps.
        context_noise: sigma of the forward that fills the K/V cache.
        sinks: number of sink tokens.
        stabiliser: method that keeps the first audio tokens in bounds.
        look_ahead: mel frames (10 ms each) that the vocoder must know after the one it decodes.
        sample_rate: rate of the sound, Hz: the vocoder's.
        video_look_ahead: video latents (8 frames each) that the video decoder must know after the
            one it decodes.
        fps: rate of the picture, Hz.
    """

    preset: str
    layout: str
    height: int
    width: int
    grid: list[int]
    window: int
    horizon: int
    sigmas: list[float]
    context_noise: float
    sinks: int
    stabiliser: str
    look_ahead: int
    sample_rate: int
    video_look_ahead: int = 0  # older artifacts do not declare it
    fps: int = FPS

    @property
    def method(self) -> str:
        """How a clip is made, in a few words."""
        return f"{len(self.sigmas)} steps, window of {self.window} s"

    @classmethod
    def from_config(
        cls, preset: str, student: StudentConfig, counts: Counts, codec: Mapping[str, Any]
    ) -> StreamSettings:
        """The settings of a trained student.

        Args:
            preset: the preset it was trained with.
            student: its section.
            counts: latents of a training clip.
            codec: what its codec declares in ``codec.json``.
        """
        return cls(
            preset=preset,
            layout=student.layout,
            height=codec["height"],
            width=codec["width"],
            grid=list(codec["grid"]),
            window=student.window,
            horizon=student.horizon(counts),
            sigmas=list(student.sigmas),
            context_noise=student.context_noise,
            sinks=student.sinks,
            stabiliser=student.stabiliser.value,
            look_ahead=codec["vocoder_look_ahead_mel"],
            sample_rate=codec["sample_rate"],
            video_look_ahead=described_reach(codec).ahead,
        )

    @classmethod
    def read(cls, path: Path) -> StreamSettings:
        """Read ``streaming.json``.

        Raises:
            ArtifactError: if the file has another schema, a key is missing or unknown, or a value
                is one that this version cannot stream.
        """
        values = read_json(path)
        schema = values.pop("schema", None) if isinstance(values, dict) else None
        if schema != SCHEMA:
            raise ArtifactError(
                "file.unknown-schema",
                f"{path} has schema {schema}, this version reads schema {SCHEMA}; "
                "export the artifact again",
            )
        fields = dataclasses.fields(cls)
        names, needed = (
            {f.name for f in fields},
            {f.name for f in fields if f.default is dataclasses.MISSING},
        )
        for problem, keys in (
            ("lacks", needed - values.keys()),
            ("has the unknown key", values.keys() - names),
        ):
            if keys:
                raise ArtifactError(
                    "streaming.damaged-settings",
                    f"{path} {problem} {min(keys)!r}; export the artifact again",
                )
        if values["layout"] not in LAYOUTS:
            raise ArtifactError(
                "streaming.unknown-setting",
                f"{path} names layout {values['layout']!r}; "
                f"this version knows {', '.join(LAYOUTS)}",
            )
        if values["stabiliser"] not in (known := [stabiliser.value for stabiliser in Stabiliser]):
            raise ArtifactError(
                "streaming.unknown-setting",
                f"{path} names stabiliser {values['stabiliser']!r}; "
                f"this version knows {', '.join(known)}",
            )
        for unit, value, able in (
            ("fps", values.get("fps", FPS), (FPS,)),
            ("Hz", values["sample_rate"], SAMPLE_RATES),
        ):
            if value not in able:
                raise ArtifactError(
                    "streaming.unknown-setting",
                    f"{path} asks for {value} {unit}; "
                    f"this version streams {', '.join(map(str, able))}",
                )
        try:
            LAYOUTS[values["layout"]].check_window(values["window"], values["horizon"])
        except LayoutError as error:
            raise ArtifactError("streaming.damaged-settings", f"{path}: {error}") from error
        return cls(**values)

    @property
    def rollout(self) -> RolloutConfig:
        """Settings of the student's rollout."""
        from omniforcing.model.rollout import RolloutConfig

        height, width = self.grid
        return RolloutConfig(
            table=LAYOUTS[self.layout],
            grid=(height, width),
            sigmas=tuple(self.sigmas),
            window=self.window,
            horizon=self.horizon,
            context_noise=self.context_noise,
        )

    @property
    def trained_seconds(self) -> float:
        """Length of the clips that the student was trained on, seconds."""
        return (LAYOUTS[self.layout].block(self.horizon).frames.stop - 1) / FPS


@dataclass(frozen=True)
class Artifact:
    """An artifact folder that was checked.

    Attributes:
        folder: the folder.
        settings: settings of its streams.
        shared_codec: folder of the codec, its text encoder in ``text``, if that lies elsewhere.
    """

    folder: Path
    settings: StreamSettings
    shared_codec: Path | None = None

    @property
    def codec(self) -> Path:
        """Folder of VAEs and vocoder."""
        return self.shared_codec or self.folder / "codec"

    @property
    def text(self) -> Path:
        """Folder of the text encoder."""
        return (self.shared_codec or self.folder) / "text"

    @classmethod
    def open(cls, folder: Path | str, verify: bool = True) -> Artifact:
        """Open an artifact.

        Args:
            folder: its folder, ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION`` in MLflow, or
                ``ORG/NAME`` or ``ORG/NAME@REVISION`` on the Hub.
            verify: whether to verify the checksums of its manifest.

        Raises:
            OmniForcingError: if a file or the model is missing, altered, or has another schema.
        """
        folder = artifact_folder(folder)
        if not folder.exists():
            raise ArtifactError(
                "streaming.not-an-artifact",
                f"{folder} does not exist; give the folder of an export stage, such as "
                "data/pocket/artifact, which `omniforcing run --preset pocket` makes",
            )
        if not (folder / SETTINGS_FILE).is_file():
            raise ArtifactError(
                "streaming.not-an-artifact",
                f"{folder} is not an artifact, it has no {SETTINGS_FILE}; "
                "give the folder of an export stage",
            )
        if verify:
            verify_manifest(folder)
        return cls(folder, StreamSettings.read(folder / SETTINGS_FILE))

    @classmethod
    def kept(cls, verify: bool = True) -> Artifact:
        """Open the student that the package keeps, preset ``pocket``'s.

        Args:
            verify: whether to verify the checksum of every file.

        Raises:
            OmniForcingError: if it is missing or damaged.
        """
        if verify:
            kept_student.check_student()
        else:
            kept_student.read_record()
        folder = kept_student.student_folder()
        settings = StreamSettings.read(folder / SETTINGS_FILE)
        return cls(folder, settings, kept_student.codec_folder())


def _copy(source: Path, parts: tuple[str, ...], target: Path) -> None:
    target.mkdir(exist_ok=True)
    for part in parts:
        origin = source / part
        if origin.is_dir():
            shutil.copytree(origin, target / part, copy_function=shutil.copyfile)
        elif origin.is_file():
            shutil.copyfile(origin, target / part)
        else:
            raise ArtifactError(
                "file.missing",
                f"{origin} is missing, which an artifact needs; run the stage that writes it",
            )


def _round(student: Path, target: Path) -> None:
    """Write a student with weights in bf16."""
    import torch

    from omniforcing.model.weights.student import load_model, save_model

    save_model(load_model(student, dtype=torch.bfloat16), target)


def write_artifact(
    folder: Path,
    student: Path,
    codec: Path,
    settings: StreamSettings,
    metrics: Mapping[str, Any],
    precision: str = "fp32",
    facts: CardFacts = NO_FACTS,
) -> Artifact:
    """Write an artifact; the same inputs give the same bytes.

    Args:
        folder: an empty folder, usually the temporary one of ``atomic_dir``.
        student: folder with ``transformer/`` and ``sinks.safetensors``.
        codec: folder of stage codec, with the text encoder in ``text/``.
        settings: settings of the stream.
        metrics: content of the evaluation's ``metrics.json``, for the model card.
        precision: ``fp32`` to copy the student as it is, ``bf16`` to round its weights.
        facts: what else the model card states.

    Raises:
        ArtifactError: if a part is missing.
    """
    if precision == "bf16":
        _round(student, folder)
    else:
        _copy(student, STUDENT_PARTS, folder)
    diffusion = [DIFFUSION_DECODER] if (codec / DIFFUSION_DECODER).is_dir() else []
    _copy(codec, (*CODEC_PARTS, *diffusion), folder / "codec")
    _copy(codec, ("text",), folder)
    write_json(folder / SETTINGS_FILE, {"schema": SCHEMA, **dataclasses.asdict(settings)})
    described = {**dataclasses.asdict(settings), "trained_seconds": settings.trained_seconds}
    (folder / CARD).write_text(model_card(described, metrics, facts), encoding="utf-8")
    write_manifest(folder)
    return Artifact(folder, settings)
