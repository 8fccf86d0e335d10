"""Sections of every training: optimiser, trainer, the causal video decoder."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from omniforcing.core.config import ConfigError, Section, chosen, ranged
from omniforcing.model.config import ADAPTABLE

PRECISIONS = ("32-true", "bf16-mixed")


@dataclass
class Weights(Section):
    """A number per modality."""

    one_line = True

    video: float = ranged(1.0, at_least=0)
    """For the video stream."""
    audio: float = ranged(1.0, at_least=0)
    """For the audio stream."""


@dataclass
class AdapterConfig(Section):
    """A low-rank adapter (LoRA), trained instead of the weights it changes."""

    one_line = True

    rank: int = ranged(16, at_least=1)
    """Rank of each change; at most the smaller side of every matrix that it changes."""
    alpha: float | None = ranged(None, above=0)
    """The changes count alpha / rank times; null: once, as alpha = rank."""
    targets: list[str] = field(
        default_factory=lambda: ["to_q", "to_k", "to_v", "to_out.0", "net.0.proj", "net.2"]
    )
    """Layers of a block, by the end of their names in diffusers: `to_q` is that of all attentions,
    `audio_attn1.to_q` that of one, `ff.net.2` a layer of the video's feed-forward."""
    dropout: float = ranged(0.0, at_least=0, below=1)
    """Share of the adapter's inputs that a forward with gradient leaves out."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(bool(self.targets), "targets", "it must name a layer", missing=True)
        ends = dict.fromkeys(layer.partition(".")[2] for layer in ADAPTABLE)
        for target in self.targets:
            self.require(
                any(self.names(target, layer) for layer in ADAPTABLE),
                "targets",
                f"{target!r} is no layer of a block; name some of {', '.join(ends)}, "
                f"or of {', '.join(ADAPTABLE[:2])} and so on",
            )

    @staticmethod
    def names(target: str, layer: str) -> bool:
        """Whether a target names a layer: it is the name, or ends it at a dot."""
        return layer == target or layer.endswith(f".{target}")

    @property
    def scale(self) -> float:
        """How often the changes count."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


@dataclass
class OptimiserConfig(Section):
    """Updates, batch, AdamW and the averaged weights."""

    steps: int = ranged(1000, at_least=0)
    """Updates; 0 leaves a student as it starts."""
    batch: int = ranged(16, at_least=1)
    """Clips per update, of all workers together."""
    lr: Weights = ranged(Weights(1.0e-3, 1.0e-3), above=0, at_most=1)
    """Peak learning rate of each stream."""
    warmup: int = ranged(20, at_least=0)
    """Updates of linear warm-up."""
    weight_decay: float = ranged(0.01, at_least=0, at_most=1)
    """Weight decay, of Muon too."""
    betas: list[float] = ranged([0.9, 0.99], at_least=0, below=1)
    """AdamW's decays of the gradient's mean and of its square."""
    clip: float = ranged(1.0, above=0)
    """Largest gradient norm."""
    ema: float = ranged(0.99, at_least=0, below=1)
    """Decay of the averaged weights, which are the ones that are kept."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(len(self.betas) == 2, "betas", "it must be two numbers")


class DecoderSource(Enum):
    """Where the non-causal video decoder comes from that a causal one is made of."""

    codec = "codec"
    train = "train"


@dataclass
class CausalDecoderConfig(Section):
    """Optional stage causal_decoder: a causal video decoder made of a non-causal one."""

    source: DecoderSource = DecoderSource.codec
    """The non-causal one: `codec` (the codec's own) or `train` (from scratch, on its latents)."""
    clips: int = ranged(512, at_least=1)
    """Training clips whose latents, and with `source: train` frames, are held in memory."""
    train_steps: int = ranged(2000, at_least=1)
    """Updates of a non-causal decoder that is trained from scratch."""
    steps: int = ranged(2000, at_least=1)
    """Updates of the adaptation."""
    batch: int = ranged(2, at_least=1)
    """Crops per update."""
    latents: int = ranged(13, at_least=1)
    """Length of a training crop; of clips no longer than this, the whole."""
    context: int = ranged(3, at_least=0)
    """Latents at a cut within a clip that are decoded and not counted."""
    lr: float = ranged(1.0e-3, above=0, at_most=1)
    """Peak learning rate."""
    foreground_weight: float = ranged(10.0, at_least=0)
    """Weight of pixels that differ from the clip's other frames."""
    recompute: bool = False
    """Compute activations again in the backward pass, to save memory."""
    report_clips: int = ranged(32, at_least=1)
    """Held-out clips on which both decoders are measured."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(
            2 * self.context < self.latents,
            "latents",
            f"it must be above {2 * self.context}, twice its context of {self.context}",
        )


@dataclass
class TrainerConfig(Section):
    """How the trained stages run; changing it retrains nothing."""

    checkpoint_every: int = ranged(50, at_least=1)
    """Updates between checkpoints."""
    log_every: int = ranged(10, at_least=1)
    """Updates between logged values."""
    probes: int = ranged(0, at_least=0)
    """Times during teacher and Stages I to III that samples are measured for the curves."""
    probe_clips: int = ranged(16, at_least=2)
    """Held-out captions sampled each time; sync compares at least two."""
    accelerator: str = chosen("auto", ("auto", "cpu", "gpu"))
    """Where to compute; `auto`: on a GPU if there is one."""
    precision: str = chosen("32-true", PRECISIONS)
    """Precision of teacher and Stages I to III."""
    threads: int = ranged(2, at_least=1, at_most=1024)
    """CPU threads per process."""
    processes: int = ranged(1, at_least=1, at_most=1024)
    """Processes of this machine, one thread each, that train together and share out shards and
    measures; at most one per core, no more than a batch divides among, and one on a GPU."""
    accumulate: int = ranged(1, at_least=1)
    """Micro-batches per worker and update: less memory, the same update."""
    checkpoint_activations: bool = False
    """Keep one activation per layer and compute the others again: less memory, slower."""
    frozen: str = chosen("fp32", ("fp32", "bf16", "int8"))
    """Precision in which the frozen teacher is held; bf16-mixed computes its products in bf16
    either way, so `bf16` changes no result. `int8` is for adapters alone."""
    batched_guidance: bool = True
    """Score with and without the caption as one batch; false: one after the other, less memory."""
    averages: str = chosen("fp32", ("fp32", "bf16", "cpu"))
    """How averaged weights are held; `bf16` is rounded at random, `cpu` is fp32 in main memory."""
    moments: str = chosen("fp32", ("fp32", "bf16"))
    """Precision of AdamW's moments; `bf16` is rounded at random. Muon's stay in fp32."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(
            self.frozen != "bf16" or self.precision == "bf16-mixed",
            "frozen",
            f"it must be fp32 or int8 with precision={self.precision}, which computes in fp32",
        )

    @property
    def device(self) -> str:
        """Device of everything that Lightning does not place: the GPU if present and allowed.

        Raises:
            ConfigError: if the config asks for a GPU and there is none.
        """
        import torch

        found = torch.cuda.is_available()
        if self.accelerator == "gpu" and not found:
            raise ConfigError(
                "device.no-cuda",
                "trainer.accelerator is gpu, but torch finds no CUDA device here; "
                "set it to auto or cpu",
            )
        return "cuda" if found and self.accelerator != "cpu" else "cpu"
