"""The typed schema of ``conf/`` and its one loader.

Precedence: schema defaults < conf/config.yaml < conf/preset/<preset>.yaml < conf/cluster/<cluster>.yaml < dotlist overrides.
``conf/config.yaml`` documents every knob. Derived values are properties here, never interpolations in YAML.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from itertools import pairwise
from pathlib import Path
from typing import Any

from omniforcing.core.environment import CLUSTER_VARIABLE, DATA_ROOT_VARIABLE
from omniforcing.core.errors import OmniForcingError, did_you_mean
from omniforcing.core.layout import (
    LAYOUTS,
    BlockTable,
    Counts,
    clip_frames,
    clip_latents,
    clip_samples,
)


class ConfigError(OmniForcingError):
    """A configuration that cannot be used; names the key, the file and the remedy."""


class Source(Enum):
    """Where a part of the foundation comes from."""

    kept = "kept"
    train = "train"
    load = "load"


class Stabiliser(Enum):
    """What keeps the first audio tokens of the causal student from blowing up (paper table 3)."""

    sinks = "sinks"
    sinks_rope_growing = "sinks_rope_growing"
    qk_norm = "qk_norm"
    tanh_gate = "tanh_gate"
    none = "none"


class DecoderSource(Enum):
    """Where the non-causal video decoder comes from that a causal one is made of."""

    codec = "codec"
    train = "train"


class OdeTarget(Enum):
    """What causal ODE regression regresses."""

    velocity = "velocity"
    x0 = "x0"


class ScoreMask(Enum):
    """Attention of teacher and critic when they score a rollout."""

    bidirectional = "bidirectional"
    causal = "causal"


class OdeSource(Enum):
    """Whose trajectories Stage II learns from."""

    bidirectional_dmd = "bidirectional_dmd"
    teacher = "teacher"


class CausalOdeInit(Enum):
    """Whose weights Stage II starts from."""

    bidirectional_dmd = "bidirectional_dmd"
    teacher = "teacher"


class SelfForcingInit(Enum):
    """Whose weights Stage III starts from."""

    causal_ode = "causal_ode"
    bidirectional_dmd = "bidirectional_dmd"


@dataclass
class Weights:
    """A number per modality."""

    video: float = 1.0
    audio: float = 1.0


@dataclass
class ClipsConfig:
    source: str = "synthetic"
    folder: str | None = None
    captions: str | None = None
    count: int = 1536
    seconds: int = 4
    height: int = 64
    width: int = 64
    duets: float = 0.15
    heldout: int = 64
    heldout_duets: int = 32
    max_reject_share: float = 0.2


@dataclass
class ShardsConfig:
    per_shard: int = 64
    crf: int = 14


@dataclass
class CropConfig:
    """One leg of the video VAE's training: crops of so many frames, so many at once, for this share of the steps."""

    frames: int = 17
    batch: int = 6
    share: float = 1.0


@dataclass
class VideoCodecConfig:
    latent_channels: int = 16
    patch_size: int = 8
    encoder_channels: list[int] = field(default_factory=lambda: [32, 64, 512])
    encoder_layers: list[int] = field(default_factory=lambda: [1, 1, 2, 0])
    decoder_channels: list[int] = field(default_factory=lambda: [48, 96, 192])
    decoder_layers: list[int] = field(default_factory=lambda: [1, 1, 1, 0])
    downsample: list[str] = field(
        default_factory=lambda: ["temporal", "temporal", "spatiotemporal"]
    )
    upsample: list[str] = field(default_factory=lambda: ["temporal", "temporal", "spatiotemporal"])
    steps: int = 9000
    crops: list[CropConfig] = field(
        default_factory=lambda: [
            CropConfig(1, 32, 0.05),
            CropConfig(9, 8, 0.25),
            CropConfig(17, 6, 0.5),
            CropConfig(33, 4, 0.2),
        ]
    )
    lr: float = 1.0e-3
    foreground_weight: float = 10.0
    kl: float = 3.0e-4
    kl_from: float = 0.6
    precision: str = "bf16-mixed"


@dataclass
class AudioCodecConfig:
    base_channels: int = 16
    latent_channels: int = 1
    mel_bins: int = 64
    channel_multipliers: list[int] = field(default_factory=lambda: [1, 2, 4])
    layers: int = 1
    steps: int = 1500
    batch: int = 8
    seconds: int = 1
    lr: float = 2.0e-3
    foreground_weight: float = 4.0
    kl: float = 1.0e-4
    kl_from: float = 0.6
    precision: str = "bf16-mixed"


@dataclass
class VocoderConfig:
    hidden: int = 256
    upsample: list[int] = field(default_factory=lambda: [2, 1, 1, 80])
    kernels: list[int] = field(default_factory=lambda: [8, 3, 3, 320])
    resnet_kernels: list[int] = field(default_factory=lambda: [5])
    dilations: list[int] = field(default_factory=lambda: [1, 3])
    steps: int = 1500
    batch: int = 4
    mel_frames: int = 100
    lr: float = 2.0e-3
    precision: str = "bf16-mixed"


@dataclass
class TextConfig:
    layers: int = 2
    hidden: int = 64
    heads: int = 4
    length: int = 32
    registers: int = 16


@dataclass
class CodecConfig:
    source: Source = Source.train
    path: str | None = None
    video: VideoCodecConfig = field(default_factory=VideoCodecConfig)
    audio: AudioCodecConfig = field(default_factory=AudioCodecConfig)
    vocoder: VocoderConfig = field(default_factory=VocoderConfig)
    text: TextConfig = field(default_factory=TextConfig)
    report_clips: int = 32


@dataclass
class LatentsConfig:
    batch: int = 16


@dataclass
class TransformerConfig:
    layers: int = 4
    heads: int = 4
    video_head_dim: int = 32
    audio_head_dim: int = 16
    base_size: int = 256


@dataclass
class OptimiserConfig:
    steps: int = 1000
    batch: int = 16
    lr: Weights = field(default_factory=lambda: Weights(1.0e-3, 1.0e-3))
    warmup: int = 20
    weight_decay: float = 0.01
    betas: list[float] = field(default_factory=lambda: [0.9, 0.99])
    clip: float = 1.0
    ema: float = 0.99


@dataclass
class SigmaConfig:
    """Range and shift of the training noise levels."""

    low: float = 0.02
    high: float = 1.0
    shift: float = 0.4


@dataclass
class SamplerConfig:
    steps: int = 25
    shift: float = 0.4
    guidance: Weights = field(default_factory=lambda: Weights(2.0, 2.0))


@dataclass
class TeacherConfig:
    source: Source = Source.train
    path: str | None = None
    model: TransformerConfig = field(default_factory=TransformerConfig)
    optim: OptimiserConfig = field(default_factory=OptimiserConfig)
    muon_lr: Weights | None = None
    sigma: SigmaConfig = field(default_factory=SigmaConfig)
    text_dropout: float = 0.1
    loss: Weights = field(default_factory=Weights)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)


@dataclass
class StudentConfig:
    layout: str = "prefix"
    sigmas: list[float] = field(default_factory=lambda: [1.0, 0.909375, 0.725, 0.421875])
    sinks: int = 16
    stabiliser: Stabiliser = Stabiliser.sinks
    window: int = 3
    context_noise: float = 0.0


@dataclass
class DmdConfig:
    optim: OptimiserConfig = field(default_factory=OptimiserConfig)
    muon_lr: Weights | None = None
    critic_lr: float = 4.0e-4
    critic_muon_lr: float | None = None
    critic_steps: int = 5
    sigma: SigmaConfig = field(default_factory=SigmaConfig)
    guidance_low: Weights = field(default_factory=lambda: Weights(2.0, 2.0))
    guidance_high: Weights = field(default_factory=lambda: Weights(2.0, 2.0))
    loss: Weights = field(default_factory=Weights)
    scores: ScoreMask = ScoreMask.bidirectional


@dataclass
class SelfForcingConfig(DmdConfig):
    init: SelfForcingInit = SelfForcingInit.causal_ode
    steered: float = 0.0


@dataclass
class TrajectoriesConfig:
    source: OdeSource = OdeSource.bidirectional_dmd
    count: int = 256
    steps: int = 16
    batch: int = 16
    per_shard: int = 128


@dataclass
class CausalOdeConfig:
    init: CausalOdeInit = CausalOdeInit.bidirectional_dmd
    optim: OptimiserConfig = field(default_factory=OptimiserConfig)
    muon_lr: Weights | None = None
    target: OdeTarget = OdeTarget.velocity
    loss: Weights = field(default_factory=Weights)


@dataclass
class EvaluateConfig:
    clips: int = 64
    seeds: int = 2
    batch: int = 16
    tolerance_ms: float = 80.0
    drift_factor: int = 3
    drift_clips: int = 16
    page_clips: int = 6
    page_duets: int = 3
    page_nearest: int = 4
    train_clips: int = 2000


@dataclass
class ExportConfig:
    prompt: str = "a red ball bounces high on the floor"
    seconds: float = 8.0
    registered_model: str | None = None


@dataclass
class DecoderConfig:
    """Training of a video decoder on latents."""

    steps: int = 2000
    batch: int = 2
    latents: int = 13
    context: int = 3
    lr: float = 1.0e-3
    foreground_weight: float = 10.0
    recompute: bool = False
    precision: str = "bf16-mixed"


@dataclass
class CausalDecoderConfig:
    source: DecoderSource = DecoderSource.codec
    clips: int = 512
    teacher: DecoderConfig = field(default_factory=DecoderConfig)
    student: DecoderConfig = field(default_factory=DecoderConfig)
    report_clips: int = 32


@dataclass
class TrainerConfig:
    """How the three Lightning stages, the teacher and the codec run; none of it changes what is learnt."""

    checkpoint_every: int = 50
    log_every: int = 10
    probes: int = 0
    probe_clips: int = 16
    accelerator: str = "auto"
    precision: str = "32-true"
    threads: int = 2
    processes: int = 1
    accumulate: int = 1
    checkpoint_activations: bool = False

    @property
    def device(self) -> str:
        """Where everything computes that Lightning does not place: on a GPU if there is one and ``accelerator`` allows it.

        Raises:
            ConfigError: if the config asks for a GPU and there is none.
        """
        import torch

        found = torch.cuda.is_available()
        if self.accelerator == "gpu" and not found:
            raise ConfigError(
                "trainer.accelerator is gpu, but torch finds no CUDA device here; set it to auto or cpu"
            )
        return "cuda" if found and self.accelerator != "cpu" else "cpu"


class Strategy(Enum):
    """What each worker of a training holds of its models: all, a shard, or a shard of what its node holds whole."""

    ddp = "ddp"
    fsdp = "fsdp"
    hybrid = "hybrid"


@dataclass
class KubeRayConfig:
    """What a RayJob manifest for KubeRay needs beside the cluster's workers."""

    namespace: str = "default"
    image: str = "omniforcing:latest"
    volume_claim: str = "omniforcing"
    memory: str = "32Gi"
    head_memory: str = "16Gi"
    keep_minutes: int = 10


@dataclass
class ClusterConfig:
    """Where the heavy stages run; ``address`` None is this process. None of it changes what is learnt."""

    address: str | None = None
    workers: int = 1
    strategy: Strategy = Strategy.ddp
    shard_size: int | None = None
    cpus: float = 1.0
    gpus: float = 0.0
    restarts: int = 3
    jobs: str | None = None
    data_root: str | None = None
    kuberay: KubeRayConfig = field(default_factory=KubeRayConfig)

    @property
    def sharded(self) -> bool:
        """Whether no worker holds a whole model."""
        return self.address is not None and self.strategy is not Strategy.ddp


@dataclass
class Config:
    preset: str = "pocket"
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    seed: int = 0
    clips: ClipsConfig = field(default_factory=ClipsConfig)
    shards: ShardsConfig = field(default_factory=ShardsConfig)
    codec: CodecConfig = field(default_factory=CodecConfig)
    latents: LatentsConfig = field(default_factory=LatentsConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    bidirectional_dmd: DmdConfig = field(default_factory=DmdConfig)
    trajectories: TrajectoriesConfig = field(default_factory=TrajectoriesConfig)
    causal_ode: CausalOdeConfig = field(default_factory=CausalOdeConfig)
    self_forcing: SelfForcingConfig = field(default_factory=SelfForcingConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    causal_decoder: CausalDecoderConfig = field(default_factory=CausalDecoderConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)

    @property
    def table(self) -> BlockTable:
        """The student's block table."""
        return LAYOUTS[self.student.layout]

    @property
    def latent_counts(self) -> Counts:
        """Latents of one training clip."""
        return clip_latents(self.clips.seconds)

    @property
    def horizon(self) -> int:
        """Index of the last block of a training clip: the farthest that the student has seen."""
        return self.table.count_for(self.latent_counts) - 1

    @property
    def clip_frames(self) -> int:
        return clip_frames(self.clips.seconds)

    @property
    def clip_samples(self) -> int:
        return clip_samples(self.clips.seconds)

    def validate(self) -> None:
        """Check what types cannot.

        Raises:
            ConfigError: naming the key and the legal values.
        """
        checks = [
            (
                self.cluster.workers >= 1,
                f"cluster.workers is {self.cluster.workers}; at least one is needed",
            ),
            (
                self.cluster.restarts >= 0,
                f"cluster.restarts is {self.cluster.restarts}; it is a number of times, 0 for never",
            ),
            (
                self.cluster.cpus >= 0
                and self.cluster.gpus >= 0
                and self.cluster.cpus + self.cluster.gpus > 0,
                f"a worker has cluster.cpus={self.cluster.cpus} and cluster.gpus={self.cluster.gpus}; one must be above 0",
            ),
            (
                self.cluster.shard_size is None
                or (
                    self.cluster.shard_size >= 1
                    and self.cluster.workers % self.cluster.shard_size == 0
                ),
                f"cluster.shard_size is {self.cluster.shard_size}; it must divide cluster.workers={self.cluster.workers}",
            ),
            (
                self.cluster.jobs is None or self.cluster.jobs.startswith(("http://", "https://")),
                f"cluster.jobs is {self.cluster.jobs!r}; give the address of Ray's dashboard, such as http://127.0.0.1:8265",
            ),
            (
                self.cluster.data_root is None or Path(self.cluster.data_root).is_absolute(),
                f"cluster.data_root is {self.cluster.data_root!r}; it must be absolute, the same folder on every node",
            ),
            (
                self.trainer.accumulate >= 1,
                f"trainer.accumulate is {self.trainer.accumulate}; the least is 1 micro-batch",
            ),
            (
                self.clips.source in ("synthetic", "folder"),
                f"clips.source is {self.clips.source!r}; use synthetic or folder",
            ),
            (
                self.clips.source != "folder" or self.clips.folder is not None,
                "clips.source=folder needs clips.folder: the folder that holds the videos",
            ),
            (
                self.clips.seconds >= 1,
                f"clips.seconds is {self.clips.seconds}; a clip lasts at least 1 second",
            ),
            (
                self.clips.count >= 1,
                f"clips.count is {self.clips.count}; at least one clip is needed",
            ),
            (
                self.clips.height % 32 == 0
                and self.clips.width % 32 == 0
                and min(self.clips.height, self.clips.width) > 0,
                f"clips are {self.clips.width}x{self.clips.height}; both sides must be positive multiples of 32",
            ),
            (
                0 <= self.self_forcing.steered <= 1,
                f"self_forcing.steered is {self.self_forcing.steered}; it is a share from 0 to 1",
            ),
            (
                0 <= self.clips.duets <= 1,
                f"clips.duets is {self.clips.duets}; it is a share from 0 to 1",
            ),
            (
                self.clips.heldout_duets >= 0,
                f"clips.heldout_duets is {self.clips.heldout_duets}; it cannot be negative",
            ),
            (
                self.clips.heldout >= 0,
                f"clips.heldout is {self.clips.heldout}; it cannot be negative",
            ),
            (
                self.clips.source != "synthetic" or self.clips.heldout < self.clips.count,
                f"clips.heldout={self.clips.heldout} leaves nothing of clips.count={self.clips.count} to train on",
            ),
            (
                0 <= self.clips.max_reject_share <= 1,
                f"clips.max_reject_share is {self.clips.max_reject_share}; it is a share from 0 to 1",
            ),
            (
                self.trainer.processes >= 1,
                f"trainer.processes is {self.trainer.processes}; at least one is needed",
            ),
            (
                self.trainer.probes >= 0,
                f"trainer.probes is {self.trainer.probes}; it is a number of times, 0 for never",
            ),
            (
                self.trainer.probe_clips >= 2,
                f"trainer.probe_clips is {self.trainer.probe_clips}; sync needs at least 2 clips",
            ),
            (
                self.shards.per_shard >= 1,
                f"shards.per_shard is {self.shards.per_shard}; a shard holds at least 1 clip",
            ),
            (
                0 <= self.shards.crf <= 51,
                f"shards.crf is {self.shards.crf}; x264 knows 0 (best) to 51",
            ),
            (
                self.student.layout in LAYOUTS,
                f"student.layout is {self.student.layout!r}; known layouts: {', '.join(LAYOUTS)}",
            ),
            (
                self.student.window >= 1,
                f"student.window is {self.student.window}; the least is 1 block",
            ),
            (
                self.student.sinks >= 0,
                f"student.sinks is {self.student.sinks}; it cannot be negative",
            ),
            (
                self.student.stabiliser.value.startswith("sinks") or self.student.sinks == 0,
                f"student.stabiliser is {self.student.stabiliser.value}, so student.sinks must be 0, not {self.student.sinks}",
            ),
            (
                self.student.sigmas[:1] == [1.0]
                and all(a > b > 0 for a, b in pairwise(self.student.sigmas)),
                f"student.sigmas are {self.student.sigmas}; they start at 1.0 and fall, and none is 0",
            ),
            (
                0 <= self.student.context_noise < 1,
                f"student.context_noise is {self.student.context_noise}; it is a sigma in [0, 1)",
            ),
            (
                self.codec.source is not Source.load or self.codec.path is not None,
                "codec.source=load needs codec.path: the folder of a saved codec",
            ),
            (
                self.teacher.source is not Source.load or self.teacher.path is not None,
                "teacher.source=load needs teacher.path: the folder of a saved transformer",
            ),
            *(
                (
                    2 * part.context < part.latents,
                    f"causal_decoder.{name}.latents is {part.latents}; it must exceed twice its context of {part.context}",
                )
                for name, part in (
                    ("teacher", self.causal_decoder.teacher),
                    ("student", self.causal_decoder.student),
                )
            ),
        ]
        for fine, message in checks:
            if not fine:
                raise ConfigError(message)
        self.table.check_window(self.student.window, self.horizon)


def project_root() -> Path:
    """The checkout: the nearest folder upwards from here, or from the package, that holds conf/config.yaml.

    Raises:
        ConfigError: if there is none.
    """
    for start in (Path.cwd(), Path(__file__).resolve()):
        for folder in (start, *start.parents):
            if (folder / "conf" / "config.yaml").is_file():
                return folder
    raise ConfigError(
        "no conf/config.yaml in this folder or any above it; run from the project's checkout"
    )


def data_root(root: Path) -> Path:
    """What ``data``, ``.work`` and the tracking store lie below: the checkout, or what OMNIFORCING_DATA_ROOT names.

    A job on a cluster runs from a copy of the code, and its data must not lie in that copy.
    """
    return Path(os.environ.get(DATA_ROOT_VARIABLE, root))


def _keys(schema: Any, prefix: str = "") -> list[str]:
    keys = []
    for f in dataclasses.fields(schema):
        value = getattr(schema, f.name)
        keys.append(prefix + f.name)
        if dataclasses.is_dataclass(value):
            keys += _keys(value, f"{prefix}{f.name}.")
    return keys


def _refuse(error: Exception, where: str) -> ConfigError:
    from omegaconf.errors import ConfigKeyError

    if isinstance(error, ConfigKeyError):
        key = str(error.full_key or error.key)
        return ConfigError(f"unknown key {key!r} in {where}{did_you_mean(key, _keys(Config()))}")
    named = getattr(error, "full_key", None)
    return ConfigError(f"{where}: {f'{named}: ' if named else ''}{str(error).splitlines()[0]}")


def load_config(
    overrides: list[str] | None = None, root: Path | None = None, preset: str | None = None
) -> Config:
    """Read ``conf/`` below ``root``, apply a preset and dotlist overrides such as ``clips.count=16``.

    Raises:
        ConfigError: for an unknown key (naming the nearest), a wrong type, an unknown preset or an illegal value.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    folder = (root or project_root()) / "conf"
    overrides = list(overrides or [])
    for item in overrides:
        if item.startswith("-") or "=" not in item:
            raise ConfigError(f"override {item!r} is not of the form key.subkey=value")
    merged = OmegaConf.structured(Config())

    def merge(source: Any, where: str) -> None:
        nonlocal merged
        try:
            merged = OmegaConf.merge(merged, source)
        except OmegaConfBaseException as error:
            raise _refuse(error, where) from error

    def read(path: Path) -> Any:
        try:
            return OmegaConf.load(path)
        except Exception as error:  # YAML errors come in many classes; all are the user's file
            raise ConfigError(f"{path} is not readable YAML: {error}") from error

    base = read(folder / "config.yaml")
    cluster = base.pop("cluster", None)
    merge(base, "conf/config.yaml")
    # `cluster=ray` names a file, `cluster.workers=2` a key of what that says.
    named = [item.partition("=")[2] for item in overrides if item.startswith("cluster=")]
    cluster = (named or [os.environ.get(CLUSTER_VARIABLE) or cluster])[-1]
    dotlist = OmegaConf.from_dotlist(
        [item for item in overrides if not item.startswith("cluster=")]
    )
    chosen: str = str(preset or dotlist.get("preset") or merged.preset)
    merged.preset = chosen
    for kind, name in (("preset", chosen), ("cluster", cluster)):
        if name is None:
            continue
        path = folder / kind / f"{name}.yaml"
        if not path.is_file():
            known = sorted(p.stem for p in path.parent.glob("*.yaml"))
            listed = f"known: {', '.join(known)}{did_you_mean(name, known)}"
            raise ConfigError(f"unknown {kind} {name!r}: {path} does not exist; {listed}")
        content = read(path)
        merge(
            OmegaConf.create({"cluster": content}) if kind == "cluster" else content,
            str(path.relative_to(folder.parent)),
        )
    merge(dotlist, "the command line")
    merged.preset = chosen
    try:
        config: Config = OmegaConf.to_object(merged)  # type: ignore[assignment]
        config.validate()
    except (OmegaConfBaseException, ValueError) as error:
        raise _refuse(error, f"preset {chosen}") from error
    return config


def to_dict(config: Any) -> dict[str, Any]:
    """A plain, json-able dict of a config or one of its sections."""

    def plain(value: Any) -> Any:
        if isinstance(value, Enum):
            return value.value
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, list):
            return [plain(v) for v in value]
        return value

    return {k: plain(v) for k, v in dataclasses.asdict(config).items()}


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one level of dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= (
            flatten(value, f"{prefix}{key}.")
            if isinstance(value, Mapping)
            else {f"{prefix}{key}": value}
        )
    return flat


def digest(value: Any) -> str:
    """sha256 of a json-able value or config section, in canonical form."""
    plain = (
        to_dict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value
    )
    return hashlib.sha256(
        json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()
    ).hexdigest()
