"""Progress of a run on the console: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from sidebranch.runs.headline import TOP1, Headline

Readings = Mapping[str, Mapping[str, float]]


class Reporter:
    """Receives the progress of a run from the training loop; here it does nothing with it."""

    def say(self, line: str) -> None: ...
    def start(
        self, columns: Sequence[str], epochs: int, steps_per_epoch: int, done: int, headline: Headline = TOP1
    ) -> None: ...
    def step(self, epoch: int, step: int, done: int, images_per_second: float, readings: Readings | None) -> None: ...
    def epoch(self, row: Mapping[str, float]) -> None: ...
    def close(self) -> None: ...


class Silent(Reporter):
    """Prints nothing: for other ranks and for tests."""


class ConsoleReporter(Reporter):
    """A table with one line per epoch and, on a terminal, a bar with the remaining time and the training metrics.

    Args:
        console: to print to; standard output if left out.
        table: whether to print the line of each epoch.
    """

    def __init__(self, console: Console | None = None, table: bool = True) -> None:
        self.table = table
        self.console = console or Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self.live: Live | None = None
        self.columns: tuple[str, ...] = ()
        self.epochs = 0
        self.headline = TOP1

    def say(self, line: str) -> None:
        self.console.print(line, markup=False)

    def start(
        self, columns: Sequence[str], epochs: int, steps_per_epoch: int, done: int, headline: Headline = TOP1
    ) -> None:
        self.columns, self.epochs, self.headline = tuple(columns), epochs, headline
        names = "".join(f"{name if name != 'ensemble' else 'ens.':>8}" for name in columns)
        if self.table:
            shown = "training and validation" if headline == TOP1 else "training top-1 error and validation"
            self.say(f"{shown} {headline.name}, %".rjust(34 + len(names)))
            self.say(f"{'epoch':>9}{'lr':>9}{'loss':>8}{'train':>8}{names}{'img/s':>8}")
        if self.console.is_terminal:
            self.bar = Progress(
                TextColumn("{task.description:>9}"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("{task.fields[speed]:>6.0f} img/s"),
                TimeRemainingColumn(),
                expand=True,
            )
            self.task = self.bar.add_task("", total=epochs * steps_per_epoch, completed=done, speed=0.0)
            self.status = Text("")
            self.live = Live(Group(self.bar, self.status), console=self.console, refresh_per_second=4, transient=True)
            self.live.start()

    def step(self, epoch: int, step: int, done: int, images_per_second: float, readings: Readings | None) -> None:
        if self.live is None:
            return
        self.bar.update(self.task, completed=done, description=f"{epoch + 1}/{self.epochs}", speed=images_per_second)
        if readings:
            each = (f"{name} {value['loss']:.2f} {value['top1']:.0f}%" for name, value in readings.items())
            self.status.plain = "training loss, error: " + "  ".join(each)

    def epoch(self, row: Mapping[str, float]) -> None:
        if not self.table:
            return
        errors = "".join(f"{self.headline.of(row, name):>8.2f}" for name in self.columns)
        position = f"{row['epoch']:.0f}/{self.epochs}"
        self.say(
            f"{position:>9}{row['lr']:>9.3g}{row['train/loss']:>8.3f}{row['train/top1/main']:>8.2f}{errors}"
            f"{row['images_per_second']:>8.0f}"
        )
        if row["epoch"] == self.epochs and "val/rank1/main" in row:
            self.say("rank 1, %: " + "  ".join(f"{name} {row[f'val/rank1/{name}']:.2f}" for name in self.columns))

    def close(self) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None
