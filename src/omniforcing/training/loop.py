"""Train a module with Lightning's Trainer: exact resume, curves, one process or a process group.

An epoch is ``checkpoint_every`` steps. The batches of an epoch depend only on the seed and the
epoch, the random draws of a step only on the seed and the step, and a checkpoint is written at the
end of every epoch. A run that is killed and started again therefore ends with exactly the weights
of an uninterrupted run.
"""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from tqdm import tqdm

from omniforcing.core import distributed
from omniforcing.core.errors import OmniForcingError
from omniforcing.core.files import atomic_write
from omniforcing.training import checkpoints, parallel
from omniforcing.training.config import TrainerConfig
from omniforcing.training.curves import CURVES, Log, Probe
from omniforcing.training.lightning_modules import adapt


class _Steps(IterableDataset):
    """Yields ``(step, batch)`` for the steps ``first`` to ``last - 1`` of one epoch."""

    def __init__(
        self, batches: Callable[[int], Iterator[Any]], epoch: int, first: int, last: int
    ) -> None:
        self.batches, self.epoch, self.first, self.last = batches, epoch, first, last

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        step = self.first
        for step, batch in zip(
            range(self.first, self.last), self.batches(self.epoch), strict=False
        ):
            yield step, batch
        if step + 1 < self.last:
            raise OmniForcingError(
                "data.too-few-clips",
                f"the data of epoch {self.epoch} ended at step {step + 1} of {self.last}; "
                "there are too few clips: raise clips.count or lower optim.batch",
            )


class _Data(L.LightningDataModule):
    """Makes a loader for each epoch, from the epoch's index alone."""

    def __init__(self, batches: Callable[[int], Iterator[Any]], steps: int, every: int) -> None:
        super().__init__()
        self.batches, self.steps, self.every = batches, steps, every

    def train_dataloader(self) -> DataLoader:
        assert self.trainer is not None
        epoch = self.trainer.current_epoch
        first = epoch * self.every
        return DataLoader(
            _Steps(self.batches, epoch, first, min(self.steps, first + self.every)), batch_size=None
        )


class _Checkpoints(Callback):
    """Writes a checkpoint at the end of each epoch.

    On a full disk the previous checkpoint stays and training goes on.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_epoch_end(self, trainer: L.Trainer, _module: L.LightningModule) -> None:
        trainer.save_checkpoint(
            self.folder / checkpoints.name(trainer.strategy, trainer.current_epoch + 1)
        )


class _Curves(Callback):
    """Writes logged values every few steps to ``curves.csv`` and to the tracker.

    On resume, rows after the checkpoint are dropped: their steps are trained again. The probe's
    measurements are in the rows of the steps after which they were taken.

    Args:
        folder: folder of the file.
        every: steps between two rows.
        log: called with values and step for each row; None for none.
        probe: measures the module; None for none.
        probe_steps: steps after which to measure; each has a row.
    """

    def __init__(
        self, folder: Path, every: int, log: Log | None, probe: Probe | None, probe_steps: set[int]
    ) -> None:
        # Not named ``log``: Lightning overwrites that attribute of every callback.
        self.path, self.every, self.sink = folder / CURVES, every, log
        self.probe, self.probe_steps = probe, probe_steps

    def on_train_start(self, trainer: L.Trainer, _module: L.LightningModule) -> None:
        self.rows: list[dict[str, str]] = []
        if trainer.current_epoch and self.path.is_file():
            done = trainer.current_epoch * trainer.datamodule.every  # type: ignore[attr-defined]
            with self.path.open(newline="") as file:
                self.rows = [row for row in csv.DictReader(file) if int(row["step"]) < done]

    def on_train_batch_end(
        self, trainer: L.Trainer, _module: L.LightningModule, _out: Any, batch: Any, _i: int
    ) -> None:
        step = int(batch[0])
        asked = self.probe is not None and step in self.probe_steps
        if (
            step % self.every
            and step + 1 != trainer.datamodule.steps  # type: ignore[attr-defined]
            and not asked
        ):
            return
        values = {k: float(v) for k, v in trainer.logged_metrics.items()}
        if self.probe is not None and asked:
            values |= self.probe()
        if not all(map(_finite, values.values())):
            raise OmniForcingError(
                "training.not-finite",
                f"step {step}: {values} is not finite; lower the learning rate or check the data",
            )
        self.rows.append({"step": str(step), **{k: f"{v:.6g}" for k, v in values.items()}})
        if self.sink and distributed.rank() == 0:
            self.sink(values, step)

    def on_train_epoch_end(self, _trainer: L.Trainer, _module: L.LightningModule) -> None:
        if self.rows and distributed.rank() == 0:
            table = io.StringIO()
            writer = csv.DictWriter(
                table, list(dict.fromkeys(name for row in self.rows for name in row)), restval=""
            )
            writer.writeheader()
            writer.writerows(self.rows)
            checkpoints.unless_full(lambda: atomic_write(self.path, table.getvalue()), self.path)


def probe_steps(steps: int, probes: int) -> set[int]:
    """Space ``probes`` measurements evenly over ``steps`` steps; return the steps they follow."""
    return {-(-steps * n // probes) - 1 for n in range(1, probes + 1)}


def _finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")


def fit(
    module: nn.Module,
    batches: Callable[[int], Iterator[Any]],
    *,
    steps: int,
    work: Path,
    trainer: TrainerConfig,
    log: Log | None = None,
    probe: Probe | None = None,
    name: str = "training",
    sharded: bool = False,
) -> None:
    """Train a module, starting from the last checkpoint in ``work`` if there is one.

    In a process group, every process calls it with the same arguments but its own batch rows.

    Args:
        module: a ``StageModule`` or a ``CodecTraining``, whose logged values the curves show.
        batches: makes the batches of an epoch (``trainer.checkpoint_every`` steps) from its index
            alone.
        steps: total number of steps.
        work: folder for checkpoints and curves; the same one in a whole process group.
        trainer: precision, device, and how often to log, measure and write checkpoints.
        log: called with logged values and step every ``trainer.log_every`` steps.
        probe: measures the module ``trainer.probes`` times, the last time after the last step.
        name: label of the progress bar.
        sharded: whether the module shards itself over the process group in ``shard``.

    Raises:
        OmniForcingError: if a logged value is not finite, the data runs out, or the checkpoint is
            of another model.
    """
    work.mkdir(parents=True, exist_ok=True)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    every = min(trainer.checkpoint_every, steps)
    checkpoint = checkpoints.latest(work, sharded)
    runner = L.Trainer(
        accelerator=trainer.accelerator,
        devices=1,
        strategy=parallel.strategy(sharded),
        plugins=[checkpoints.Atomic(), *parallel.environment()],
        precision=trainer.precision,  # type: ignore[arg-type]
        max_epochs=-(-steps // every),
        reload_dataloaders_every_n_epochs=1,
        callbacks=[
            # Curves before the checkpoint: after a kill between the two, the file has rows that the
            # checkpoint lacks, which resume drops. The other order would lose rows for good.
            _Curves(work, trainer.log_every, log, probe, probe_steps(steps, trainer.probes)),
            _Checkpoints(work),
            _Progress(name, steps, every),
        ],
        logger=_MetricSink(),
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        inference_mode=False,
        default_root_dir=work,
    )
    try:
        runner.fit(
            adapt(module),
            datamodule=_Data(batches, steps, every),
            ckpt_path=str(checkpoint) if checkpoint else None,
            weights_only=False,  # our own file, under our own work folder
        )
    except (RuntimeError, KeyError) as error:
        if "state_dict" in str(error):
            raise OmniForcingError(
                "training.other-model",
                f"{checkpoint} is of another model; remove {work} to start afresh",
            ) from error
        raise
    if runner.interrupted:
        raise KeyboardInterrupt
    # Sharded weights stay on their devices, where the process group can gather them.
    (module if sharded else module.to("cpu")).eval()


class _Progress(Callback):
    """Shows a progress bar over all steps with the latest logged values, on rank 0 only."""

    def __init__(self, name: str, steps: int, every: int) -> None:
        self.name, self.steps, self.every = name, steps, every

    def on_train_start(self, trainer: L.Trainer, _module: L.LightningModule) -> None:
        done = min(self.steps, trainer.current_epoch * self.every)
        silent = distributed.rank() > 0
        self.bar = tqdm(
            total=self.steps,
            initial=done,
            desc=self.name,
            unit="step",
            mininterval=2,
            disable=silent,
        )

    def on_train_batch_end(
        self, trainer: L.Trainer, _module: L.LightningModule, *_rest: Any
    ) -> None:
        self.bar.update()
        self.bar.set_postfix(
            {k: f"{float(v):.3g}" for k, v in trainer.progress_bar_metrics.items()}, refresh=False
        )

    def on_train_end(self, _trainer: L.Trainer, _module: L.LightningModule) -> None:
        self.bar.close()


class _MetricSink(L.pytorch.loggers.logger.DummyLogger):
    """A logger that writes nothing; without one Lightning collects no ``logged_metrics``."""
