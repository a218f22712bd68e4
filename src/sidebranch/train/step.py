"""One training step. In: this process's share of a batch. Out: updated weights and metrics."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from lightning.fabric import Fabric
from lightning.fabric.wrappers import _FabricModule
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torch.optim import Optimizer

from sidebranch.config.schema import Config
from sidebranch.core.model import BranchedModel, Outputs
from sidebranch.core.objective import Taught
from sidebranch.core.sampling import Draw
from sidebranch.device import FullBatches
from sidebranch.distributed.unused_gradients import UnusedGradients
from sidebranch.metrics.meter import Mean, Meter
from sidebranch.seeding import seed_of
from sidebranch.train import setup
from sidebranch.train.average import AVERAGE, AverageTeacher
from sidebranch.train.finiteness import Finiteness, first_not_finite
from sidebranch.train.past import PastTeacher
from sidebranch.train.schedule import learning_rate, mimicry_scale, temperature
from sidebranch.train.targets import mixing, soft_targets


@dataclass(frozen=True)
class Moment:
    """The position of a step in a run.

    Attributes:
        epoch: from 0.
        step: within the epoch, from 0.
        steps: per epoch.
    """

    epoch: int
    step: int
    steps: int

    @property
    def done(self) -> int:
        """Steps before this one, since the start of training."""
        return self.epoch * self.steps + self.step


@dataclass(frozen=True)
class Piece:
    """One piece of a batch: images [n, C, H, W], labels [n], targets [n] or [n, K], and the images' numbers [n].

    Numbers are the labels once more where nobody asks for them.
    """

    images: Tensor
    labels: Tensor
    targets: Tensor
    numbers: Tensor


class TrainStep:
    """`step(images, labels, moment)` returns the objective, detached.

    With `past`, labels are the images' numbers in the training split.

    Args:
        config: of the run.
        fabric: its device and processes.
        inner: the network; `network` and `optimizer` are set up by Fabric.
        network: `inner`, wrapped.
        optimizer: of its parameters.
        ema: moving average of the weights, or None.
        average: the moving average that teaches, or None; `ema`, if there is one.
        past: what teaches of the epoch before, or None.
        shape: of an image: channels, height, width.
        train_images: per epoch, over all processes.
        num_classes: K.
        teachers: of method kd, on the device.

    Attributes:
        meter: loss and hits of every classifier.
        objective_mean: of the whole objective: labels, mimicry and triplets, with their weights.
        skipped: number of steps skipped so far because of a gradient that was not finite (`optim.skip_nonfinite`).
        skipped_in: what was not finite in the last step, if it was skipped; else empty.
    """

    def __init__(
        self,
        config: Config,
        fabric: Fabric,
        inner: BranchedModel,
        network: _FabricModule,
        optimizer: Optimizer,
        ema: ModelEmaV3 | None,
        average: ModelEmaV3 | None,
        past: PastTeacher | None = None,
        *,
        shape: tuple[int, ...],
        train_images: int,
        num_classes: int,
        teachers: Sequence[nn.Module] = (),
    ) -> None:
        self.config, self.fabric = config, fabric
        self.inner, self.network, self.optimizer = inner, network, optimizer
        self.shape, self.train_images, self.num_classes = shape, train_images, num_classes
        self.objective = setup.build_objective(config, teachers)
        self.sampler = setup.build_sampler(config.sampling, inner.names)
        self.roots = setup.build_roots(config.sampling)
        self.triplet = setup.build_triplet(config.objective, fabric.world_size)
        self.mixing = mixing(config.data, num_classes)
        self.meter = Meter(inner.names, fabric.device, num_classes)
        self.objective_mean = Mean(fabric.device)
        self.averages = tuple(dict.fromkeys(each for each in (ema, average) if each is not None))
        named = config.teachers_of(AVERAGE)
        self.average_teacher = None if average is None else AverageTeacher(named, average, inner)
        self.past = past
        self._outside = (*self.objective.teachers, *self.objective.outside)
        self.finiteness = Finiteness(inner.names, fabric.device, self._outside)
        self.unused_gradients = UnusedGradients()
        if setup.may_skip_branches(config):
            self.unused_gradients.attach(network._forward_module)
        size = min(config.data.batch_size, train_images) // fabric.world_size
        self.full_batches = FullBatches(max(1, size // config.optim.accumulate))
        self.skipped = 0
        self.skipped_in = ""

    def __call__(self, images: Tensor, labels: Tensor, moment: Moment) -> Tensor:
        config = self.config
        # Dropout and the like draw from torch's generator: seeded here, it needs no place in the checkpoint.
        torch.manual_seed(seed_of("step", config.seed, moment.epoch, moment.step, self.fabric.global_rank))
        lr = learning_rate(config.optim, moment.done, moment.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        draw, roots = self.draw(moment)
        self._name_unused(draw)
        undo = self._snapshot() if config.optim.skip_nonfinite else None
        share = self._share(len(labels), moment)
        is_blank = not len(labels)  # the other processes wait for this one's gradient, which is zero
        if is_blank:
            images, labels = images.new_zeros(1, *self.shape), labels.new_zeros(1)
        numbers = labels
        if self.past is not None:
            labels = self.past.labels[numbers]
        targets = labels
        if self.mixing is not None and len(labels) > 1:
            images, targets = self.mixing(images, labels)
        targets = soft_targets(targets, self.num_classes, config.objective.label_smoothing)
        chunks = [each.chunk(config.optim.accumulate) for each in (images, labels, targets, numbers)]
        pieces = [Piece(*each) for each in zip(*chunks, strict=True)]
        total = torch.zeros((), device=self.fabric.device)
        for piece in pieces:
            is_last = piece is pieces[-1]
            weight = share * len(piece.labels) / len(labels)
            with self.fabric.no_backward_sync(self.network, enabled=self.fabric.world_size > 1 and not is_last):
                total += self._backward(piece, draw, roots, moment, weight, counts=not is_blank)
        self._update(moment, undo)
        return total

    def draw(self, moment: Moment) -> tuple[Draw, dict[str, str]]:
        """The live and mimicking classifiers of a step, and the branches' roots; the same in every process."""
        branches, names = self.config.branches, self.inner.names
        at = {"seed": self.config.seed, "epoch": moment.epoch, "step": moment.step}
        is_on = branches.start_epoch <= moment.epoch < (branches.stop_epoch or math.inf)
        draw = self.sampler(names, **at) if is_on else Draw(names[:1], names[:1])
        return draw, self.roots(self.inner.places, **at)

    def _name_unused(self, draw: Draw) -> None:
        if self.unused_gradients.is_attached:
            out = [body for name, body in self.inner.branches.items() if name not in draw.live]
            self.unused_gradients.unused = {each for body in out for each in body.parameters()}

    def _share(self, count: int, moment: Moment) -> float:
        """The weight of this process's mean, so that the mean over the processes is the mean over all images."""
        if self.fabric.world_size == 1:
            return 1.0
        size = self.config.data.batch_size
        return count * self.fabric.world_size / min(size, self.train_images - moment.step * size)

    def _backward(
        self,
        piece: Piece,
        draw: Draw,
        roots: dict[str, str],
        moment: Moment,
        weight: float,
        counts: bool,
    ) -> Tensor:
        config, count = self.config, len(piece.images)
        images, labels, targets, numbers = piece.images, piece.labels, piece.targets, piece.numbers
        if count == 1 < config.data.batch_size:  # batch norm needs two images; two equal ones have the same mean loss
            images, labels, targets, numbers = (torch.cat([each] * 2) for each in (images, labels, targets, numbers))
        rows = max(2, math.ceil(config.branches.batch_fraction * len(images)))
        with self.full_batches(len(images)):
            outputs = self.network(images, live=draw.live, roots=roots, rows=rows if rows < len(images) else None)
            taught: dict[str, Taught] = {}
            if self.average_teacher is not None:
                with self.fabric.autocast():
                    taught |= self.average_teacher(images, draw.live, roots)
            if self.past is not None:
                taught |= self.past.of(numbers, moment.epoch, outputs)
                self.past.remember(numbers, outputs)
        options = config.objective
        scale = mimicry_scale(options.mimicry_ramp, moment.done, moment.steps)
        total = config.optim.epochs * moment.steps
        soft = temperature(options.temperature, options.temperature_end, moment.done, total)
        with self.fabric.autocast():  # for the outside teacher; the loss itself is in float32
            loss = self.objective(
                outputs,
                targets,
                mimics=draw.mimics,
                images=images,
                mimicry_scale=scale,
                temperature=soft,
                taught=taught,
            )
        weighted = loss.total if weight == 1 else loss.total * weight
        objective = loss.total.detach()
        if self.triplet is not None:
            triplets = self._triplets(outputs, labels, count if counts else 0)
            # Every process has the loss of all triplets and the gradient of its own features: DDP's mean is their sum.
            weighted = weighted + triplets * self.fabric.world_size
            objective = objective + triplets.detach()
        self.fabric.backward(weighted)
        if counts:
            scores = [logits.detach()[:count] for logits in outputs.logits]
            self.meter.add(outputs.names, scores, labels[:count], loss.supervision)
            self.objective_mean.add(objective, count)
            self.finiteness.watch(moment.done, objective, outputs.names, loss.supervision, loss.mimicry)
        return objective * weight

    def _triplets(self, outputs: Outputs, labels: Tensor, count: int) -> Tensor:
        """The weighted triplet loss; of several processes, over the first `count` rows of each."""
        assert self.triplet is not None
        if self.fabric.world_size > 1:
            features = tuple(each[:count] for each in outputs.features)
            outputs = Outputs(outputs.names, outputs.logits, outputs.network, features)
            labels = labels[:count]
        return self.config.objective.triplet * self.triplet(outputs, labels)

    def _update(self, moment: Moment, undo: Callable[[], None] | None) -> None:
        """Updates the weights, unless the gradient is not finite and the step may be skipped."""
        optim = self.config.optim
        self.skipped_in = ""
        if undo is not None and (where := self._not_finite()):
            self.skipped += 1
            if self.skipped <= optim.skip_nonfinite:
                terms = self.finiteness.first_bad_step()
                self.skipped_in = ", ".join(terms[1]) if terms and terms[1] else f"the gradient of '{where}'"
                undo()
                self.optimizer.zero_grad(set_to_none=True)
                return
        if optim.clip:
            self.fabric.clip_gradients(self.network, self.optimizer, max_norm=optim.clip, error_if_nonfinite=False)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        for each in self.averages:
            each.update(self.inner, step=moment.done)

    def _snapshot(self) -> Callable[[], None]:
        """A function that takes back what a step does before its update: to buffers, metrics and finiteness."""
        kept = [*self.inner.buffers(), self.meter.sums, self.objective_mean.sums]
        before = [each.clone() for each in kept]

        def undo() -> None:
            for each, old in zip(kept, before, strict=True):
                each.copy_(old)
            self.finiteness = Finiteness(self.inner.names, self.fabric.device, self._outside)

        return undo

    def _not_finite(self) -> str:
        """The first parameter whose gradient is not finite, or "". Waits for the device."""
        named = ((name, each.grad) for name, each in self.inner.named_parameters() if each.grad is not None)
        return first_not_finite(named)
