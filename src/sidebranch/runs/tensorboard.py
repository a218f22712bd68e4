"""TensorBoard logging."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from sidebranch.runs.console import Reporter


class EventWriter:
    """Writes TensorBoard event files. If they cannot be written, training continues.

    Args:
        root: the run's folder.
        done: steps before this start; events that a stopped run wrote for later steps are purged.
        reporter: told once when events can no longer be written.
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
                f"TensorBoard events can no longer be written ({error.strerror}); metrics.csv is still written"
            )
            self.writer = None

    def close(self) -> None:
        if self.writer is not None:
            with suppress(OSError):
                self.writer.close()
