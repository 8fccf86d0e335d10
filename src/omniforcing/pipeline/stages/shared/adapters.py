"""Adapters in stages: open roles on the teacher's weights, publish what they have learnt."""

from __future__ import annotations

from dataclasses import dataclass

from omniforcing.core.errors import OmniForcingError
from omniforcing.model.stabiliser import adopt, load_added, save_added
from omniforcing.model.transformer import DualStream
from omniforcing.model.weights.checkpoint import SINKS_FILE, open_checkpoint
from omniforcing.model.weights.lora import (
    ADAPTER_FILE,
    Lora,
    merged,
    read_lora,
    weights_digest,
    write_lora,
)
from omniforcing.model.weights.writing import write_diffusers
from omniforcing.pipeline.stage import Stage
from omniforcing.training.adapters import AdaptedStream, build_layers, check_targets
from omniforcing.training.config import AdapterConfig
from omniforcing.training.sharding import gathered


@dataclass(frozen=True)
class Adapter:
    """An adapter that fits the teacher, checked before any model is loaded.

    Attributes:
        config: rank, alpha, targets and dropout.
        digest: sha256 of the teacher's weights.
        start: adapter of an earlier stage to go on from; None to begin at the teacher.
    """

    config: AdapterConfig
    digest: str
    start: Lora | None

    def on(self, teacher: DualStream, seed: int) -> AdaptedStream:
        """Build a role on the teacher's weights, without sinks."""
        return self._adopted(
            AdaptedStream(teacher, build_layers(teacher, self.config, seed), self.digest)
        )

    def student_on(self, teacher: DualStream, stage: Stage, source: str | None) -> AdaptedStream:
        """Build the student on the teacher's weights, its sinks those of ``source`` or new."""
        if source is None:
            return self.on(teacher, stage.config.seed)
        student, path = stage.config.student, stage.input(source) / SINKS_FILE
        layers = build_layers(teacher, self.config, stage.config.seed)
        model = AdaptedStream(teacher, layers, self.digest, student.sinks, student.stabiliser)
        adopt(model, load_added(path), path)
        return self._adopted(model)

    def _adopted(self, model: AdaptedStream) -> AdaptedStream:
        if self.start is not None:
            model.take(self.start)
        return model


def prepare_adapter(
    stage: Stage, config: AdapterConfig, key: str, source: str | None = None
) -> Adapter:
    """Check an adapter against the teacher, and against the stage that it goes on from.

    Args:
        stage: the running stage.
        config: the adapter.
        key: its key in the configuration.
        source: the stage whose adapter it goes on from; None or the teacher: a fresh one.

    Raises:
        OmniForcingError: if rank or targets do not fit, or ``source`` has no adapter on this very
            teacher.
    """
    checkpoint = open_checkpoint(stage.input("teacher"))
    check_targets(config, checkpoint, key)
    start = None
    if source not in (None, "teacher"):
        folder = stage.input(str(source))
        if not (folder / ADAPTER_FILE).is_file():
            raise OmniForcingError(
                "adapter.no-adapter",
                f"{folder} has no {ADAPTER_FILE}, so its weights were trained whole, and {key} "
                f"goes on from an adapter; set {source}.adapter too and run that stage again",
            )
        start = read_lora(folder).fitted(checkpoint)
    digest = weights_digest(checkpoint)
    if start is not None:
        start.check_base(digest, str(checkpoint.source))
    return Adapter(config, digest, start)


def publish_adapter(stage: Stage, model: AdaptedStream) -> None:
    """Publish an adapter, and the weights that it makes of the teacher's.

    Later stages go on from the adapter; whatever samples, measures or streams takes the weights.
    Every worker of a sharded model must call it.
    """
    with stage.publish() as folder:
        base = stage.config.teacher.path or f"{stage.config.preset}/teacher"
        lora = model.lora(folder / ADAPTER_FILE, base)
        added = {name: gathered(p) for name, p in model.named_parameters(recurse=False)}
        if stage.is_writer:
            write_lora(lora, folder / ADAPTER_FILE)
            teacher = open_checkpoint(stage.input("teacher"))
            write_diffusers(merged(teacher, [(lora, 1.0)]), folder)
            save_added(added, model.stabiliser, folder / SINKS_FILE)
