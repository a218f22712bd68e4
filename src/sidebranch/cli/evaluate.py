"""`sidebranch eval`: the errors of a run, or of a public checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser

from sidebranch.cli.parsing import add_checkpoint_arguments, parse, plain_parser
from sidebranch.cli.texts import EVAL_HELP
from sidebranch.config import recipe
from sidebranch.config.data import Metric

ERRORS = {"top1": "top-1 error, %", "top5": "top-5 error, %", "loss": "loss, nats"}
RETRIEVAL = {
    "mAP": "mAP, %",
    "rank1": "rank 1, %",
    "rank5": "rank 5, %",
    "rank10": "rank 10, %",
    "rank20": "rank 20, %",
}


def parser() -> ArgumentParser:
    made = plain_parser("eval", EVAL_HELP)
    add_checkpoint_arguments(made)
    made.add_argument("--data.root", type=str, default="", help="Where the data are, if they have moved.")
    made.add_argument("--eval.metric", type=Metric, default=None, help="Re-ID: another distance.")
    made.add_argument("--eval.flip", type=bool, default=None, help="Re-ID: average with mirrored images.")
    made.add_argument("--eval.chunk", type=int, default=None, help="Re-ID: queries ranked at a time.")
    return made


def run(arguments: Sequence[str]) -> int:
    options = parse(parser(), arguments)
    from rich.console import Console
    from rich.table import Table

    from sidebranch.cli.running import quiet_libraries
    from sidebranch.evaluation.of_run import evaluate_reference, evaluate_run
    from sidebranch.runs.folder import RunFolder

    quiet_libraries()
    if options.weights:
        errors = evaluate_reference(recipe.find(options.run), options.weights, options["data.root"])
        title = f"{options.weights} as {options.run}"
    else:
        folder = RunFolder(Path(options.run))
        given = {name: options[f"eval.{name}"] for name in ("metric", "flip", "chunk")}
        overrides = {name: value for name, value in given.items() if value is not None}
        result = evaluate_run(folder, options.checkpoint, options["data.root"], overrides)
        errors, title = result.errors, f"{folder.root}, {options.checkpoint} checkpoint: epoch {result.epoch}"
        print("".join(f"{note}\n" for note in result.notes), end="")
    known = RETRIEVAL if "mAP" in errors["main"] else ERRORS
    headings = {key: text for key, text in known.items() if key in errors["main"]}
    table = Table(title=title, title_justify="left")
    table.add_column("classifier")
    for text in headings.values():
        table.add_column(text, justify="right")
    for name, values in errors.items():
        table.add_row(name, *(f"{values[key]:.{4 if key == 'loss' else 3}f}" for key in headings))
    Console(highlight=False).print(table)
    return 0
