"""The summary of a run: parameters, checkpoint size, and the lines printed at its start."""

from __future__ import annotations

import math
from pathlib import Path

from sidebranch.config.schema import Config
from sidebranch.core.model import BranchedModel
from sidebranch.device import Choices


def parameters(net: BranchedModel) -> dict[str, int]:
    """Numbers of parameters: shipped, and in training."""
    shipped = sum(each.numel() for each in net.backbone.parameters())
    return {"shipped": shipped, "training": sum(each.numel() for each in net.parameters())}


def checkpoint_bytes(config: Config, net: BranchedModel) -> int:
    """Upper bound of a checkpoint's size: weights, the optimiser's copies of them, and the moving average."""
    optim = config.optim
    weights = sum(each.nbytes for each in net.state_dict().values())
    copies = {"sgd": 1, "adam": 2, "adamw": 2, "lamb": 2}[optim.name] + optim.amsgrad
    return weights * (1 + copies + bool(optim.ema or config.teachers_of("average")))


def summary(config: Config, net: BranchedModel, device: str, processes: int, choices: Choices, root: Path) -> str:
    """A few lines: what is trained, on which hardware, and where the results go."""
    shipped, training = parameters(net).values()
    extra = f"{training - shipped:,} in side branches {', '.join(net.names[1:])}"
    extra += " and in necks" if len(net.necks) else ""
    extra = extra if len(net.names) > 1 else "no side branches"
    lines = [
        f"{config.model.name}: {shipped:,} parameters to ship, {extra}",
        f"{config.method} on {config.data.name}, {device}, {choices}",
    ]
    if processes > 1:
        size = config.data.batch_size
        lines.append(
            f"{processes} processes, {math.ceil(size / processes)} images each of every batch of {size}; "
            f"optim.lr {config.optim.lr:g} is for the whole batch, and is not scaled"
        )
    return "\n".join([*lines, f"run folder: {root}"])
