"""A training step as `sidebranch train` makes it, with its choices for this hardware."""

from __future__ import annotations

import timm
import torch
from torch import Tensor

import sidebranch as sb
from sidebranch.config.schema import RuntimeConfig
from sidebranch.core.sampling import Sampler
from sidebranch.device import WORTH_COMPILING, compile_network, resolve
from sidebranch.metrics.meter import Meter
from sidebranch.train.finiteness import Finiteness


class OurStep:
    """As `sidebranch train` does, with the choices that it makes for this hardware."""

    def __init__(
        self,
        net: sb.BranchedModel,
        objective: sb.Objective,
        device: torch.device,
        share: float = 1.0,
        sampler: Sampler = sb.Fixed(),
    ) -> None:
        choices = resolve(RuntimeConfig(), device, steps=WORTH_COMPILING)
        self.layout = torch.channels_last if choices.channels_last else torch.contiguous_format
        self.net = net.to(device).to(memory_format=self.layout)  # pyright: ignore[reportCallIssue]
        compile_network(self.net, choices.compile)
        self.bf16 = choices.precision == "bf16-mixed"
        fused = device.type == "cuda" and sampler.computes_all  # as `may_fuse` has it
        self.optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=1e-4, fused=fused)
        self.objective, self.sampler, self.share, self.done = objective, sampler, share, 0
        self.meter = Meter(net.names, device, 100)
        self.finiteness = Finiteness(net.names, device, objective.teachers)

    def __call__(self, images: Tensor, labels: Tensor) -> None:
        self.done += 1
        draw = self.sampler(self.net.names, seed=0, epoch=0, step=self.done)
        rows = None if self.share == 1 else round(self.share * len(images))
        images = images.contiguous(memory_format=self.layout)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16):
            outputs = self.net(images, live=draw.live, rows=rows)
        loss = self.objective(outputs, labels, mimics=draw.mimics)
        loss.total.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.meter.add(outputs.names, [each.detach() for each in outputs.logits], labels, loss.supervision)
        self.finiteness.watch(0, loss.total.detach(), outputs.names, loss.supervision, loss.mimicry)


def network(name: str, method: str, classes: int = 100) -> sb.BranchedModel:
    torch.manual_seed(0)
    backbone = timm.create_model(name, num_classes=classes)
    return sb.attach(backbone, [] if method == "baseline" else None)


def grown(keep: float) -> sb.BranchedModel:
    torch.manual_seed(0)
    backbone = timm.create_model("cifar_resnet32", num_classes=100)
    return sb.attach(backbone, "auto", growth=sb.Growth(keep=keep, width=1.0))
