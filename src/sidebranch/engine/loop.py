"""The training loop, on Lightning Fabric.

In: a config and a folder. Out: the folder, filled: config, environment, metrics, checkpoints, and the plain backbone.
Everything random in a step is a function of (seed, epoch, step), so that a run may be stopped after any step and
resumed.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from functools import partial
from typing import Any, NoReturn

import torch
from lightning.fabric import Fabric
from lightning.fabric.strategies.model_parallel import ModelParallelStrategy
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from sidebranch.data import Shard
from sidebranch.engine import build, checkpoint, recipe
from sidebranch.engine.check import check
from sidebranch.engine.config import Config, as_dict
from sidebranch.engine.evaluate import columns_of, evaluate
from sidebranch.engine.features import shipped
from sidebranch.engine.files import Behind
from sidebranch.engine.hardware import compile_network, hardware, kernels
from sidebranch.engine.inputs import read_inputs
from sidebranch.engine.measure import MEAN_AP, TOP1
from sidebranch.engine.memory import checkpoint_stages
from sidebranch.engine.processes import (
    among_processes,
    gathered,
    largest,
    launch,
    share_buffers,
    summed,
)
from sidebranch.engine.progress import Reporter, Silent
from sidebranch.engine.resume import state_to_resume
from sidebranch.engine.retrieval import NEAREST, as_table, notes_on, retrieval_columns, retrieve
from sidebranch.engine.run_folder import RunFolder
from sidebranch.engine.said import Events, checkpoint_bytes, parameters, summary
from sidebranch.engine.schedule import learning_rate
from sidebranch.engine.sharding import apart, groups, norms, spread
from sidebranch.engine.signals import Interrupted, collected
from sidebranch.engine.step import Moment, TrainStep
from sidebranch.engine.weights import write_backbone
from sidebranch.errors import UserError

Row = dict[str, float]
WAITING = 0.3  # share of an epoch
MANY_STEPS = 20  # of an epoch: in fewer, the loader's start shows


def train(config: Config, folder: RunFolder, *, resume: bool = False, reporter: Reporter | None = None) -> list[Row]:
    """Trains, and returns the metrics, one row an epoch.

    Raises:
        UserError: the config, the data or the checkpoint cannot work, or the loss is not finite.
        Interrupted: a signal came; the state is saved.
        ProcessLost: one of several processes has ended; the last checkpoint stands.
    """
    check(config)
    sampler = build.build_sampler(config.sampling, ("main", "a branch") if config.method != "baseline" else ("main",))
    phases = (config.optim.new_layers_epochs, config.branches.start_epoch, config.branches.stop_epoch)
    may_skip = not sampler.always_all or any(phases)
    fabric = launch(config.runtime, may_skip_parameters=may_skip)
    reporter = reporter if reporter is not None and fabric.is_global_zero else Silent()
    with among_processes(fabric.world_size):
        with fabric.rank_zero_first():  # it mends the folder
            state = state_to_resume(config, folder, reporter) if resume else None
        run = _Run(config, folder, fabric, reporter)
        if state is not None:
            run.restore(state)
        with collected() as signals, kernels(config.runtime.deterministic), closing(run):
            return run.train(signals, resume)


class _Run:
    """The objects of a run and where in it they stand."""

    def __init__(self, config: Config, folder: RunFolder, fabric: Fabric, reporter: Reporter) -> None:
        self.config, self.folder, self.fabric, self.reporter = config, folder, fabric, reporter
        self.device = fabric.device
        shard = Shard(fabric.global_rank, fabric.world_size, getattr(fabric.strategy, "num_processes", 1))
        with fabric.rank_zero_first(local=True):  # it downloads, or writes an index
            inputs = read_inputs(config.data, config.seed)
        self.classes, self.reid = inputs.classes, inputs.reid
        self.measure = TOP1 if inputs.reid is None else MEAN_AP
        self.num_classes, self.in_chans = len(inputs.classes), inputs.shape[0]
        self.train_images = len(inputs.train)
        adapted = {"small_input": config.model.small_input, "last_stride": config.model.last_stride}
        self.described = inputs.described | {name: value for name, value in adapted.items() if value}
        self.train_loader = inputs.train_loader(self.device, shard)
        self.val_loader = inputs.val_loader(self.device, shard)
        resuming = folder.last.exists()  # the pretrained weights are in the checkpoint then
        with warnings.catch_warnings(record=True) as self.notes:  # what automatic branches could not be made
            warnings.simplefilter("always", UserWarning)
            self.inner = build.build_network(
                build.untrained(config) if resuming else config, self.num_classes, inputs.shape
            )
        self.names = self.inner.names
        self.epoch = 0
        self.step = 0  # within the epoch
        self.choices = hardware(config.runtime, self.device, config.optim.epochs * len(self.train_loader))
        if self.choices.channels_last:
            self.inner.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        if config.runtime.sync_batchnorm and fabric.world_size > 1:
            if self.device.type != "cuda":
                raise UserError(f"runtime.sync_batchnorm needs CUDA devices, this is {self.device.type}")
            self.inner = build.with_synced_batchnorm(self.inner)
        self.inner.to(self.device)
        for shape in dict.fromkeys((inputs.shape, inputs.eval_shape)):
            build.try_out(self.inner, shape, self.device, config.model.name)
        decay = config.optim.ema
        self.ema = ModelEmaV3(self.inner, decay=decay, use_warmup=True) if decay else None
        if config.runtime.checkpoint_activations:
            checkpoint_stages(self.inner)
        for each in [self.inner] if self.ema is None else [self.inner, self.ema.module]:
            compile_network(each, self.choices.compile)
        self.blank = None  # for evaluation where a process has no image
        if isinstance(fabric.strategy, ModelParallelStrategy):
            spread(groups(self.inner, inputs.shape, self.device), self.inner, fabric.strategy.device_mesh)
            self.blank = torch.zeros(1, *inputs.eval_shape, device=self.device)
        network = fabric.setup_module(self.inner, _reapply_compile=False)
        optimizer = build.build_optimizer(config.optim, self.inner, fused=self._may_fuse())
        self.optimizer: Any = fabric.setup_optimizers(optimizer)
        self.train_step = TrainStep(
            config,
            fabric,
            self.inner,
            network,
            self.optimizer,
            self.ema,
            shape=inputs.shape,
            train_images=inputs.epoch_images,
            num_classes=self.num_classes,
        )
        self.train_step.draw(Moment(0, 0, 1))  # names a branch that is not there, if one is asked for
        self.seconds = 0.0
        self.rows: list[Row] = []
        self.best: dict[str, float] = {"epoch": 0}
        self.events: Events | None = None
        self.corrupt = 0  # files left out
        self.warned = False
        self.saving = Behind()
        self.saved = time.perf_counter()

    def _may_fuse(self) -> bool:
        """Whether one kernel may update all weights: where kernels are launched, and no scaler unscales to clip."""
        scales_and_clips = self.choices.precision == "16-mixed" and self.config.optim.clip > 0
        return self.device.type == "cuda" and not scales_and_clips

    @property
    def done(self) -> int:
        """Steps taken since the start of training."""
        return self.epoch * len(self.train_loader) + self.step

    def restore(self, state: dict[str, Any]) -> None:
        checkpoint.restore(self.inner, state["model"], self.folder.root)
        checkpoint.restore_optimizer(self.optimizer, state["optimizer"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])
        if state["train_images"] != self.train_images:
            raise UserError(
                f"cannot resume '{self.folder.root}': it has {state['train_images']} training images, "
                f"'{self.config.data.root}' now {self.train_images}"
            )
        self.epoch, self.step, self.seconds = state["epoch"], state["step"], state["seconds"]
        self.rows, self.best = state["rows"], state["best"]
        if self.best["epoch"] and "value" not in self.best:  # a checkpoint of version 0.1.0 or before
            self.best["value"] = self.best.pop("top1")
        self.train_step.skipped = state.get("skipped", 0)
        self.fabric._precision.load_state_dict(state.get("precision", {}))
        if self.fabric.is_global_zero:  # it has everyone's
            self.train_step.meter.sums.copy_(state["meter"])

    def state(self) -> dict[str, Any]:
        return {
            "config": as_dict(self.config),
            "num_classes": self.num_classes,
            "in_chans": self.in_chans,
            "names": list(self.names),
            "train_images": self.train_images,
            "inputs": self.described,
            "epoch": self.epoch,
            "step": self.step,
            "seconds": self.seconds,
            "skipped": self.train_step.skipped,
            "rows": self.rows,
            "best": self.best,
            "meter": summed(self.fabric, self.train_step.meter.sums),
            "precision": self.fabric._precision.state_dict(),
            "model": self.inner.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": None if self.ema is None else self.ema.module.state_dict(),
        }

    def train(self, signals: list[int], resume: bool) -> list[Row]:
        if self.fabric.is_global_zero:
            self.folder.claim(resume)
            with self.folder.occupied() as is_sure:
                if not is_sure:
                    self.reporter.say("this file system has no locks: a second run in the folder would go unnoticed")
                try:
                    with among_processes(self.fabric.world_size):
                        return self._train(signals)
                except UserError:
                    self.saving.close()
                    self.folder.discard()
                    raise
        return self._train(signals)

    def _train(self, signals: list[int]) -> list[Row]:
        epochs = self.config.optim.epochs
        if self.fabric.is_global_zero:
            self.folder.write_config(recipe.dump(self.config))
            self.folder.write_classes(self.classes)
            self.folder.need_room(checkpoint_bytes(self.config.optim, self.inner))
            self.folder.write_environment(self.device, choices=asdict(self.choices), parameters=parameters(self.inner))
            self.events = Events(self.folder.root, self.done, self.reporter)
            self._mend()
        people = [] if self.reid is None else notes_on(self.reid)
        self.reporter.say(
            "\n".join(
                [
                    summary(self.config, self.inner, self.fabric, self.choices, self.folder),
                    *people,
                    *(str(each.message) for each in self.notes),
                ]
            )
        )
        if self.epoch == epochs:
            self.reporter.say("finished already; a longer run is a new one, with more --optim.epochs")
        elif self.done:
            self.reporter.say(f"going on at epoch {self.epoch + 1}, step {self.step + 1}")
        columns = columns_of(self.names) if self.reid is None else retrieval_columns(self.names)
        self.reporter.start(columns, epochs, len(self.train_loader), self.done, self.measure)
        for row in self.rows:
            self.reporter.epoch(row)
        while self.epoch < epochs:
            self._train_epoch(signals)
            stop, _ = self._agreed(signals)
            if stop and self.epoch < epochs:
                self._stop(stop)
        self.saving.finish()
        self._ship()
        if signals:
            raise Interrupted(signals[0], self.epoch, self.step)
        return self.rows

    def _agreed(self, signals: list[int]) -> tuple[int, bool]:
        """The signal to stop for, or 0, and whether it is time to save: what any of the processes wishes."""
        minutes = self.config.runtime.checkpoint_minutes
        is_time = minutes > 0 and time.perf_counter() - self.saved >= 60 * minutes
        stop, save = largest(self.fabric, (signals[0] if signals else 0, is_time))
        return stop, bool(save)

    def _stop(self, number: int) -> NoReturn:
        self.saving.finish()
        self.fabric.barrier()  # whoever ends first may take the others with it
        raise Interrupted(number, self.epoch, self.step)

    def _mend(self) -> None:
        """Writes what a crash right after the last checkpoint kept from being written."""
        if self.rows:
            self.folder.write_metrics(self.rows)
            if self.step == 0 and self.best["epoch"] == self.epoch:
                self.folder.keep_best()

    def close(self) -> None:
        self.reporter.close()
        self.saving.close()
        if self.events is not None:
            self.events.close()

    def _write_events(self, scalars: dict[str, float]) -> None:
        if self.events is not None:
            self.events.write(scalars, self.done)

    def _train_epoch(self, signals: list[int]) -> None:
        build.train_new_layers_only(self.inner, self.epoch < self.config.optim.new_layers_epochs)
        started, first_step = time.perf_counter(), self.step
        alone = self.fabric.world_size == 1
        seconds_before = self.seconds
        total = torch.zeros(())
        waited, batches = 0.0, self.train_loader.batches(self.epoch, self.step)
        while True:
            asked = time.perf_counter()
            if (batch := next(batches, None)) is None:
                break
            waited += time.perf_counter() - asked
            images, labels = batch
            moment = Moment(self.epoch, self.step, len(self.train_loader))
            if len(labels) or not alone:  # a batch of which nothing could be read moves nothing
                total = self.train_step(images, labels, moment)
                self._say_if_left_out()
            self.step += 1
            if self.step % self.config.runtime.log_every == 0:
                self._log_step(total, (self.step - first_step) / (time.perf_counter() - started))
            if alone or self.step % self.config.runtime.log_every == 0:
                stop, is_time = self._agreed(signals)
                if stop or is_time:
                    self.seconds = seconds_before + time.perf_counter() - started
                    self._save()
                if stop:
                    self._stop(stop)
        self._check_finite()
        training = time.perf_counter() - started
        self._watch(waited / max(training, 1e-9), self.step - first_step)
        self.seconds = seconds_before + training
        images_per_second = (self.step - first_step) * self.config.data.batch_size / max(training, 1e-9)
        self._end_epoch(images_per_second)

    def _say_if_left_out(self) -> None:
        if self.train_step.skipped_in:
            self.reporter.say(
                f"left out epoch {self.epoch + 1}, step {self.step + 1}: not finite in {self.train_step.skipped_in} "
                f"({self.train_step.skipped} of up to {self.config.optim.skip_nonfinite})"
            )

    def _log_step(self, total: Tensor, steps_per_second: float) -> None:
        """Reads the metrics back from the device."""
        self._check_finite()
        readings = self.train_step.meter.read()
        speed = steps_per_second * self.config.data.batch_size
        self.reporter.step(self.epoch, self.step, self.done, speed, readings)
        self._write_events({"step/loss": float(total), "step/lr": self._learning_rate()})

    def _watch(self, waiting: float, steps: int) -> None:
        """Warns, once, where the time of an epoch goes to waiting for data."""
        if waiting > WAITING and steps >= MANY_STEPS and not self.warned:
            self.warned = True
            self.reporter.say(
                f"{waiting:.0%} of epoch {self.epoch + 1} went to waiting for images; more --data.workers (at most "
                f"one a core; now {self.config.data.workers}), smaller files, shards or --data.backend dali may help"
            )

    def _learning_rate(self) -> float:
        """Of the last step."""
        return learning_rate(self.config.optim, self.done - 1, len(self.train_loader))

    def _check_finite(self) -> None:
        bad = self.train_step.finiteness.first_bad_step()
        if bad is not None:
            epoch, step = divmod(bad[0], len(self.train_loader))
            self._stop_not_finite(epoch, step + 1, bad[1])

    def _stop_not_finite(self, epoch: int, step: int, terms: list[str]) -> NoReturn:
        kept = (
            f"the last good checkpoint is '{self.folder.last}'" if self.folder.last.exists() else "none was saved yet"
        )
        raise UserError(
            f"the loss is not finite at epoch {epoch + 1}, step {step}, first in: {', '.join(terms)}; {kept}; "
            f"start anew with a lower --optim.lr, with --optim.clip, or with --runtime.precision 32-true"
        )

    def _end_epoch(self, images_per_second: float) -> None:
        meter = self.train_step.meter
        meter.sums = summed(self.fabric, meter.sums)
        row: Row = {"epoch": self.epoch + 1, "step": self.done}
        row["lr"] = self._learning_rate()
        row["seconds"] = round(self.seconds, 3)
        row["images_per_second"] = round(images_per_second, 1)
        readings = meter.read()
        if not readings:
            raise UserError("no training image could be read")
        row["train/loss"] = sum(each["loss"] for each in readings.values())
        for name, each in readings.items():  # a branch that sampling left out all epoch has none
            row |= {f"train/loss/{name}": each["loss"], f"train/top1/{name}": each["top1"]}
        share_buffers(self.fabric, self.inner, *([] if self.ema is None else [self.ema.module]))
        evaluated = self.ema.module if self.ema is not None else self.inner
        found = self._evaluate(evaluated)
        apart(self.inner)
        for name, values in found.items():
            if not all(map(math.isfinite, values.values())):
                self._stop_not_finite(self.epoch, len(self.train_loader), [f"validation of {name}"])
            row |= {f"val/{what}/{name}": value for what, value in values.items()}
        self.rows.append(row)
        self.epoch, self.step = self.epoch + 1, 0
        value = self.measure.of(row)
        is_best = "value" not in self.best or self.measure.is_better(value, self.best["value"])
        if is_best:
            self.best = {"epoch": self.epoch, "value": value}
        meter.sums.zero_()
        rows = list(self.rows)
        keep_best = [self.folder.keep_best] if is_best else []
        self._save(*keep_best, lambda: self.folder.write_metrics(rows))
        self.reporter.epoch(row)
        self._write_events({key: value for key, value in row.items() if "/" in key})
        corrupt = gathered(self.fabric, self.train_loader.corrupt | self.val_loader.corrupt)
        if len(corrupt) > self.corrupt:
            self.corrupt = len(corrupt)
            self.reporter.say(f"left out so far: {self.corrupt} files that are no images, such as '{min(corrupt)}'")

    def _evaluate(self, network: nn.Module) -> dict[str, dict[str, float]]:
        """Column to its measures; the last epoch's rankings are kept for the page."""
        common = (network, self.names, self.val_loader, self.device, partial(summed, self.fabric))
        with self.fabric.autocast():
            if self.reid is None:
                return evaluate(*common, self.blank)
            is_last = self.epoch + 1 == self.config.optim.epochs
            near = NEAREST if is_last else 0
            found = retrieve(*common, people=self.reid, config=self.config.eval, near=near)
        if is_last and self.fabric.is_global_zero:
            self.folder.write_rankings(as_table(found, self.reid, self.config.data.root, self.config.eval))
        return found.values

    def _save(self, *afterwards: Callable[[], object]) -> None:
        """Copies the state, and writes the copy while training goes on, and then what follows from it."""
        self._check_finite()
        self._check_weights()
        state = checkpoint.snapshot(self.state())  # of all processes together

        def write() -> None:
            checkpoint.save(self.folder.last, state, keep=self.folder.previous)
            for each in afterwards:
                each()

        if self.fabric.is_global_zero:
            self.saving.submit(write)
        self.saved = time.perf_counter()

    def _check_weights(self) -> None:
        """A gradient that was not finite shows in them at once, in the loss a step later."""
        names, weights = zip(*self.inner.named_parameters(), strict=True)
        finite = norms(weights).isfinite()
        if not finite.all():
            self._stop_not_finite(self.epoch, self.step, [f"the weights '{names[finite.int().argmin()]}'"])

    def _ship(self) -> None:
        """Writes the plain backbone, as the last epoch left it."""
        source = self.inner if self.ema is None else self.ema.module
        tensors = checkpoint.snapshot(shipped(source))  # of all processes together
        if self.fabric.is_global_zero:
            name = self.config.model.name
            write_backbone(tensors, self.folder.weights, name, self.num_classes, self.in_chans, self.described)
