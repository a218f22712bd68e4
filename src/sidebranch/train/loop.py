"""The training loop, on Lightning Fabric.

In: a config and a folder. Out: the folder, filled: config, environment, metrics, checkpoints, and the plain backbone.
Everything random in a step is a function of (seed, epoch, step), so a run can be stopped after any step and resumed.
"""

from __future__ import annotations

import math
import time
from contextlib import closing
from dataclasses import asdict
from functools import partial
from typing import NoReturn

import torch
from lightning.fabric import Fabric
from torch import Tensor

from sidebranch.config import recipe
from sidebranch.config.compare import as_dict
from sidebranch.config.schema import Config
from sidebranch.config.validate import validate
from sidebranch.data.datasets import read_dataset
from sidebranch.device import kernels, resolve
from sidebranch.distributed.processes import (
    explained_losses,
    gathered,
    largest,
    launch,
    share_buffers,
    summed,
)
from sidebranch.errors import UserError
from sidebranch.evaluation.classification import answers_as_table, columns_of, evaluate
from sidebranch.evaluation.retrieval import NEAREST, as_table, notes_on, retrieval_columns, retrieve
from sidebranch.metrics.answers import Answers
from sidebranch.runs.console import Reporter, Silent
from sidebranch.runs.folder import RunFolder
from sidebranch.runs.headline import MEAN_AP, TOP1
from sidebranch.runs.resume import state_to_resume
from sidebranch.runs.summary import checkpoint_bytes, parameters, summary
from sidebranch.runs.trackers import Trackers
from sidebranch.runs.weight_files import with_hashes
from sidebranch.train import setup
from sidebranch.train.finiteness import first_not_finite
from sidebranch.train.optimizer import build_optimizer
from sidebranch.train.schedule import learning_rate
from sidebranch.train.signals import Interrupted, collected
from sidebranch.train.state import Row, State
from sidebranch.train.step import Moment, TrainStep

LONG_WAIT = 0.3  # share of an epoch
MANY_STEPS = 20  # in an epoch; with fewer, the start of the loader dominates
ABSURD = 10  # validation losses above so many times that of guessing are reported


def train(config: Config, folder: RunFolder, *, resume: bool = False, reporter: Reporter | None = None) -> list[Row]:
    """Trains, and returns the metrics, one row per epoch.

    Raises:
        UserError: the config, the data or the checkpoint cannot work, or the loss is not finite.
        Interrupted: a signal came; the state is saved.
        ProcessLost: one of several processes has ended; the last checkpoint is valid.
    """
    validate(config)
    config = with_hashes(config, resuming=folder.last.exists())
    with kernels(config.runtime.deterministic):  # before the first call of CUDA
        fabric = launch(config.runtime, may_skip_parameters=setup.may_skip_parameters(config))
        reporter = reporter if reporter is not None and fabric.is_global_zero else Silent()
        with explained_losses(fabric.world_size):
            with fabric.rank_zero_first():  # it repairs the folder
                state = state_to_resume(config, folder, reporter) if resume else None
            run = _Run(config, folder, fabric, reporter)
            if state is not None:
                run.state.restore(state)
            with collected() as signals, closing(run):
                return run.train(signals, resume)


class _Run:
    """The objects of a run, and the loop over its epochs and steps."""

    def __init__(self, config: Config, folder: RunFolder, fabric: Fabric, reporter: Reporter) -> None:
        self.config, self.folder, self.fabric, self.reporter = config, folder, fabric, reporter
        rank = setup.rank_of(fabric)
        with fabric.rank_zero_first(local=True):  # it downloads, or writes an index
            self.dataset = read_dataset(config.data, config.seed)
        self.headline = TOP1 if self.dataset.reid is None else MEAN_AP
        self.past = setup.build_past(config, self.dataset, fabric)
        numbered = self.dataset if self.past is None else self.dataset.numbered()
        self.train_loader = numbered.train_loader(fabric.device, rank)
        self.val_loader = self.dataset.val_loader(fabric.device, rank)
        steps = config.optim.epochs * len(self.train_loader)
        self.choices = resolve(config.runtime, fabric.device, steps, fabric.world_size)
        if config.model.pretrained and not config.model.weights and not folder.last.exists():
            reporter.say(f"loading timm's weights of {config.model.name}; downloaded, if they are not cached")
        self.networks = setup.build_networks(config, self.dataset, fabric, self.choices, resuming=folder.last.exists())
        inner, self.names = self.networks.inner, self.networks.inner.names
        network = fabric.setup_module(inner, _reapply_compile=False)
        may_fuse = setup.may_fuse(config, self.choices, fabric.device)
        optimizer = fabric.setup_optimizers(build_optimizer(config.optim, inner, fused=may_fuse))
        self.train_step = TrainStep(
            config,
            fabric,
            inner,
            network,
            optimizer,  # pyright: ignore[reportArgumentType] (one in, one out)
            self.networks.ema,
            self.networks.average,
            self.past,
            shape=self.dataset.shape,
            train_images=self.dataset.epoch_images,
            num_classes=len(self.dataset.classes),
            teachers=setup.teachers_on_device(config, self.dataset, fabric, self.choices),
        )
        self.train_step.draw(Moment(0, 0, 1))  # raises if the config names a branch that does not exist
        facts = {
            "num_classes": len(self.dataset.classes),
            "in_chans": self.dataset.shape[0],
            "train_images": len(self.dataset.train),
            "inputs": setup.described(config, self.dataset),
        }
        self.state = State(config, folder, fabric, self.networks, optimizer, self.train_step, facts)
        self.events: Trackers | None = None
        self.corrupt = 0  # unreadable images reported so far
        self.has_warned_of_waiting = self.has_warned_of_loss = False

    @property
    def done(self) -> int:
        """Steps taken since the start of training."""
        return self.state.progress.epoch * len(self.train_loader) + self.state.progress.step

    def train(self, signals: list[int], resume: bool) -> list[Row]:
        """Trains in the locked folder; a start that fails leaves no files."""
        if not self.fabric.is_global_zero:
            return self._train(signals)
        self.folder.claim(resume)
        with self.folder.occupied() as is_locked:
            if not is_locked:
                self.reporter.say("this file system has no locks: a second run in this folder would not be noticed")
            try:
                with explained_losses(self.fabric.world_size):
                    return self._train(signals)
            except UserError:
                self.state.writer.close()
                self.folder.discard()
                raise

    def _train(self, signals: list[int]) -> list[Row]:
        epochs, progress = self.config.optim.epochs, self.state.progress
        self._start()
        while progress.epoch < epochs:
            self._train_epoch(signals)
            stop, _ = self._agree(signals)
            if stop and progress.epoch < epochs:
                self._stop(stop)
        self.state.writer.finish()
        self.state.ship()
        if signals:
            raise Interrupted(signals[0], progress.epoch, progress.step)
        return progress.rows

    def _start(self) -> None:
        """Writes the small files, and the first lines of the console."""
        progress, inner = self.state.progress, self.networks.inner
        if self.fabric.is_global_zero:
            self.folder.write_config(recipe.dump(self.config))
            self.folder.write_classes(self.dataset.classes)
            remembered = 0 if self.past is None else self.past.predictions.nbytes
            self.folder.need_room(checkpoint_bytes(self.config, inner) + remembered)
            self.folder.write_environment(
                self.fabric.device,
                choices=asdict(self.choices),
                parameters=parameters(inner),
                objective=self.train_step.objective.described(self.names),
                image=list(self.dataset.shape),
                images={"train": len(self.dataset.train), "val": len(self.dataset.val)},
            )
            logger, plain = self.config.runtime.logger, as_dict(self.config)
            self.events = Trackers(self.folder.root, self.done, logger, plain, self.reporter)
            self.state.repair_files()
        people = [] if self.dataset.reid is None else notes_on(self.dataset.reid)
        device, count = self.fabric.device.type, self.fabric.world_size
        lines = [summary(self.config, inner, device, count, self.choices, self.folder.root), *people]
        lines += [*self.networks.notes, *setup.notes_at_start(self.config, self.dataset)]
        self.reporter.say("\n".join(lines))
        if progress.epoch == self.config.optim.epochs:
            self.reporter.say("already finished; for more epochs start a new run, with more --optim.epochs")
        elif self.done:
            self.reporter.say(f"resuming at epoch {progress.epoch + 1}, step {progress.step + 1}")
        columns = columns_of(self.names) if self.dataset.reid is None else retrieval_columns(self.names)
        self.reporter.start(columns, self.config.optim.epochs, len(self.train_loader), self.done, self.headline)
        for row in progress.rows:
            self.reporter.epoch(row)

    def _agree(self, signals: list[int]) -> tuple[int, bool]:
        """The signal to stop for, or 0, and whether to save now: if any process says so."""
        stop, save = largest(self.fabric, (signals[0] if signals else 0, self.state.is_due()))
        return stop, bool(save)

    def _stop(self, number: int) -> NoReturn:
        self.state.writer.finish()
        self.fabric.barrier()  # a process that ends breaks the connections of the others
        raise Interrupted(number, self.state.progress.epoch, self.state.progress.step)

    def close(self) -> None:
        self.reporter.close()
        self.state.writer.close()
        if self.events is not None:
            self.events.close()

    def _train_epoch(self, signals: list[int]) -> None:
        progress, every = self.state.progress, self.config.runtime.log_every
        setup.train_new_layers_only(self.networks.inner, progress.epoch < self.config.optim.new_layers_epochs)
        started, first_step = time.perf_counter(), progress.step
        is_alone = self.fabric.world_size == 1
        seconds_before = progress.seconds
        total = torch.zeros(())
        waited, batches = 0.0, self.train_loader.batches(progress.epoch, progress.step)
        while True:
            asked = time.perf_counter()
            if (batch := next(batches, None)) is None:
                break
            waited += time.perf_counter() - asked
            images, labels = batch
            if len(labels) or not is_alone:  # skip a batch whose images are all unreadable
                total = self.train_step(images, labels, Moment(progress.epoch, progress.step, len(self.train_loader)))
                self._report_skipped()
            progress.step += 1
            if progress.step % every == 0:
                self._log_step(total, (progress.step - first_step) / (time.perf_counter() - started))
            if is_alone or progress.step % every == 0:
                stop, is_due = self._agree(signals)
                if stop or is_due:
                    progress.seconds = seconds_before + time.perf_counter() - started
                    self._save()
                if stop:
                    self._stop(stop)
        self._check_loss()
        training = time.perf_counter() - started
        steps = progress.step - first_step
        self._warn_of_waiting(waited / max(training, 1e-9), steps)
        progress.seconds = seconds_before + training
        self._end_epoch(steps * self.config.data.batch_size / max(training, 1e-9))

    def _report_skipped(self) -> None:
        if self.train_step.skipped_in:
            progress, allowed = self.state.progress, self.config.optim.skip_nonfinite
            self.reporter.say(
                f"skipped epoch {progress.epoch + 1}, step {progress.step + 1}: not finite in "
                f"{self.train_step.skipped_in} ({self.train_step.skipped} of at most {allowed})"
            )

    def _log_step(self, total: Tensor, steps_per_second: float) -> None:
        """Reads the metrics back from the device."""
        self._check_loss()
        readings = self.train_step.meter.read()
        speed = steps_per_second * self.config.data.batch_size
        progress = self.state.progress
        self.reporter.step(progress.epoch, progress.step, self.done, speed, readings)
        self._write_events({"step/loss": float(total), "step/lr": self._learning_rate()})

    def _write_events(self, scalars: dict[str, float]) -> None:
        if self.events is not None:
            self.events.write(scalars, self.done)

    def _warn_of_waiting(self, share: float, steps: int) -> None:
        """Says once if much of an epoch's time is spent waiting for data."""
        if share > LONG_WAIT and steps >= MANY_STEPS and not self.has_warned_of_waiting:
            self.has_warned_of_waiting = True
            self.reporter.say(
                f"{share:.0%} of epoch {self.state.progress.epoch + 1} was spent waiting for images; more "
                f"--data.workers (at most one per core; now {self.config.data.workers}), smaller files, shards or "
                f"--data.backend dali may help"
            )

    def _learning_rate(self) -> float:
        """The rate of the last step."""
        return learning_rate(self.config.optim, self.done - 1, len(self.train_loader))

    def _check_loss(self) -> None:
        bad = self.train_step.finiteness.first_bad_step()
        if bad is not None:
            epoch, step = divmod(bad[0], len(self.train_loader))
            self._stop_not_finite(epoch, step + 1, bad[1])

    def _stop_not_finite(self, epoch: int, step: int, terms: list[str]) -> NoReturn:
        exists = self.folder.last.exists()
        saved = f"the last good checkpoint is '{self.folder.last}'" if exists else "none was saved yet"
        raise UserError(
            f"the loss is not finite at epoch {epoch + 1}, step {step}, first in: {', '.join(terms)}; {saved}; "
            f"start anew with a lower --optim.lr, with --optim.clip, or with --runtime.precision 32-true"
        )

    def _end_epoch(self, images_per_second: float) -> None:
        progress, inner = self.state.progress, self.networks.inner
        row = self._training_row(images_per_second)
        share_buffers(self.fabric, inner, *(each.module for each in self.train_step.averages))
        errors, agreement = self._evaluate()
        for name, values in errors.items():
            if not all(map(math.isfinite, values.values())):
                self._stop_not_finite(progress.epoch, len(self.train_loader), [f"validation of {name}"])
            row |= {f"val/{metric}/{name}": value for metric, value in values.items()}
        row |= {f"val/{name}": value for name, value in agreement.items()}
        is_best = progress.finish_epoch(row, self.headline)
        self.train_step.meter.sums.zero_()
        self.train_step.objective_mean.sums.zero_()
        rows = list(progress.rows)
        kept = [self.folder.keep_best] if is_best else []
        every, epoch = self.config.runtime.keep_every, progress.epoch
        kept += [lambda: self.folder.keep_epoch(epoch)] if every and epoch % every == 0 else []
        self._save(*kept, lambda: self.folder.write_metrics(rows))
        self.reporter.epoch(row)
        self._write_events({key: value for key, value in row.items() if "/" in key})
        self._warn_of_loss(row)
        corrupt = gathered(self.fabric, self.train_loader.corrupt | self.val_loader.corrupt)
        if len(corrupt) > self.corrupt:
            self.corrupt = len(corrupt)
            self.reporter.say(f"unreadable images left out so far: {self.corrupt}, such as '{min(corrupt)}'")

    def _training_row(self, images_per_second: float) -> Row:
        """The columns of an epoch's training, over all processes."""
        meter, mean = self.train_step.meter, self.train_step.objective_mean
        meter.sums, mean.sums = summed(self.fabric, meter.sums), summed(self.fabric, mean.sums)
        row: Row = {"epoch": self.state.progress.epoch + 1, "step": self.done}
        row["lr"] = self._learning_rate()
        row["seconds"] = round(self.state.progress.seconds, 3)
        row["images_per_second"] = round(images_per_second, 1)
        readings = meter.read()
        if not readings:
            raise UserError("no training image could be read, or every step was skipped")
        row["train/loss"] = mean.read()
        row["train/label_loss"] = sum(each["loss"] for each in readings.values())
        for name, each in readings.items():  # not of a branch that sampling left out all epoch
            row |= {f"train/loss/{name}": each["loss"], f"train/top1/{name}": each["top1"]}
        return row

    def _warn_of_loss(self, row: Row) -> None:
        """Says once if main's validation loss is far beyond that of guessing."""
        loss, guessing = row.get("val/loss/main", 0.0), math.log(max(2, len(self.dataset.classes)))
        if loss > ABSURD * guessing and not self.has_warned_of_loss:
            self.has_warned_of_loss = True
            self.reporter.say(
                f"main's validation loss is {loss:.1f} nats, where guessing gives {guessing:.1f}: the weights or the "
                f"running statistics of batch norm are unstable; try a lower --optim.lr or a larger --data.batch_size"
            )

    def _evaluate(self) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
        """Column to its metrics, and the agreement of pairs; the last epoch's details are written for the report."""
        people, is_last = self.dataset.reid, self.state.progress.epoch + 1 == self.config.optim.epochs
        reduce = partial(summed, self.fabric)
        common = (self.networks.evaluated, self.names, self.val_loader, self.fabric.device, reduce)
        with self.fabric.autocast():
            if people is None:
                count = len(self.dataset.classes)
                is_first = self.fabric.is_global_zero
                answers = Answers(columns_of(self.names), self.fabric.device, count, is_first) if is_last else None
                found = evaluate(*common, num_classes=count, answers=answers)
                if answers is not None and self.fabric.is_global_zero:
                    self.folder.write_answers(answers_as_table(answers, self.dataset))
                return found.errors, found.agreement
            found = retrieve(*common, people=people, config=self.config.eval, near=NEAREST if is_last else 0)
        if is_last and self.fabric.is_global_zero:
            self.folder.write_rankings(as_table(found, people, self.config.data.root, self.config.eval))
        return found.values, {}

    def _save(self, *afterwards) -> None:
        """Saves the state, unless the loss or a weight is not finite."""
        self._check_loss()
        # A gradient that was not finite shows in the weights at once, in the loss a step later.
        if bad := first_not_finite(self.networks.inner.named_parameters()):
            progress = self.state.progress
            self._stop_not_finite(progress.epoch, progress.step, [f"the weights '{bad}'"])
        self.state.save(*afterwards)
