"""Metrics to TensorBoard, and to a tracker of the user's choice by Lightning's loggers."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from torch.utils.tensorboard import SummaryWriter

from sidebranch.errors import UserError, reason
from sidebranch.runs.console import Reporter

Write = Callable[[Mapping[str, float], int], None]
PROJECT = "sidebranch"
# MLflow knows no ">", and its files cannot be folders at once, as "train/loss" and "train/loss/main" would be.
NAME: dict[str, Callable[[str], str]] = {
    "wandb": str,
    "mlflow": lambda name: name.replace("->", " to ").replace("/", ".").replace(".", "/", 1),
}


class Trackers:
    """Writes metrics by step. If one of them can no longer be written, training continues without it.

    Args:
        root: the run's folder.
        done: steps before this start; TensorBoard's events that a stopped run wrote for later steps are purged.
        kind: a tracker besides TensorBoard, or "tensorboard" alone.
        config: the run's, as plain values.
        reporter: told once when a tracker can no longer be written.

    Raises:
        UserError: the tracker's package is not installed, or it refuses to start.
    """

    def __init__(
        self,
        root: Path,
        done: int,
        kind: Literal["tensorboard", "wandb", "mlflow"],
        config: Mapping[str, Any],
        reporter: Reporter,
    ) -> None:
        self.reporter, self.ends = reporter, []
        board = SummaryWriter(str(root), purge_step=done + 1 if done else None)
        self.ends.append(board.close)

        def write_board(scalars: Mapping[str, float], step: int) -> None:
            for name, value in scalars.items():
                board.add_scalar(name, value, step)
            board.flush()

        self.writers: dict[str, Write] = {"TensorBoard events": write_board}
        if kind != "tensorboard":
            try:
                logger = tracker(kind, root)
                if not done:  # trackers refuse values that change, and a resumed run may have another data.root
                    logger.log_hyperparams(dict(config))
            except UserError:
                raise
            except Exception as error:
                raise UserError(f"--runtime.logger {kind} does not start: {reason(error)}") from error
            self.writers[kind] = lambda scalars, step: logger.log_metrics(
                {NAME[kind](name): value for name, value in scalars.items()}, step
            )
            self.ends.append(lambda: _finish(kind, logger))

    def write(self, scalars: Mapping[str, float], step: int) -> None:
        for name, write in list(self.writers.items()):
            try:
                write(scalars, step)
            except Exception as error:  # whatever a tracker's server or disk may do
                cause = getattr(error, "strerror", None) or reason(error)
                self.reporter.say(f"{name} can no longer be written ({cause}); metrics.csv is still written")
                del self.writers[name]

    def close(self) -> None:
        for end in self.ends:
            with suppress(Exception):
                end()


def _finish(kind: str, logger: Any) -> None:
    """Ends a tracker's run; a stopped one continues it when it is resumed."""
    logger.finalize("success")
    if kind == "wandb":
        logger.experiment.finish()


def tracker(kind: str, root: Path) -> Any:
    """Lightning's logger for a tracker; a run's second start continues what its first began.

    Server, key and offline mode are the tracker's own environment variables (WANDB_MODE, MLFLOW_TRACKING_URI, ...).
    """
    if find_spec(kind) is None:
        raise UserError(f"--runtime.logger {kind} needs {kind}: pip install 'sidebranch[{kind}]'")
    from lightning.pytorch import loggers  # slow to import

    known = root / f".{kind}_run"
    number = known.read_text(encoding="utf-8").strip() if known.is_file() else None
    if kind == "wandb":
        number = number or uuid4().hex[:16]
        known.write_text(f"{number}\n", encoding="utf-8")
        return loggers.WandbLogger(root.name, save_dir=root, id=number, project=PROJECT, resume="allow")
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        raise UserError("--runtime.logger mlflow needs MLFLOW_TRACKING_URI: a server, or sqlite:///mlflow.db")
    made = loggers.MLFlowLogger(PROJECT, root.name, run_id=number)
    known.write_text(f"{made.run_id}\n", encoding="utf-8")
    return made
