"""`sidebranch demo`: the effect of side branches on a small data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from sidebranch.cli.parsing import parse, plain_parser
from sidebranch.cli.texts import DEMO_HELP
from sidebranch.config import recipe
from sidebranch.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

    from sidebranch.inspect.record import Record


def parser() -> ArgumentParser:
    made = plain_parser("demo", DEMO_HELP)
    made.add_argument("--output", type=str, default="demo", help="Folder for the runs and the report.")
    made.add_argument("--seeds", type=int, default=5, help="Runs of each method.")
    return made


def run(arguments: Sequence[str]) -> int:
    options = parse(parser(), arguments)
    if options.seeds < 1:
        raise UserError(f"--seeds is {options.seeds}; train at least one")
    from sidebranch.cli.running import exit_status

    return exit_status(lambda: _demo(options), "the same command again")


def _demo(options: Namespace) -> None:
    from rich.console import Console

    from sidebranch.inspect.record import read_record
    from sidebranch.inspect.report import verdict, write_report
    from sidebranch.runs.console import ConsoleReporter
    from sidebranch.study.grid import run_grid

    root = Path(options.output)
    console = Console(highlight=False)
    console.print(
        "1,297 digits for training, half of their labels replaced at random;\n500 for validation. "
        f"Trained without side branches (baseline)\nand with them (DHM); seeds: {options.seeds}.\n"
    )
    config = recipe.load(recipe.find("digits/demo"))
    folders = run_grid(config, ("baseline", "dhm"), range(options.seeds), root, ConsoleReporter(table=False))
    records = [read_record(folder) for folder in folders]
    console.print(_table(records))
    page = root / "report.html"
    write_report(records, page, "Half of the training labels replaced: baseline and DHM")
    console.print(f"\n{verdict(records)}")
    console.print(f"The curves: {page}", soft_wrap=True)


def _table(records: Sequence[Record]) -> Table:
    from rich.table import Table

    from sidebranch.inspect.record import by_kind, summarise

    summary = summarise(by_kind(records))
    table = Table(title="Top-1 error on 500 validation digits, %", title_justify="left")
    table.add_column("")
    for kind in summary:
        table.add_column(kind, justify="right")
    for column in summary["DHM"]:
        cells = [str(errors.get(column, "")) for errors in summary.values()]
        table.add_row("main (shipped)" if column == "main" else column, *cells)
    table.add_section()
    counts = [group[0].environment["parameters"] for group in by_kind(records).values()]
    table.add_row("parameters shipped", *(f"{each['shipped']:,}" for each in counts))
    table.add_row("parameters in training", *(f"{each['training']:,}" for each in counts))
    return table
