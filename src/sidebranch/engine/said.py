"""What a run says of itself: its summary, its size, and TensorBoard's events."""

from __future__ import annotations

import math
from contextlib import suppress
from pathlib import Path

from lightning.fabric import Fabric
from torch.utils.tensorboard import SummaryWriter

from sidebranch.engine.config import Config, OptimConfig
from sidebranch.engine.hardware import Hardware
from sidebranch.engine.progress import Reporter
from sidebranch.engine.run_folder import RunFolder
from sidebranch.model import BranchedModel


class Events:
    """TensorBoard's files. They are a convenience: where they cannot be written, training goes on.

    Args:
        root: the run's folder.
        done: steps before; what a run that was stopped wrote after them is left out.
        reporter: is told, once, when no more can be written.
    """

    def __init__(self, root: Path, done: int, reporter: Reporter) -> None:
        self.reporter = reporter
        self.writer: SummaryWriter | None = SummaryWriter(str(root), purge_step=done + 1 if done else None)

    def write(self, scalars: dict[str, float], done: int) -> None:
        if self.writer is None:
            return
        try:
            for name, value in scalars.items():
                self.writer.add_scalar(name, value, done)
            self.writer.flush()
        except OSError as error:
            self.reporter.say(
                f"TensorBoard's events cannot be written any more ({error.strerror}); metrics.csv goes on"
            )
            self.writer = None

    def close(self) -> None:
        if self.writer is not None:
            with suppress(OSError):
                self.writer.close()


def parameters(net: BranchedModel) -> dict[str, int]:
    """How many ship, and how many train."""
    shipped = sum(each.numel() for each in net.backbone.parameters())
    return {"shipped": shipped, "training": sum(each.numel() for each in net.parameters())}


def checkpoint_bytes(config: OptimConfig, net: BranchedModel) -> int:
    """Of a checkpoint, at most: Adam and AMSGrad keep three numbers for every weight."""
    weights = sum(each.nbytes for each in net.state_dict().values())
    kept = {"sgd": 1, "adam": 2, "adamw": 2, "lamb": 2}[config.name] + config.amsgrad
    return weights * (1 + kept + bool(config.ema))


def summary(config: Config, net: BranchedModel, fabric: Fabric, choices: Hardware, folder: RunFolder) -> str:
    """What trains, on what, and where it goes; a few lines."""
    shipped, training = parameters(net).values()
    aside = f"{training - shipped:,} in side branches {', '.join(net.names[1:])}"
    aside += " and in necks" if len(net.necks) else ""
    aside = aside if len(net.names) > 1 else "no side branches"
    lines = [
        f"{config.model.name}: {shipped:,} parameters to ship, {aside}",
        f"{config.method} on {config.data.name}, {fabric.device.type}, {choices}",
    ]
    if (count := fabric.world_size) > 1:
        size = config.data.batch_size
        lines.append(
            f"{count} processes, {math.ceil(size / count)} images each of every batch of {size}; "
            f"optim.lr {config.optim.lr:g} is the whole batch's, taken as it is"
        )
    return "\n".join([*lines, f"run folder: {folder.root}"])
