"""One training step: this process's share of a batch in; the weights moved, and the metrics added, out."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from lightning.fabric import Fabric
from lightning.fabric.wrappers import _FabricModule
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor
from torch.optim import Optimizer
from torchvision.transforms import v2

from sidebranch.engine import build
from sidebranch.engine.config import Config
from sidebranch.engine.features import build_triplet
from sidebranch.engine.meter import Finiteness, Meter
from sidebranch.engine.schedule import learning_rate, mimicry_scale
from sidebranch.engine.sharding import norms
from sidebranch.engine.traffic import Traffic
from sidebranch.model import BranchedModel
from sidebranch.sampling import Draw
from sidebranch.seeding import seed_of


@dataclass(frozen=True)
class Moment:
    """Where in a run a step is.

    Attributes:
        epoch: from 0.
        step: within the epoch, from 0.
        steps: of an epoch.
    """

    epoch: int
    step: int
    steps: int

    @property
    def done(self) -> int:
        """Steps before this one, since the start of training."""
        return self.epoch * self.steps + self.step


class TrainStep:
    """`step(images, labels, moment)` gives the loss, detached.

    Args:
        inner: the network; `network` and `optimizer` are it and its optimiser as Fabric set them up.
        ema: its moving average, or None.
        shape: of an image: channels, height, width.
        train_images: of an epoch, over all processes together.
        num_classes: K.

    Attributes:
        skipped: steps so far whose gradient was not finite (`optim.skip_nonfinite`).
        skipped_in: what was not finite in the last step, if it was left out; else empty.
    """

    def __init__(
        self,
        config: Config,
        fabric: Fabric,
        inner: BranchedModel,
        network: _FabricModule,
        optimizer: Optimizer,
        ema: ModelEmaV3 | None,
        *,
        shape: tuple[int, ...],
        train_images: int,
        num_classes: int,
    ) -> None:
        self.config, self.fabric, self.ema = config, fabric, ema
        self.inner, self.network, self.optimizer = inner, network, optimizer
        self.shape, self.train_images, self.num_classes = shape, train_images, num_classes
        self.objective = build.build_objective(config.method, config.objective)
        self.sampler = build.build_sampler(config.sampling, inner.names)
        self.roots = build.build_roots(config.sampling)
        self.meter = Meter(inner.names, fabric.device)
        self.finiteness = Finiteness(inner.names, fabric.device)
        self.traffic = Traffic()
        if not self.sampler.always_all or config.branches.start_epoch or config.branches.stop_epoch:
            self.traffic.attach(network._forward_module)
        self.mixing = _mixing(config, num_classes)
        self.triplet = build_triplet(config.objective)
        self.skipped = 0
        self.skipped_in = ""

    def __call__(self, images: Tensor, labels: Tensor, moment: Moment) -> Tensor:
        config = self.config
        # Dropout and its like draw from torch's generator: seeded here, they need no state in the checkpoint.
        torch.manual_seed(seed_of("step", config.seed, moment.epoch, moment.step, self.fabric.global_rank))
        lr = learning_rate(config.optim, moment.done, moment.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        draw, roots = self.draw(moment)
        if self.traffic.is_attached:
            out = [body for name, body in self.inner.branches.items() if name not in draw.live]
            self.traffic.unused = {each for body in out for each in body.parameters()}
        share = self._share(len(labels), moment)
        if blank := not len(labels):  # the others wait for this process's part of the gradient: it is nothing
            images, labels = images.new_zeros(1, *self.shape), labels.new_zeros(1)
        targets = labels
        if self.mixing is not None and len(labels) > 1:
            images, targets = self.mixing(images, labels)
        targets = build.soft_targets(targets, self.num_classes, config.objective.label_smoothing)
        before = self._buffers() if config.optim.skip_nonfinite else []
        pieces = [each.chunk(config.optim.accumulate) for each in (images, labels, targets)]
        total = torch.zeros((), device=self.fabric.device)
        several = self.fabric.world_size > 1
        for place, (seen, known, wanted) in enumerate(zip(*pieces, strict=True)):
            weight = share * len(known) / len(labels)
            is_last = place == len(pieces[0]) - 1
            with self.fabric.no_backward_sync(self.network, enabled=several and not is_last):
                total += self._backward(seen, known, wanted, draw, roots, moment, weight, counts=not blank)
        self._update(moment, before)
        return total

    def draw(self, moment: Moment) -> tuple[Draw, dict[str, str]]:
        """Who lives and mimics in a step, and where the branches emerge; the same in every process."""
        branches, names = self.config.branches, self.inner.names
        at = {"seed": self.config.seed, "epoch": moment.epoch, "step": moment.step}
        is_on = branches.start_epoch <= moment.epoch < (branches.stop_epoch or math.inf)
        draw = self.sampler(names, **at) if is_on else Draw(names[:1], names[:1])
        return draw, self.roots(self.inner.places, **at)

    def _share(self, count: int, moment: Moment) -> float:
        """What the mean over this process's images weighs in the mean over the processes, for it to be one over all."""
        if self.fabric.world_size == 1:
            return 1.0
        size = self.config.data.batch_size
        return count * self.fabric.world_size / min(size, self.train_images - moment.step * size)

    def _backward(
        self,
        images: Tensor,
        labels: Tensor,
        targets: Tensor,
        draw: Draw,
        roots: dict[str, str],
        moment: Moment,
        weight: float,
        counts: bool,
    ) -> Tensor:
        config, count = self.config, len(images)
        if count == 1 < config.data.batch_size:  # batch norm needs two images: of the same the mean loss is the same
            images, targets, labels = (torch.cat([each, each]) for each in (images, targets, labels))
        rows = max(2, math.ceil(config.branches.batch_fraction * len(images)))
        outputs = self.network(images, live=draw.live, roots=roots, rows=rows if rows < len(images) else None)
        scale = mimicry_scale(config.objective.mimicry_ramp, moment.done, moment.steps)
        loss = self.objective(outputs, targets, mimics=draw.mimics, mimicry_scale=scale)
        sought = loss.total if self.triplet is None else loss.total + self.triplet(outputs, labels)
        self.fabric.backward(sought if weight == 1 else sought * weight)
        total = sought.detach()
        if counts:
            scores = [logits.detach()[:count] for logits in outputs.logits]
            self.meter.add(outputs.names, scores, labels[:count], loss.supervision)
            self.finiteness.watch(moment.done, total, outputs.names, loss.supervision, loss.mimicry)
        return total * weight

    def _update(self, moment: Moment, before: list[Tensor]) -> None:
        """Moves the weights, unless the gradient is not finite and that may happen."""
        optim = self.config.optim
        self.skipped_in = ""
        if optim.skip_nonfinite and (where := self._not_finite()):
            self.skipped += 1
            if self.skipped <= optim.skip_nonfinite:
                terms = self.finiteness.first_bad_step()
                self.skipped_in = ", ".join(terms[1]) if terms and terms[1] else f"the gradient of '{where}'"
                self.finiteness = Finiteness(self.inner.names, self.fabric.device)
                for buffer, old in zip(self.inner.buffers(), before, strict=True):
                    buffer.copy_(old)
                self.optimizer.zero_grad(set_to_none=True)
                return
        if optim.clip:
            self.fabric.clip_gradients(self.network, self.optimizer, max_norm=optim.clip, error_if_nonfinite=False)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(self.inner, step=moment.done)

    def _buffers(self) -> list[Tensor]:
        return [buffer.clone() for buffer in self.inner.buffers()]

    def _not_finite(self) -> str:
        """The first parameter whose gradient is not finite, or nothing. Waits for the device."""
        named = [(name, each.grad) for name, each in self.inner.named_parameters() if each.grad is not None]
        finite = norms([gradient for _, gradient in named]).isfinite()
        return "" if finite.all() else named[int(finite.int().argmin())][0]


def _mixing(config: Config, num_classes: int) -> v2.Transform | None:
    """Images [N, C, H, W] and labels [N] to mixed images and probabilities [N, K]; None where nothing is mixed."""
    data = config.data
    kinds: list[v2.Transform] = [v2.MixUp(alpha=data.mixup, num_classes=num_classes)] if data.mixup else []
    kinds += [v2.CutMix(alpha=data.cutmix, num_classes=num_classes)] if data.cutmix else []
    return v2.RandomChoice(kinds) if kinds else None
