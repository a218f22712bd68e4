"""`sidebranch eval`: the errors of a run, or of a public checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser, Namespace

from sidebranch.cli.parsing import add_checkpoint_arguments, parse, plain_parser
from sidebranch.cli.texts import EVAL_HELP
from sidebranch.config import recipe
from sidebranch.config.data import Metric
from sidebranch.errors import UserError

Measure = Literal["confidence", "margin", "agreement"]
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
    made.add_argument("--early-exit", action="store_true", help="Error against cost, if sure classifiers answer first.")
    made.add_argument("--measure", type=Measure, default="confidence", help="Early exit: what sureness is.")
    made.add_argument("--error", type=float, default=None, help="Early exit: the top-1 error wanted, in percent.")
    made.add_argument("--max-cost", type=float, default=None, help="Early exit: mean cost, a multiple of main's.")
    return made


def run(arguments: Sequence[str]) -> int:
    options = parse(parser(), arguments)
    if options.early_exit:
        return _early_exit(options)
    for name in ("measure", "error", "max_cost"):
        if options[name] not in (None, "confidence"):
            raise UserError(f"--{name.replace('_', '-')} needs --early-exit")
    from rich.console import Console
    from rich.table import Table

    from sidebranch.cli.running import quiet_libraries
    from sidebranch.evaluation.of_run import evaluate_reference, evaluate_run
    from sidebranch.runs.folder import RunFolder

    quiet_libraries()
    given = {name: options[f"eval.{name}"] for name in ("metric", "flip", "chunk")}
    overrides = {name: value for name, value in given.items() if value is not None}
    if options.weights:
        errors = evaluate_reference(recipe.find(options.run), options.weights, options["data.root"], overrides)
        title = f"{options.weights} as {options.run}"
    else:
        folder = RunFolder(Path(options.run))
        result = evaluate_run(folder, options.checkpoint, options["data.root"], overrides)
        errors, title = result.errors, f"{folder.root}, {options.checkpoint} checkpoint: {result.trained}"
        print("".join(f"{note}\n" for note in result.notes), end="")
    known = RETRIEVAL if "mAP" in errors["main"] else ERRORS
    headings = {key: text for key, text in known.items() if key in errors["main"]}
    print(title)  # a table would fold it to its own width
    table = Table()
    table.add_column("classifier")
    for text in headings.values():
        table.add_column(text, justify="right")
    for name, values in errors.items():
        table.add_row(name, *(f"{values[key]:.{4 if key == 'loss' else 3}f}" for key in headings))
    Console(highlight=False).print(table)
    return 0


def _early_exit(options: Namespace) -> int:
    if options.weights:
        raise UserError("--early-exit needs a run; --weights has no images to choose exits on")
    if options.error is not None and not 0 <= options.error <= 100:
        raise UserError(f"--error is {options.error:g}; it is a top-1 error in percent, between 0 and 100")
    if options.max_cost is not None and not options.max_cost > 0:
        raise UserError(f"--max-cost is {options.max_cost:g}; it is a multiple of main's multiply-adds, above 0")
    if options.error is not None and options.max_cost is not None:
        raise UserError("--error and --max-cost exclude each other: one is given, the other is found")
    from sidebranch.cli.running import quiet_libraries
    from sidebranch.evaluation.exits_of_run import early_exits
    from sidebranch.inspect.record import read_record
    from sidebranch.inspect.report import write_report
    from sidebranch.runs.folder import RunFolder

    quiet_libraries()
    folder = RunFolder(Path(options.run))
    if folder.config.is_file():
        read_record(folder)  # raises, before minutes of work, if no epoch is finished
    found = early_exits(
        folder,
        options.checkpoint,
        options["data.root"],
        measure=options.measure,
        error=options.error,
        cost=options.max_cost,
        say=lambda line: print(f"{line} ...", flush=True),
    )
    folder.write_early_exit(found)
    write_report([read_record(folder)], folder.report, folder.root.name)
    _print_exits(folder.root, found)
    print(f"the choice: {folder.early_exit}\nthe page: {folder.report}")
    return 0


def _print_exits(root: Path, found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from sidebranch.evaluation.exits_of_run import told_wish
    from sidebranch.inspect.exit_charts import told_exits

    print(f"{root}: exits chosen on {found['held_out']:,} images, {found['chosen_on']}")
    print(f"top-1 errors of {found['images']:,} validation images")
    table = Table()
    for name in ("exits", "error, %", "MACs, M", "of main's", "ms", "taken by, %"):
        table.add_column(name, justify="left" if name == "exits" else "right")
    main = next(each["macs"] for each in found["classifiers"] if each["name"] == "main")
    rows = [(each["name"], each, "") for each in found["classifiers"]]
    for each in found["points"]:
        is_chosen = each == found["chosen"]
        if len(each["policy"]["exits"]) > 1 or is_chosen:  # one exit alone is a classifier, which has its row
            name = told_exits(each)
            shares = " ".join(f"{100 * share:.0f}" for share in each["shares"].values())
            rows.append((f"* {name}" if is_chosen else name, each, shares))
    for place, (name, each, shares) in enumerate(rows):
        if place == len(found["classifiers"]):
            table.add_section()
        table.add_row(
            name,
            f"{each['error']:.2f}",
            f"{each['macs'] / 1e6:.1f}",
            f"{each['macs'] / main:.2f}",
            f"{each['ms']:.2f}",
            shares,
        )
    Console(highlight=False).print(table)
    chosen, alone = found["chosen"], next(each for each in found["classifiers"] if each["name"] == "main")
    there, of_main = chosen["held_out"]["error"], alone["held_out_error"]
    print(f"*: chosen, {told_wish(found)} on the {found['held_out']:,} images: {there:.2f} %, main's {of_main:.2f}")
    print(f"here {chosen['error']:.2f} %, main's {alone['error']:.2f}; the fewer the images, the further apart")
    print("ms: of an image alone, on this machine; another row: --max-cost (of main's) or --error")
