"""The table of a study's cells while it trains. In: cells and those that run. Out: a rich table."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table

from sidebranch.study.cells import Cell, State

SHOWN = 30  # cells in the table
OPEN = ("waiting", "started")


class Progress:
    """The states of a study's cells; those of cells that do not run are read once.

    Args:
        cells: of the study; rows that train the same share one.
        parallel: that run at a time.
    """

    def __init__(self, cells: Sequence[Cell], parallel: int = 1) -> None:
        self.cells = list({cell.name: cell for cell in cells}.values())
        self.parallel = parallel
        self.states: dict[str, State] = {cell.name: cell.state() for cell in self.cells}
        self.running: dict[str, Cell] = {}

    def update(self, running: Sequence[Cell]) -> None:
        """Reads the states of the cells that run, or ran a moment ago."""
        now = {cell.name: cell for cell in running}
        for name, cell in (self.running | now).items():
            self.states[name] = cell.state()
        self.running = now

    def of(self, *kinds: str) -> list[Cell]:
        """The cells in a state: `waiting`, `started`, `done`, `failed` or `damaged`."""
        return [cell for cell in self.cells if self.states[cell.name].kind in kinds]

    def told(self, cell: Cell) -> str:
        """A cell that has ended, in a line."""
        state = self.states[cell.name]
        error = "" if state.error is None else f", main {state.error:.2f} %"
        done = f"{len(self.of('done'))} of {len(self.cells)} done"
        return f"{cell.name}: {state.kind}{error}, {duration(state.seconds)} ({done})"

    def table(self) -> RenderableType:
        """What runs, what failed, what waits, and what is left of the time."""
        paces = self._paces()
        left = {cell.name: self._seconds_left(cell, paces) for cell in self.of(*OPEN)}
        known = [each for each in left.values() if each is not None]
        total = f", about {duration(sum(known) / self.parallel)} left" if known and len(known) == len(left) else ""
        counts = {kind: len(self.of(kind)) for kind in ("done", "failed", "damaged")}
        rest = len(self.cells) - sum(counts.values()) - len(self.running)
        title = (
            f"{counts['done']} of {len(self.cells)} done, {len(self.running)} running, {rest} waiting, "
            f"{counts['failed']} failed" + (f", {counts['damaged']} damaged" if counts["damaged"] else "") + total
        )
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for heading in ("cell", "state", "epoch", "main, %", "left"):
            table.add_column(heading, justify="left" if heading in ("cell", "state") else "right", overflow="fold")
        for cell in sorted(self.cells, key=self._place)[:SHOWN]:
            state, seconds = self.states[cell.name], left.get(cell.name)
            table.add_row(
                cell.name,
                "running" if cell.name in self.running else state.kind,
                f"{state.epochs}/{cell.epochs}",
                "" if state.error is None else f"{state.error:.2f}",
                "" if seconds is None else duration(seconds),
            )
        if len(self.cells) > SHOWN:
            table.add_row(f"and {len(self.cells) - SHOWN} more")
        return Group(title, table)

    def _place(self, cell: Cell) -> tuple[bool, bool]:
        return cell.name not in self.running, self.states[cell.name].kind not in ("failed", "damaged")

    def _paces(self) -> dict[tuple[str, str], float]:
        """Row to the seconds of an epoch, of a seed that has one."""
        paces = {}
        for cell in self.cells:
            state = self.states[cell.name]
            if state.epochs:
                paces.setdefault((cell.row.recipe, cell.row.variant), state.seconds / state.epochs)
        return paces

    def _seconds_left(self, cell: Cell, paces: dict[tuple[str, str], float]) -> float | None:
        """By the time of its own epochs, else of another seed's; None if there is none yet."""
        state = self.states[cell.name]
        pace = state.seconds / state.epochs if state.epochs else paces.get((cell.row.recipe, cell.row.variant))
        return None if pace is None else pace * (cell.epochs - state.epochs)


def duration(seconds: float) -> str:
    """ "45 s", "12 min" or "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
