"""The command line: the only file that knows it."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import signal
import sys
import warnings
from argparse import ArgumentError, RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace
from rich.console import Console
from rich.table import Table

from sidebranch.attach import attach
from sidebranch.branches import Growth
from sidebranch.cli.preparing import add_kinds, run_prepare
from sidebranch.cli.texts import (
    BRANCHES_HELP,
    COST_NOTE,
    DEMO_HELP,
    EVAL_HELP,
    EXPORT_HELP,
    PREPARE_HELP,
    REPORT_HELP,
    TRAIN_HELP,
)
from sidebranch.deploy import export_reference, export_run
from sidebranch.engine import Config, ConsoleReporter, Interrupted, RunFolder, is_main_process, is_of, recipe, train
from sidebranch.engine.build import build_adapted
from sidebranch.engine.check import check
from sidebranch.engine.config import METHODS, Metric, ModelConfig, as_dict
from sidebranch.engine.evaluate_run import evaluate_reference, evaluate_run
from sidebranch.engine.inputs import cores
from sidebranch.engine.processes import ProcessLost, leave
from sidebranch.errors import UserError, nearest
from sidebranch.inspect import (
    Record,
    anatomy,
    by_kind,
    cost_table,
    forks_tree,
    label,
    read_record,
    summarise,
    verdict,
    write_report,
)
from sidebranch.study import run_at_once, run_grid

ERRORS = {"top1": "top-1 error, %", "top5": "top-5 error, %", "loss": "loss, nats"}
FOUND = {"mAP": "mAP, %", "rank1": "rank 1, %", "rank5": "rank 5, %", "rank10": "rank 10, %", "rank20": "rank 20, %"}


class _Help(DefaultHelpFormatter, RawDescriptionHelpFormatter):
    """Keeps the lines of the descriptions, whose examples are to be copied."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0; 2, bad input; 75, a process was lost; 128 + n, signal n came."""
    for name in ("lightning.fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Says that it ends this process because another has ended.
    logging.getLogger("lightning.fabric.strategies.launchers.subprocess_script").setLevel(logging.INFO)
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without "±" shows "?", not a traceback
    try:
        return _run(arguments)
    except UserError as error:
        who = "" if is_main_process() else f"process {torch.distributed.get_rank()}: "
        print(f"sidebranch: {who}{error}", file=sys.stderr)
        return 2
    except Interrupted as stop:
        again = "run it again" if arguments[0] == "demo" else "add --resume"
        if is_main_process():
            print(f"sidebranch: {stop}; {again} to go on", file=sys.stderr)
        leave()
        return 128 + stop.signal
    except ProcessLost as error:
        print(f"sidebranch: {error}; add --resume to go on from the last checkpoint", file=sys.stderr)
        return os.EX_TEMPFAIL
    except KeyboardInterrupt:
        print("sidebranch: stopped", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:
        return 128 + signal.SIGPIPE


def _run(arguments: list[str]) -> int:
    parser, verbs = _parser()
    if not arguments:
        parser.print_help()
        return 0
    recipe_name, flags = None, []
    if arguments[0] == "train" and not {"-h", "--help"} & set(arguments[1:2]):
        if len(arguments) < 2 or arguments[1].startswith("-"):
            raise UserError(
                "train needs a recipe first: sidebranch train RECIPE [--flag value ...]; see: sidebranch recipes"
            )
        recipe_name, flags = arguments[1], arguments[2:]
        arguments = ["train", *recipe.flags(recipe.find(recipe_name)), *flags]
    try:
        parsed = parser.parse_args(arguments)
    except ArgumentError as error:
        verb = arguments[0]
        if verb not in verbs and not verb.startswith("-"):
            raise UserError(f"no command '{verb}'; {nearest(verb, verbs)}") from error
        valid = [*recipe.keys(as_dict(Config())), "resume", "output", "config"] if verb == "train" else []
        in_file = re.search("does not accept|parsing config", str(error))
        where = f"{recipe_name}: " if recipe_name and in_file else ""
        raise UserError(where + recipe.explain(error, valid)) from error
    verb = parsed.subcommand
    options = parsed[verb]
    if verb == "train":
        return _train(verbs["train"], options, recipe_name or "", flags)
    run = {
        "demo": _demo,
        "eval": _eval,
        "export": _export,
        "recipes": _recipes,
        "report": _report,
        "branches": _branches,
        "prepare": run_prepare,
    }
    return run[verb](options)


def _parser() -> tuple[ArgumentParser, dict[str, ArgumentParser]]:
    plain = partial(ArgumentParser, exit_on_error=False, allow_abbrev=False, formatter_class=_Help)
    parser = plain(prog="sidebranch", description="Train image classifiers with side branches, ship them without.")
    commands = parser.add_subcommands(required=True, metavar="COMMAND")
    train_usage = "sidebranch train RECIPE [--resume] [--output DIR] [--FIELD VALUE ...]"
    verbs = {
        "demo": plain(description=DEMO_HELP),
        "train": recipe.config_parser(description=TRAIN_HELP, usage=train_usage, formatter_class=_Help),
        "eval": plain(description=EVAL_HELP),
        "export": plain(description=EXPORT_HELP),
        "recipes": plain(description="List the shipped recipes."),
        "report": plain(description=REPORT_HELP),
        "branches": plain(description=BRANCHES_HELP),
        "prepare": plain(description=PREPARE_HELP),
    }
    demo = verbs["demo"]
    demo.add_argument("--output", type=str, default="demo", help="Folder for the runs and the report.")
    demo.add_argument("--seeds", type=int, default=5, help="Runs of each method.")
    run = verbs["train"]
    run.add_argument("--output", type=str, default="", help="Default: a new runs/RECIPE-METHOD-seedSEED.")
    run.add_argument("--resume", action="store_true", help="Go on with the run of this config, or in --output.")
    evaluate = verbs["eval"]
    evaluate.add_argument("run", type=str, help="A run folder; with --weights, a recipe.")
    evaluate.add_argument("--checkpoint", choices=["last", "best"], default="last", help="Which of its checkpoints.")
    evaluate.add_argument("--weights", type=str, default="", help="A checkpoint of the papers' public code (.pth).")
    evaluate.add_argument("--data.root", type=str, default="", help="Where the data lie, if they have moved.")
    evaluate.add_argument("--eval.metric", type=Metric, default=None, help="Re-ID: another distance.")
    evaluate.add_argument("--eval.flip", type=bool, default=None, help="Re-ID: average with mirrored images.")
    evaluate.add_argument("--eval.chunk", type=int, default=None, help="Re-ID: queries ranked at a time.")
    export = verbs["export"]
    export.add_argument("run", type=str, help="A run folder; with --weights, a recipe.")
    export.add_argument("--checkpoint", choices=["last", "best"], default="last", help="Which of its checkpoints.")
    export.add_argument("--weights", type=str, default="", help="A checkpoint of the papers' public code (.pth).")
    export.add_argument("--output", type=str, default="model.safetensors", help="The file.")
    growth = Growth()
    shown = verbs["branches"]
    shown.add_argument("backbone", type=str, help="timm's name of the network.")
    shown.add_argument("--kind", choices=["default", "paper", "auto"], default="default", help="Which branches.")
    shown.add_argument("--at", type=str, nargs="+", default=[], help="Modules to fork at.")
    shown.add_argument("--count", type=int, default=2, help="How many branches, without --at.")
    shown.add_argument("--depth", type=float, default=growth.depth, help="Blocks kept in the farther: a share. Auto.")
    shown.add_argument("--width", type=float, default=growth.width, help="The nearest's channels, by main's. Auto.")
    shown.add_argument("--num-classes", type=int, default=1000, help="Classes.")
    shown.add_argument("--input-size", type=int, nargs=3, default=[], help="Channels, height, width of an image.")
    shown.add_argument("--small-input", action="store_true", help="Adapt the stem to images of 32x32 to 64x64.")
    shown.add_argument("--json", action="store_true", help="The same for programs.")
    report = verbs["report"]
    report.add_argument("runs", type=str, nargs="+", help="Run folders.")
    report.add_argument("--output", type=str, default="report.html", help="The page.")
    report.add_argument("--queries", type=str, nargs="+", default=[], help="Re-ID: files of queries to show.")
    report.add_argument("--data.root", type=str, default="", help="Re-ID: where the images lie, if they have moved.")
    for name, verb in verbs.items():
        first = (verb.description or "").splitlines()[0]
        commands.add_subcommand(name, verb, help=first)
    add_kinds(verbs["prepare"], plain)
    return parser, verbs


def _train(parser: ArgumentParser, options: Namespace, recipe_name: str, flags: Sequence[str]) -> int:
    config = recipe.to_config(parser, options)
    if not config.name:
        config = replace(config, name=recipe.name_of(recipe_name))
    if config.runtime.replicas > 1:
        return _train_at_once(config, options, recipe_name, flags)
    folder = _folder_of(options.output, Path(recipe_name), config, options.resume)
    train(config, folder, resume=options.resume, reporter=ConsoleReporter())
    if is_main_process():
        write_report([read_record(folder)], folder.report, folder.root.name)
        print(f"the plain backbone: {folder.weights}\nthe page: {folder.report}")
    leave()
    return 0


def _train_at_once(config: Config, options: Namespace, recipe_name: str, flags: Sequence[str]) -> int:
    """The same command for each of the seeds, at once."""
    check(config)
    alone = replace(config, runtime=replace(config.runtime, replicas=1))
    commands = {}
    for seed in range(config.seed, config.seed + config.runtime.replicas):
        output = f"{options.output}/seed{seed}" if options.output else ""
        folder = _folder_of(output, Path(recipe_name), replace(alone, seed=seed), options.resume)
        command = [sys.executable, "-m", "sidebranch", "train", recipe_name]
        command += [flag for flag in flags if flag != "--resume"]
        command += ["--seed", str(seed), "--runtime.replicas", "1", "--output", str(folder.root)]
        commands[str(seed)] = command + (["--resume"] if folder.is_used() else [])
    ended = run_at_once(commands, threads=max(1, cores() // len(commands)))
    for seed, status in ended.items():
        if status:
            print(f"sidebranch: the run of seed {seed} ended with status {status}", file=sys.stderr)
    return max(ended.values())


def _folder_of(output: str, source: Path, config: Config, resume: bool) -> RunFolder:
    """The run folder: the one asked for; to resume, the run that the recipe is of; else a fresh one under runs/."""
    if output:
        folder = RunFolder(Path(output))
        if folder.is_used() and not resume:
            raise UserError(f"'{output}' holds a run already; add --resume to go on with it, or give another --output")
        return folder
    of_source = RunFolder(source if source.is_dir() else source.parent)
    is_a_run = source.is_dir() or source.name == of_source.config.name
    if resume and is_a_run and source.exists() and of_source.last.exists():
        return of_source
    base = Path("runs") / f"{config.name}-{config.method}-seed{config.seed}"
    names = [base, *(base.with_name(f"{base.name}-{count}") for count in range(2, 1000))]
    folders = [RunFolder(each) for each in names]
    used = [folder for folder in folders if folder.is_used()]
    same = [folder for folder in used if is_of(folder, config)]
    unfinished = [folder for folder in same if not folder.weights.exists()]
    if not resume:
        if unfinished:
            print(f"'{unfinished[-1].root}' holds an unfinished run of this config: --resume goes on with it.")
            print("This is a new one.")
        return next(folder for folder in folders if not folder.is_used())
    return [folders[0], *used, *same, *unfinished][-1]


def _eval(options: Namespace) -> int:
    if options.weights:
        errors = evaluate_reference(recipe.find(options.run), options.weights, options["data.root"])
        title = f"{options.weights} as {options.run}"
    else:
        folder = RunFolder(Path(options.run))
        asked = {name: options[f"eval.{name}"] for name in ("metric", "flip", "chunk")}
        wishes = {name: value for name, value in asked.items() if value is not None}
        result = evaluate_run(folder, options.checkpoint, options["data.root"], wishes)
        errors, title = result.errors, f"{folder.root}, {options.checkpoint} checkpoint: epoch {result.epoch}"
        print("".join(f"{note}\n" for note in result.notes), end="")
    table = Table(title=title, title_justify="left")
    headings = FOUND if "mAP" in errors["main"] else ERRORS
    for heading in ("classifier", *headings.values()):
        table.add_column(heading, justify="left" if heading == "classifier" else "right")
    for name, values in errors.items():
        table.add_row(name, *(f"{values[key]:.{4 if key == 'loss' else 3}f}" for key in headings))
    Console(highlight=False).print(table)
    return 0


def _export(options: Namespace) -> int:
    path = Path(options.output)
    if path.suffix != ".safetensors":
        raise UserError(f"--output is '{path}'; the file is safetensors, so call it {path.with_suffix('.safetensors')}")
    if options.weights:
        name = export_reference(recipe.find(options.run), options.weights, path)
    else:
        name = export_run(RunFolder(Path(options.run)), options.checkpoint, path)
    print(f"the plain backbone, {name}: {path}")
    return 0


def _recipes(options: Namespace) -> int:
    configs = {name: recipe.load(path) for name, path in recipe.shipped().items()}
    console = Console(highlight=False)
    for finds, title in {False: "The papers' top-1 error, %", True: "Re-identification: the papers' mAP, %"}.items():
        table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0))
        for heading in ("recipe", "source"):
            table.add_column(heading, no_wrap=True)
        for method in METHODS:
            table.add_column(label(method), justify="right", no_wrap=True)
        for name, config in configs.items():
            if (config.data.name == "reid") == finds:
                published = (f"{config.published[each]:.2f}" if each in config.published else "" for each in METHODS)
                table.add_row(name, config.about, *published)
        console.print(table)
        console.print()
    print("Run one:   sidebranch train RECIPE --method baseline|dsl|dks|dhm")
    print("Read one:  sidebranch train RECIPE --print-config")
    return 0


def _report(options: Namespace) -> int:
    records = [read_record(RunFolder(Path(run))) for run in options.runs]
    write_report(records, Path(options.output), "Runs compared", options.queries, options["data.root"])
    print(f"{verdict(records)}\nthe page: {options.output}")
    return 0


def _branches(options: Namespace) -> int:
    if min([*options.input_size, options.num_classes]) < 1:
        raise UserError("--num-classes and the three numbers of --input-size must be at least 1")
    size = tuple(options.input_size)
    model = ModelConfig(name=options.backbone, small_input=options.small_input)
    with torch.device("meta"):
        backbone = build_adapted(model, options.num_classes, size[0] if size else 3)
    with torch.device("meta"), warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always", UserWarning)
        net = attach(
            backbone,
            None if options.kind == "default" else options.kind,
            depth=options.count,
            at=options.at,
            growth=Growth(options.depth, options.width),
            input_size=size or None,
        )
    shown = anatomy(net, size or None, [str(note.message) for note in notes])
    if options.json:
        print(json.dumps(asdict(shown), indent=1))
    else:
        console = Console(highlight=False)
        console.print(forks_tree(options.backbone, shown))
        console.print(cost_table(shown))
        console.print(COST_NOTE)
        for note in shown.notes:
            console.print(f"Note: {note}.")
    return 0


def _demo(options: Namespace) -> int:
    if options.seeds < 1:
        raise UserError(f"--seeds is {options.seeds}; train at least one")
    root = Path(options.output)
    config = recipe.load(recipe.find("digits/demo"))
    console = Console(highlight=False)
    console.print(
        "1,297 digits to learn from, half of their labels replaced at random;\n500 to be judged by. "
        f"Training without side branches (baseline) and\nwith them (DHM); seeds: {options.seeds}.\n"
    )
    folders = run_grid(config, ("baseline", "dhm"), range(options.seeds), root, ConsoleReporter(table=False))
    records = [read_record(folder) for folder in folders]
    console.print(_demo_table(records))
    page = root / "report.html"
    write_report(records, page, "Half of the training labels replaced: baseline against DHM")
    console.print(f"\n{verdict(records)}")
    console.print(f"The curves: {page}", soft_wrap=True)
    return 0


def _demo_table(records: Sequence[Record]) -> Table:
    summary = summarise(records)
    table = Table(title="Top-1 error on 500 validation digits, %", title_justify="left")
    table.add_column("")
    for kind in summary:
        table.add_column(kind, justify="right")
    for column in summary["DHM"]:
        cells = [str(errors.get(column, "")) for errors in summary.values()]
        table.add_row("main (what ships)" if column == "main" else column, *cells)
    table.add_section()
    counts = [group[0].environment["parameters"] for group in by_kind(records).values()]
    table.add_row("parameters shipped", *(f"{each['shipped']:,}" for each in counts))
    table.add_row("parameters in training", *(f"{each['training']:,}" for each in counts))
    return table
