"""`sidebranch study`: a table of runs, trained to its end."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from sidebranch.cli.parsing import parse, plain_parser
from sidebranch.cli.texts import STUDY_HELP
from sidebranch.config import recipe
from sidebranch.config.compare import as_dict
from sidebranch.config.schema import Config
from sidebranch.errors import UserError
from sidebranch.runs.atomic_files import write_text
from sidebranch.study.cells import Cell, State, adopt, plan
from sidebranch.study.spec import read_study, shipped

if TYPE_CHECKING:
    from rich.console import RenderableType

    from sidebranch.study.local import Running

SETTINGS = "study.json"  # in the study's folder: the spec and the flags it was started with
SHOWN = 30  # cells in the live table


def parser() -> ArgumentParser:
    made = plain_parser("study", STUDY_HELP)
    made.add_argument("spec", type=str, help="A shipped study, a YAML file, or a study's folder, to go on.")
    made.add_argument("--output", type=str, default="", help="The study's folder. Default: studies/NAME.")
    made.add_argument("--seeds", type=int, default=0, help="Runs of each row. Default: the study's own.")
    made.add_argument("--only", type=str, nargs="+", default=[], help="Rows with this in recipe, network or variant.")
    made.add_argument("--parallel", type=int, default=1, help="Processes at a time; they share cores and GPUs out.")
    made.add_argument("--retry", action="store_true", help="Train failed cells again.")
    made.add_argument("--adopt", type=str, nargs="+", default=[], help="Take finished runs from these folders.")
    made.add_argument("--status", action="store_true", help="Show the cells; train nothing.")
    made.add_argument("--table", action="store_true", help="Print the table of what is done; train nothing.")
    return made


def run(arguments: Sequence[str]) -> int:
    own, flags = split_flags(arguments)
    if not own and not flags:
        raise UserError(f"study needs a spec: sidebranch study {'|'.join(list(shipped())[:3])}|...|FILE|FOLDER")
    options = parse(parser(), own)
    if options.parallel < 1 or options.seeds < 0:
        raise UserError("--parallel must be at least 1, and --seeds at least 1")
    root, spec, seeds, only, flags = _settings(options, flags)
    study = read_study(spec)
    cells = plan(study, root, range(seeds or study.seeds), only, flags)
    if options.status or options.table:
        return _show(cells, options, root)
    with _only_one(root):
        write_text(root / SETTINGS, json.dumps({"spec": spec, "seeds": seeds, "only": only, "flags": flags}) + "\n")
        for source in options.adopt:
            for name in adopt(cells, Path(source)):
                print(f"adopted {name}")
        status = _train(cells, options)
        _write(cells, root)
    return status


def split_flags(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The study's own arguments, and the flags of `sidebranch train` among them."""
    fields = set(recipe.keys(as_dict(Config())))
    own, flags, words = [], [], list(arguments)
    while words:
        word = words.pop(0)
        name = word.removeprefix("--").split("=")[0]
        is_field = word.startswith("--") and name in fields
        (flags if is_field else own).append(word)
        if is_field and "=" not in word and words:
            flags.append(words.pop(0))
    return own, flags


def _settings(options: Namespace, flags: list[str]) -> tuple[Path, str, int, list[str], list[str]]:
    """Folder, spec, seeds, rows and flags; of a folder, those that it was started with unless they are given."""
    kept = Path(options.spec) / SETTINGS
    if kept.is_file():
        known = json.loads(kept.read_text(encoding="utf-8"))
        seeds, only = options.seeds or known["seeds"], options.only or known["only"]
        return Path(options.spec), known["spec"], seeds, only, [*known["flags"], *flags]
    root = Path(options.output or Path("studies") / Path(options.spec).stem)
    is_file = options.spec not in shipped() and Path(options.spec).is_file()
    spec = str(Path(options.spec).resolve()) if is_file else options.spec
    return root, spec, options.seeds, options.only, flags


def _train(cells: Sequence[Cell], options: Namespace) -> int:
    """Trains what is not done, with a live table."""
    from rich.console import Console
    from rich.live import Live

    from sidebranch.device import cores
    from sidebranch.study.local import gpus_here, run_cells

    states = {cell.name: cell.state() for cell in cells}
    damaged = [cell for cell in cells if states[cell.name].kind == "damaged"]
    for cell in damaged:
        print(f"sidebranch: {cell.name} is damaged: {states[cell.name].message}", file=sys.stderr)
    wanted = ("waiting", "started", *(("failed",) if options.retry else ()))
    todo = list({cell.name: cell for cell in cells if states[cell.name].kind in wanted}.values())
    parallel = min(options.parallel, len(todo) or 1)
    console = Console(highlight=False)
    with Live(console=console, refresh_per_second=2, transient=True) as live:
        status = run_cells(
            todo,
            parallel,
            threads=max(1, cores() // parallel),
            gpus=gpus_here(),
            watch=lambda running: live.update(_table(cells, running, parallel)),
        )
    console.print(_table(cells, [], parallel))
    failed = [cell for cell in cells if cell.state().kind == "failed"]
    for cell in failed:
        print(f"sidebranch: {cell.name} failed: {cell.state().message}; --retry trains it again", file=sys.stderr)
    return status or int(bool(failed or damaged))


def _table(cells: Sequence[Cell], running: Sequence[Running], parallel: int) -> RenderableType:
    """Cells that are running, waiting, done and failed, with what is left of the time."""
    from rich.table import Table

    states = {cell.name: cell.state() for cell in cells}
    now = {each.cell.name for each in running}
    counts = {kind: sum(state.kind == kind for state in states.values()) for kind in ("done", "failed", "damaged")}
    left = [_seconds_left(cell, states, cells) for cell in cells if states[cell.name].kind in ("waiting", "started")]
    known = [each for each in left if each is not None]
    total = f", about {_duration(sum(known) / max(1, parallel))} left" if known and len(known) == len(left) else ""
    rest = len(cells) - sum(counts.values()) - len(now)
    title = f"{counts['done']} of {len(cells)} done, {len(now)} running, {rest} waiting, {counts['failed']} failed"
    table = Table(title=title + total, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("cell", "state", "epoch", "main, %", "left"):
        table.add_column(heading, justify="left" if heading in ("cell", "state") else "right", overflow="fold")
    order = sorted(cells, key=lambda cell: (cell.name not in now, states[cell.name].kind != "failed"))
    for cell in order[:SHOWN]:
        state = states[cell.name]
        seconds = _seconds_left(cell, states, cells) if state.kind in ("waiting", "started") else None
        table.add_row(
            cell.name,
            "running" if cell.name in now else state.kind,
            f"{state.epochs}/{cell.config.optim.epochs}",
            "" if state.error is None else f"{state.error:.2f}",
            "" if seconds is None else _duration(seconds),
        )
    if len(cells) > SHOWN:
        table.add_row(f"and {len(cells) - SHOWN} more")
    return table


def _seconds_left(cell: Cell, states: dict[str, State], cells: Sequence[Cell]) -> float | None:
    """By the time of an epoch: its own, else that of another seed of its row, else None."""
    same = [cell, *(other for other in cells if other.row == cell.row)]
    for other in same:
        state = states[other.name]
        if state.epochs:
            epochs = cell.config.optim.epochs - states[cell.name].epochs
            return epochs * state.seconds / state.epochs
    return None


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _show(cells: Sequence[Cell], options: Namespace, root: Path) -> int:
    from rich.console import Console

    from sidebranch.study.results import check_done, lines, markdown, records

    if options.table:
        found = records(cells)
        check_done(found)
        print(markdown(lines(cells, found)), end="")
        return 0
    Console(highlight=False).print(_table(cells, [], 1))
    return 0


def _write(cells: Sequence[Cell], root: Path) -> None:
    """results.jsonl, table.md, table.csv and the page, of what is done."""
    from sidebranch.inspect.report import write_report
    from sidebranch.study.results import comma_separated, json_line, lines, markdown, records

    found = records(cells)
    if not found:
        return
    made = lines(cells, found)
    rows = {json_line(cell, found[cell.name]): None for cell in cells if cell.name in found}
    write_text(root / "results.jsonl", "\n".join(rows) + "\n")
    write_text(root / "table.md", markdown(made))
    write_text(root / "table.csv", comma_separated(made))
    write_report(list(found.values()), root / "report.html", root.name)
    print(f"{markdown(made)}\n{root / 'table.md'}, table.csv, results.jsonl, report.html")


@contextmanager
def _only_one(root: Path) -> Iterator[None]:
    """Holds a study's folder against other processes.

    Raises:
        UserError: another process trains this study; it names its number and machine.
    """
    from filelock import FileLock, Timeout

    root.mkdir(parents=True, exist_ok=True)
    lock, owner = FileLock(root / ".lock"), root / ".owner"
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        who = owner.read_text(encoding="utf-8").strip() if owner.is_file() else "another process"
        raise UserError(f"{who} trains the study in '{root}'; wait for it, or stop it") from error
    except (OSError, NotImplementedError):
        print("this file system has no locks: a second study in this folder would not be noticed")
    write_text(owner, f"process {os.getpid()} on {socket.gethostname()}\n")
    try:
        yield
    finally:
        lock.release()
