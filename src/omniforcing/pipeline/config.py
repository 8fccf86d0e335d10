"""The whole configuration: the sections of all rooms, and the files that set them."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omniforcing.codec.config import CodecConfig
from omniforcing.core.config import (
    ConfigError,
    FieldError,
    Section,
    project_root,
    ranged,
    to_dict,
)
from omniforcing.core.environment import CLUSTER_VARIABLE
from omniforcing.core.errors import did_you_mean
from omniforcing.core.layout import LayoutError
from omniforcing.data.config import ClipsConfig, LatentsConfig, ShardsConfig
from omniforcing.distill.config import (
    CausalOdeConfig,
    DmdConfig,
    SelfForcingConfig,
    TeacherConfig,
    TrajectoriesConfig,
)
from omniforcing.evaluation.config import EvaluateConfig
from omniforcing.model.config import StudentConfig
from omniforcing.pipeline.cluster.config import ClusterConfig
from omniforcing.pipeline.yaml_files import check_types, merge_sources, read_overrides, read_yaml
from omniforcing.streaming.config import ExportConfig
from omniforcing.training.config import CausalDecoderConfig, TrainerConfig

# Key of a preset's file that names another preset, from which it differs in what the file says.
BASE = "base"


@dataclass
class Config(Section):
    """Everything that can be configured."""

    preset: str = "pocket"
    """File in conf/preset that applies; `omniforcing pipeline --write` follows a change of it."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """File in conf/cluster that applies: local (this process), ray, kuberay or your own."""
    seed: int = ranged(0, at_least=0)
    """Every random number follows from it; presets leave it alone."""
    clips: ClipsConfig = field(default_factory=ClipsConfig)
    """Stage clips: where the training clips come from."""
    shards: ShardsConfig = field(default_factory=ShardsConfig)
    """Stage shards: conformed clips in WebDataset tars."""
    codec: CodecConfig = field(default_factory=CodecConfig)
    """Stage codec: video VAE, audio VAE, vocoder, text encoder."""
    latents: LatentsConfig = field(default_factory=LatentsConfig)
    """Stage latents: encoded clips and text features."""
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    """Stage teacher: the bidirectional model."""
    student: StudentConfig = field(default_factory=StudentConfig)
    """The causal student, from Stage II on."""
    bidirectional_dmd: DmdConfig = field(default_factory=DmdConfig)
    """Stage bidirectional_dmd (I): few steps, still bidirectional."""
    trajectories: TrajectoriesConfig = field(default_factory=TrajectoriesConfig)
    """Stage trajectories: ODE pairs for Stage II."""
    causal_ode: CausalOdeConfig = field(default_factory=CausalOdeConfig)
    """Stage causal_ode (II): regression with block-causal visibility."""
    self_forcing: SelfForcingConfig = field(default_factory=SelfForcingConfig)
    """Stage self_forcing (III): DMD on the student's own rollouts."""
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    """Stage evaluate: every model on the same captions and seeds."""
    export: ExportConfig = field(default_factory=ExportConfig)
    """Stage export: the artifact and a first stream from it."""
    causal_decoder: CausalDecoderConfig = field(default_factory=CausalDecoderConfig)
    """Optional stage causal_decoder: a causal video decoder made of a non-causal one."""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    """How the trained stages run; changing it retrains nothing."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(
            self.trainer.averages != "cpu" or not self.cluster.address,
            "trainer.averages",
            "it must be fp32 or bf16 on a cluster, whose workers hold a share of them each",
        )
        states = len(self.student.sigmas)
        self.require(
            self.trajectories.steps % states == 0,
            "trajectories.steps",
            f"it must be a multiple of the number of student.sigmas, {states}",
        )
        try:
            self.student.table.check_window(self.student.window, self.horizon)
        except LayoutError as error:
            self.require(False, "student.window", str(error))
        self._check_adapters()
        self._check_quantised()

    def _check_quantised(self) -> None:
        """Refuse a quantised base where weights that begin as it shall be trained, or sharded."""
        if self.trainer.frozen != "int8":
            return
        roles = {"bidirectional_dmd": ("adapter", "critic_adapter"), "causal_ode": ("adapter",)}
        roles["self_forcing"] = roles["bidirectional_dmd"]
        for stage, keys in roles.items():
            for key in keys:
                self.require(
                    getattr(getattr(self, stage), key) is not None,
                    "trainer.frozen",
                    f"quantised weights are for adapters, and {stage}.{key}=null trains all "
                    "weights; set a rank there, or frozen to bf16",
                )
        self.require(
            not self.cluster.sharded,
            "trainer.frozen",
            f"quantised weights cannot be sharded by cluster.strategy="
            f"{self.cluster.strategy.value}; set it to ddp, or frozen to bf16",
        )

    def _check_adapters(self) -> None:
        """Refuse a student's adapter that cannot go on from that of the stage before."""
        for name in ("causal_ode", "self_forcing"):
            section = getattr(self, name)
            source = section.init.value
            # Without a section of its own, a stage writes whole weights: the teacher does too, but
            # those are what an adapter is for.
            if section.adapter is None or source == "teacher":
                continue
            if getattr(self, source).adapter != section.adapter:
                raise FieldError(
                    f"{name}.adapter",
                    f"is not {source}.adapter, from which this stage goes on; make them equal, or "
                    f"train all weights with {name}.adapter=null",
                )

    @property
    def horizon(self) -> int:
        """Index of the last block of a training clip, the largest that the student trains on."""
        return self.student.horizon(self.clips.latent_counts)


def load_config(
    overrides: list[str] | None = None, root: Path | None = None, preset: str | None = None
) -> Config:
    """Load the configuration from ``conf/`` and overrides.

    Later sources win: defaults of the schema, conf/config.yaml, conf/preset/<base>.yaml if the
    preset names a base, conf/preset/<preset>.yaml, conf/cluster/<cluster>.yaml, overrides.

    Args:
        overrides: dotlist, such as ``clips.count=16``; ``cluster=NAME`` names a file.
        root: the checkout; the one around the working folder if None.
        preset: name of the preset; if None, that of the overrides or of conf/config.yaml.

    Raises:
        ConfigError: for an unknown key (naming the nearest), a wrong type, an unknown preset or
            cluster, an illegal value, or one that DVC reads differently.
    """
    from omegaconf import OmegaConf

    root = root or project_root()
    folder = root / "conf"
    overrides = list(overrides or [])
    base = read_yaml(folder / "config.yaml")
    # `cluster=ray` names a file, `cluster.workers=2` overrides a key of that file.
    files = [item for item in overrides if item.startswith("cluster=")]
    keys = [item for item in overrides if not item.startswith("cluster=")]
    clusters = [base.pop("cluster", None), os.environ.get(CLUSTER_VARIABLE)]
    clusters += [item.partition("=")[2] for item in files]
    chosen_cluster = [name for name in clusters if name][-1:]
    dotlist = read_overrides(keys)
    chosen = str(preset or dotlist.get("preset") or base.get("preset") or Config.preset)
    sources: list[tuple[Any, str]] = [(base, "conf/config.yaml")]
    for file in preset_files(root, chosen):
        content = read_yaml(root / file)
        content.pop(BASE, None)
        sources.append((content, file))
    for name in chosen_cluster:
        content = {"cluster": _read_named(folder, "cluster", name)}
        sources.append((content, f"conf/cluster/{name}.yaml"))
    sources += [(dotlist, "the command line"), ({"preset": chosen}, "the command line")]
    config = merge_sources(Config(), sources)
    made = to_dict(config)
    for source, where in sources:
        given = OmegaConf.to_container(source) if OmegaConf.is_config(source) else source
        check_types(given, made, where)
    return config


def preset_files(root: Path, name: str) -> list[str]:
    """List the files of a preset, the later one wins: that of its ``base`` if any, and its own.

    Args:
        root: the checkout.
        name: name of the preset.

    Returns:
        Paths relative to the checkout.

    Raises:
        ConfigError: if there is no such file, or a base has a base itself.
    """
    own = f"conf/preset/{name}.yaml"
    base = _read_named(root / "conf", "preset", name).get(BASE)
    if base is None:
        return [own]
    content = _read_named(root / "conf", "preset", str(base))
    if BASE in content:
        raise ConfigError(
            "config.chained-base",
            f"{root / own}: its base {base} has the base {content[BASE]}; name that one, and what "
            f"{base} changes too",
        )
    return [f"conf/preset/{base}.yaml", own]


def _read_named(folder: Path, kind: str, name: str) -> dict[Any, Any]:
    """Read ``<kind>/<name>.yaml``.

    Raises:
        ConfigError: if there is no such file, naming the known ones.
    """
    path = folder / kind / f"{name}.yaml"
    if not path.is_file():
        known = sorted(p.stem for p in path.parent.glob("*.yaml"))
        listed = f"known: {', '.join(known)}{did_you_mean(name, known)}"
        fault = f"{name!r}: {path} does not exist; {listed}"
        if kind == "preset":
            raise ConfigError("config.unknown-preset", f"unknown preset {fault}")
        raise ConfigError("config.unknown-cluster", f"unknown cluster {fault}")
    return read_yaml(path)
