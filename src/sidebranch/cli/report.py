"""`sidebranch report`: a page that compares runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser

from sidebranch.cli.parsing import parse, plain_parser
from sidebranch.cli.texts import REPORT_HELP
from sidebranch.errors import UserError


def parser() -> ArgumentParser:
    made = plain_parser("report", REPORT_HELP)
    made.add_argument("runs", type=str, nargs="+", help="Run folders.")
    made.add_argument("--output", type=str, default="report.html", help="The page to write.")
    made.add_argument("--queries", type=str, nargs="+", default=[], help="Re-ID: files of queries to show.")
    made.add_argument("--data.root", type=str, default="", help="Re-ID: where the images are, if they have moved.")
    return made


def run(arguments: Sequence[str]) -> int:
    options = parse(parser(), arguments)
    if options["data.root"] and not Path(options["data.root"]).exists():
        raise UserError(f"there is no '{options['data.root']}'")
    from sidebranch.inspect.record import read_record
    from sidebranch.inspect.report import verdict, write_report
    from sidebranch.runs.folder import RunFolder

    records = [read_record(RunFolder(Path(run))) for run in options.runs]
    write_report(records, Path(options.output), "Runs compared", options.queries, options["data.root"])
    print(f"{verdict(records)}\nthe report: {options.output}")
    return 0
