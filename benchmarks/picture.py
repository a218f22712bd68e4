"""Draws the README's picture from a real `attach`: docs/attach-light.svg and -dark.svg. Forks, and who teaches whom.

python benchmarks/picture.py [--check]
"""

from __future__ import annotations

import sys

import matplotlib.pyplot as plt
import timm
import torch
from drawing import COLOURS, svg, write
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

import sidebranch as sb


def draw(theme: str) -> str:
    ink, soft, ships, teaches = COLOURS[theme]
    with torch.device("meta"):
        net = sb.attach(timm.create_model("cifar_resnet32", num_classes=100))
    supervision, mimicry = sb.dhm().arrays(net.names)
    stages = ["stem", *(name for name, _ in net.backbone.named_children() if name.startswith("layer"))]
    figure, axes = plt.subplots(figsize=(8.4, 3.4))
    axes.set(xlim=(0, 10.2), ylim=(-1.1, 3.2))
    axes.axis("off")

    def box(x: float, y: float, text: str, colour: str, width: float = 1.5) -> None:
        shape = FancyBboxPatch((x, y - 0.3), width, 0.6, boxstyle="round,pad=0.02,rounding_size=0.1")
        shape.set(facecolor="none", edgecolor=colour, linewidth=1.6)
        axes.add_patch(shape)
        axes.text(x + width / 2, y, text, ha="center", va="center", color=ink, fontsize=10)

    def arrow(
        start: tuple[float, float], end: tuple[float, float], colour: str, style: str = "-|>", bend: float = 0
    ) -> None:
        path = FancyArrowPatch(start, end, arrowstyle=style, mutation_scale=11, color=colour, linewidth=1.4)
        path.set_connectionstyle("arc3", rad=bend)
        axes.add_patch(path)

    rows = {name: float(place) for place, name in enumerate(net.names)}
    ends = {}
    for number, stage in enumerate(stages):
        box(0.1 + 2 * number, 0, stage, ships)
        if number:
            arrow((2 * number - 0.4, 0), (2 * number + 0.1, 0), ships)
    for name, y in rows.items():
        first = stages.index(net.forks[name]) + 1 if name in net.forks else len(stages)
        for number in range(first, len(stages)):
            box(0.1 + 2 * number, 1.4 * y, f"{name}.{stages[number]}", soft)
            if number > first:
                arrow((2 * number - 0.4, 1.4 * y), (2 * number + 0.1, 1.4 * y), soft)
        if name in net.forks:
            arrow((2 * first - 0.9, 0.3), (2 * first + 0.1, 1.4 * y), soft, bend=-0.2)
        x = 0.1 + 2 * len(stages)
        arrow((x - 0.5, 1.4 * y), (x, 1.4 * y), ships if name == "main" else soft)
        box(x, 1.4 * y, name, ships if name == "main" else soft, 1.1)
        ends[name] = (x + 1.1, 1.4 * y)
        if supervision[net.names.index(name)]:
            axes.text(x + 0.55, 1.4 * y - 0.5, "labels", ha="center", va="center", color=soft, fontsize=8)
    for p, teacher in enumerate(net.names):
        for q, student in enumerate(net.names):
            if p < q and (mimicry[p][q] or mimicry[q][p]):
                style = "<|-|>" if mimicry[p][q] and mimicry[q][p] else "-|>"
                arrow(ends[teacher], ends[student], teaches, style, bend=0.25 + 0.25 * (q - p - 1))
    axes.text(0.1, -1, "ships", color=ships, fontsize=9)
    axes.text(1.1, -1, "thrown away after training", color=soft, fontsize=9)
    axes.text(4.7, -1, "teach one another", color=teaches, fontsize=9)
    return svg(figure)


if __name__ == "__main__":
    raise SystemExit(write({f"attach-{theme}.svg": draw(theme) for theme in COLOURS}, "--check" in sys.argv))
