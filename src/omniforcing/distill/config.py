"""Sections of teacher, Stages I to III and the trajectories between them."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from omniforcing.codec.config import Source
from omniforcing.core.config import Section, chosen, fraction, ranged
from omniforcing.model.config import RELEASES, TransformerConfig
from omniforcing.training.config import AdapterConfig, OptimiserConfig, Weights


def check_muon(section: Section, adapter: str, muon_lr: str) -> None:
    """Refuse Muon for an adapter.

    Muon makes the update of a whole matrix orthogonal; an adapter has only two thin factors of
    it, whose orthogonal updates are no orthogonal update of their product.
    """
    section.require(
        getattr(section, adapter) is None or getattr(section, muon_lr) is None,
        muon_lr,
        f"Muon trains whole matrices, and {adapter} trains two thin factors of each instead: set "
        f"{muon_lr} to null, which trains them with AdamW",
    )


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
class SigmaConfig(Section):
    """Range and shift of the training noise levels."""

    one_line = True

    low: float = ranged(0.02, at_least=0, below=1)
    """Smallest noise level."""
    high: float = ranged(1.0, above=0, at_most=1)
    """Largest noise level."""
    shift: float = ranged(0.4, at_least=-10, at_most=10)
    """Shift towards 1, the exponent of LTX-2's scheduler; 0: uniform."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.low < self.high, "low", f"it must be below high={self.high}")


@dataclass
class SamplerConfig(Section):
    """Guided sampling of the teacher."""

    steps: int = ranged(25, at_least=1)
    """Euler steps."""
    shift: float = ranged(0.4, at_least=-10, at_most=10)
    """Shift of the noise levels towards 1."""
    guidance: Weights = ranged(Weights(2.0, 2.0), at_least=0, at_most=100)
    """Classifier-free guidance of each stream; 1: none."""


@dataclass
class TeacherConfig(Section):
    """Stage teacher: the bidirectional model."""

    source: Source = Source.train
    """`train`, `kept` (the foundation in src/omniforcing/assets) or `load`."""
    path: str | None = None
    """For `source: load`: LTX-2 weights, in any form that `omniforcing weights inspect` reads."""
    release: str = chosen("2.0", RELEASES)
    """For `source: load`: LTX-2 release that these weights must be of."""
    loras: list[str] = field(default_factory=list)
    """For `source: load`: LoRAs to merge into the weights, each as FILE or FILE:SCALE."""
    model: TransformerConfig = field(default_factory=TransformerConfig)
    """Sizes of teacher, student and critic."""
    optim: OptimiserConfig = field(default_factory=OptimiserConfig)
    """Updates and optimiser."""
    muon_lr: Weights | None = ranged(None, above=0, at_most=1)
    """Muon at these rates for the layers' matrices; null: AdamW for all."""
    sigma: SigmaConfig = field(default_factory=SigmaConfig)
    """Training noise levels."""
    text_dropout: float = fraction(0.1)
    """Share of samples trained without their caption, for guidance."""
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    """Guided sampling, for the evaluation and for trajectories of the teacher."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(
            self.source is not Source.load or self.path is not None,
            "path",
            "source=load needs the folder or file of a saved transformer",
            missing=True,
        )
        self.require(
            self.source is Source.load or self.release == "2.0",
            "release",
            "weights of source=train or kept have the architecture of LTX-2.0",
        )
        self.require(
            self.source is Source.load or not self.loras,
            "loras",
            "only weights of source=load can have LoRAs merged into them",
        )


@dataclass
class DmdConfig(Section):
    """Stage bidirectional_dmd (I): few steps, still bidirectional."""

    optim: OptimiserConfig = field(default_factory=OptimiserConfig)
    """Updates and optimiser of the student; batch, clip and decays of the critic too."""
    muon_lr: Weights | None = ranged(None, above=0, at_most=1)
    """Muon at these rates for the matrices of the student's layers; null: AdamW for all."""
    critic_lr: float = ranged(4.0e-4, above=0, at_most=1)
    """Peak learning rate of the critic."""
    critic_muon_lr: float | None = ranged(None, above=0, at_most=1)
    """Muon at this rate for the matrices of the critic's layers; null: AdamW for all."""
    critic_steps: int = ranged(5, at_least=1)
    """Critic updates per student update."""
    sigma: SigmaConfig = field(default_factory=SigmaConfig)
    """Noise levels at which teacher and critic are compared."""
    guidance: Weights = ranged(Weights(2.0, 2.0), at_least=0, at_most=100)
    """Teacher guidance of each stream."""
    adapter: AdapterConfig | None = None
    """Train the student as an adapter on the teacher's frozen weights; null: all its weights."""
    critic_adapter: AdapterConfig | None = None
    """Train the critic as an adapter on the teacher's frozen weights; null: all its weights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_muon(self, "adapter", "muon_lr")
        check_muon(self, "critic_adapter", "critic_muon_lr")


@dataclass
class SelfForcingConfig(DmdConfig):
    """Stage self_forcing (III): DMD on the student's own rollouts."""

    init: SelfForcingInit = SelfForcingInit.causal_ode
    """Stage whose weights the student starts from."""
    steered: float = fraction(0.0)
    """Share of the rollouts that begin under another caption, like a stream whose prompt
    changes."""
    scores: ScoreMask = ScoreMask.bidirectional
    """Attention of teacher and critic."""


@dataclass
class TrajectoriesConfig(Section):
    """Stage trajectories: ODE pairs for Stage II."""

    source: OdeSource = OdeSource.bidirectional_dmd
    """Model whose trajectories they are."""
    count: int = ranged(256, at_least=1)
    """Trajectories."""
    steps: int = ranged(16, at_least=1)
    """Euler steps in all, a multiple of the student's sigmas."""
    batch: int = ranged(16, at_least=1)
    """Trajectories integrated at a time."""
    per_shard: int = ranged(128, at_least=1)
    """Trajectories per tar."""


@dataclass
class CausalOdeConfig(Section):
    """Stage causal_ode (II): regression with block-causal visibility."""

    init: CausalOdeInit = CausalOdeInit.bidirectional_dmd
    """Stage whose weights the student starts from."""
    optim: OptimiserConfig = field(default_factory=OptimiserConfig)
    """Updates and optimiser."""
    muon_lr: Weights | None = ranged(None, above=0, at_most=1)
    """Muon at these rates for the layers' matrices; null: AdamW for all."""
    adapter: AdapterConfig | None = None
    """Train the student as an adapter on the teacher's frozen weights; null: all its weights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_muon(self, "adapter", "muon_lr")
