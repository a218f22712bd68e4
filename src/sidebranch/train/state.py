"""The state of a running training: what a checkpoint holds, when it is written, and the files that follow from it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lightning.fabric import Fabric

from sidebranch.config.compare import as_dict
from sidebranch.config.schema import Config
from sidebranch.distributed.processes import summed
from sidebranch.errors import UserError
from sidebranch.runs import checkpoint
from sidebranch.runs.atomic_files import BackgroundWriter
from sidebranch.runs.export import write_backbone
from sidebranch.runs.folder import RunFolder
from sidebranch.runs.headline import Headline
from sidebranch.train.optimizer import restore_optimizer
from sidebranch.train.setup import Networks
from sidebranch.train.step import TrainStep

Row = dict[str, float]


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        epoch: finished epochs.
        step: finished steps of the current epoch.
        seconds: of training, without evaluation.
        rows: of metrics.csv, one per epoch.
        best: the epoch with the best headline metric, and its value.
    """

    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    rows: list[Row] = field(default_factory=list)
    best: dict[str, float] = field(default_factory=lambda: {"epoch": 0})

    def finish_epoch(self, row: Row, headline: Headline) -> bool:
        """Adds an epoch's row; returns whether it is the best so far."""
        self.rows.append(row)
        self.epoch, self.step = self.epoch + 1, 0
        value = headline.of(row)
        is_best = "value" not in self.best or headline.is_better(value, self.best["value"])
        if is_best:
            self.best = {"epoch": self.epoch, "value": value}
        return is_best


class State:
    """Saves and restores everything that a run needs to continue bit for bit.

    Args:
        facts: of the data, checked on resume: `num_classes`, `in_chans`, `train_images`, `inputs`.
    """

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        fabric: Fabric,
        networks: Networks,
        optimizer: Any,
        train_step: TrainStep,
        facts: dict[str, Any],
    ) -> None:
        self.config, self.folder, self.fabric = config, folder, fabric
        self.networks, self.optimizer, self.train_step, self.facts = networks, optimizer, train_step, facts
        self.progress = Progress()
        self.writer = BackgroundWriter()
        self.saved = time.perf_counter()

    def restore(self, state: dict[str, Any]) -> None:
        """Continues from a checkpoint.

        Raises:
            UserError: it belongs to another network or to other data.
        """
        checkpoint.restore(self.networks.inner, state["model"], self.folder.root)
        restore_optimizer(self.optimizer, state["optimizer"])
        if self.networks.ema is not None:
            self.networks.ema.module.load_state_dict(state["ema"])
        if self.networks.average is not None and self.networks.ema is None:
            self.networks.average.module.load_state_dict(state["average"])
        count = self.facts["train_images"]
        if state["train_images"] != count:
            raise UserError(
                f"cannot resume '{self.folder.root}': it has {state['train_images']} training images, "
                f"'{self.config.data.root}' now {count}"
            )
        if self.train_step.past is not None:
            self.train_step.past.predictions.copy_(state["past"])
        best = state["best"]
        if best["epoch"] and "value" not in best:  # a checkpoint from before 0.1.0
            best["value"] = best.pop("top1")
        self.progress = Progress(state["epoch"], state["step"], state["seconds"], state["rows"], best)
        self.train_step.skipped = state.get("skipped", 0)
        self.fabric._precision.load_state_dict(state.get("precision", {}))
        if self.fabric.is_global_zero:  # the sums in a checkpoint are those of all processes
            self.train_step.meter.sums.copy_(state["meter"])
            if "objective" in state:
                self.train_step.objective_mean.sums.copy_(state["objective"])

    def _as_dict(self) -> dict[str, Any]:
        progress, ema, average = self.progress, self.networks.ema, self.networks.average
        return {
            "config": as_dict(self.config),
            **self.facts,
            "names": list(self.networks.inner.names),
            "epoch": progress.epoch,
            "step": progress.step,
            "seconds": progress.seconds,
            "skipped": self.train_step.skipped,
            "rows": progress.rows,
            "best": progress.best,
            "meter": summed(self.fabric, self.train_step.meter.sums),
            "objective": summed(self.fabric, self.train_step.objective_mean.sums),
            "precision": self.fabric._precision.state_dict(),
            "model": self.networks.inner.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": None if ema is None else ema.module.state_dict(),
            "past": None if self.train_step.past is None else self.train_step.past.predictions,
            "average": None if average is None or average is ema else average.module.state_dict(),
        }

    def save(self, *afterwards: Callable[[], object]) -> None:
        """Copies the state; writes the copy, and then calls `afterwards`, in the background. All processes call it."""
        state = self._as_dict()  # sums over all processes
        self.saved = time.perf_counter()
        if not self.fabric.is_global_zero:
            return
        copy = checkpoint.snapshot(state)

        def write() -> None:
            checkpoint.save(self.folder.last, copy, keep=self.folder.previous)
            for each in afterwards:
                each()

        self.writer.submit(write)

    def is_due(self) -> bool:
        """Whether it is time for a checkpoint within the epoch."""
        minutes = self.config.runtime.checkpoint_minutes
        return minutes > 0 and time.perf_counter() - self.saved >= 60 * minutes

    def repair_files(self) -> None:
        """Writes the files that a crash right after the last checkpoint prevented."""
        progress = self.progress
        if progress.rows:
            self.folder.write_metrics(progress.rows)
            if progress.step == 0 and progress.best["epoch"] == progress.epoch:
                self.folder.keep_best()
            every = self.config.runtime.keep_every
            if progress.step == 0 and every and progress.epoch % every == 0:
                self.folder.keep_epoch(progress.epoch)

    def ship(self) -> None:
        """Writes the plain backbone as it is after the last epoch."""
        if self.fabric.is_global_zero:
            tensors = checkpoint.snapshot(self.networks.evaluated.shipped_state_dict())
            facts = self.facts
            name = self.config.model.name
            write_backbone(tensors, self.folder.weights, name, facts["num_classes"], facts["in_chans"], facts["inputs"])
