"""Writes docs/networks.md, the papers' networks with their branches; with --check, says whether it is in step.

python benchmarks/networks.py [--check]
"""

from __future__ import annotations

import sys
from pathlib import Path

import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import sidebranch as sb
from sidebranch.branches.trace import ShapesOfNorms

PAGE = Path(__file__).parent.parent / "docs" / "networks.md"
# Name to number of classes and input size.
NETWORKS = {
    **dict.fromkeys(
        (
            "cifar_resnet8",
            "cifar_resnet14",
            "cifar_resnet20",
            "cifar_resnet32",
            "cifar_resnet44",
            "cifar_resnet56",
            "cifar_resnet110",
            "cifar_resnet1202",
            "wrn_16_2",
            "wrn_16_8",
            "wrn_28_4",
            "wrn_28_10",
            "densenet_40_12",
            "densenet_100_12",
            "densenet_bc_100_12",
            "cifar_mobilenet",
        ),
        (100, (3, 32, 32)),
    ),
    "reid_mobilenet": (751, (3, 256, 128)),
    **dict.fromkeys(("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"), (1000, (3, 224, 224))),
}
HEAD = """# The papers' networks and their side branches

Written by `python benchmarks/networks.py`. `sb.attach(timm.create_model(NAME, num_classes=K))` gives these branches. A
fork is the module whose output a branch takes; a stage is blocks x channels of their last convolution. Parameters and
multiply-adds (MACs) are of one image at the given size. The last column is the MACs with b1 and b2 over those without:
what the branches cost in arithmetic while training. What ships is main alone.

Unpublished, and made by the three rules: the branches of ResNet-8, 14, 20, 44 and 56 (as ResNet-32's), and of the CIFAR
MobileNet (as the re-ID MobileNet's). ResNet-18 has a third published branch: `sb.attach(model, count=3)`.

| network | K, input | branch: fork, stages | parameters: main / b1 / b2 | MACs: main / b1 / b2 | step's cost |
|---|---|---|---|---|---|
"""


def row(name: str) -> str:
    num_classes, size = NETWORKS[name]
    with torch.device("meta"), torch.inference_mode():
        net = sb.attach(timm.create_model(name, num_classes=num_classes)).eval()
        with FlopCounterMode(display=False) as counter, ShapesOfNorms():
            net(torch.empty(1, *size))
    flops = {place: sum(counts.values()) for place, counts in counter.get_flop_counts().items()}
    branches = {branch: flops[f"BranchedModel.branches.{branch}"] / 2 for branch in ("b1", "b2")}
    macs = {"main": flops["Global"] / 2 - sum(branches.values()), **branches}
    sizes = [parameters(net.backbone), *(parameters(body) for body in net.branches.values())]
    layout = "; ".join(f"{branch}: {net.forks[branch]}, {stages(body)}" for branch, body in net.branches.items())
    cost = sum(macs.values()) / macs["main"]
    return (
        f"| {name} | {num_classes}, {size[1]}x{size[2]} | {layout} | {' / '.join(f'{each:,}' for each in sizes)} | "
        f"{' / '.join(f'{each / 1e6:,.0f} M' for each in macs.values())} | {cost:.2f} |"
    )


def stages(body: nn.Module) -> str:
    """Blocks x channels of every stage."""
    found = []
    for name, stage in body.named_children():
        if isinstance(stage, nn.Sequential):
            convolutions = [each for each in stage.modules() if isinstance(each, nn.Conv2d)]
            found.append(f"{name} {len(stage)} x {convolutions[-1].out_channels}")
    return ", ".join(found)


def parameters(module: nn.Module) -> int:
    return sum(each.numel() for each in module.parameters())


def main() -> int:
    page = HEAD + "\n".join(row(name) for name in NETWORKS) + "\n"
    if "--check" in sys.argv:
        return int(not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page)
    PAGE.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
