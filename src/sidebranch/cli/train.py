"""`sidebranch train`: a recipe and flags to a run."""

from __future__ import annotations

import re
import shlex
import sys
from argparse import ArgumentError
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from sidebranch.cli.parsing import Help
from sidebranch.cli.texts import TRAIN_HELP
from sidebranch.config import recipe
from sidebranch.config.compare import as_dict, leaves
from sidebranch.config.schema import Config
from sidebranch.config.validate import validate
from sidebranch.errors import UserError
from sidebranch.runs.folder import RunFolder
from sidebranch.runs.weight_files import with_hashes

USAGE = "sidebranch train RECIPE [--resume] [--output DIR] [--FIELD VALUE ...]"
HELP_FLAGS = ("-h", "--help")


def parser() -> ArgumentParser:
    """A flag for every field of the config, and those of the command."""
    made = recipe.config_parser(prog="sidebranch train", description=TRAIN_HELP, usage=USAGE, formatter_class=Help)
    made.add_argument("--output", type=str, default="", help="Run folder. Default: a new runs/RECIPE-METHOD-seedSEED.")
    made.add_argument("--resume", action="store_true", help="Resume the run of this config, or the one in --output.")
    made.add_argument("--print-config", action="store_true", help="Print the fields that differ from the defaults.")
    made.add_argument("--full", action="store_true", help="With --print-config: print all fields.")
    return made


def run(arguments: Sequence[str]) -> int:
    made = parser()
    if arguments and arguments[0] in HELP_FLAGS:
        made.print_help()
        return 0
    if not arguments or arguments[0].startswith("-"):
        raise UserError(
            "train needs a recipe first: sidebranch train RECIPE [--flag value ...]; see: sidebranch recipes"
        )
    name, flags = arguments[0], list(arguments[1:])
    from_recipe = recipe.flags(recipe.find(name))
    if any(flag in flags for flag in HELP_FLAGS):
        values = leaves(as_dict(recipe.parse(from_recipe, name)))
        made.set_defaults({key: value for key, value in values.items() if key != "base"})
        made.print_help()
        return 0
    try:
        options = made.parse_args([*from_recipe, *flags])
    except ArgumentError as error:
        valid = [*recipe.keys(as_dict(Config())), "resume", "output", "config", "print-config", "full"]
        in_file = re.search("does not accept|parsing config|is not expected|is not accepted", str(error))
        raise UserError((f"{name}: " if in_file else "") + recipe.explain(error, valid)) from error
    config = recipe.to_config(made, options)
    validate(config)
    config = with_hashes(replace(config, name=recipe.run_name(name, config)), options.resume)
    if options.full and not options.print_config:
        raise UserError("--full needs --print-config")
    if options.print_config:
        print(recipe.dump(config) if options.full else recipe.dump_changes(config), end="")
        return 0
    if config.runtime.replicas > 1:
        return _train_replicas(config, options, name, flags)
    return _train(config, options, name)


def _train(config: Config, options: Namespace, name: str) -> int:
    from sidebranch.cli.running import exit_status
    from sidebranch.distributed.processes import is_main_process
    from sidebranch.inspect.record import read_record
    from sidebranch.inspect.report import write_report
    from sidebranch.runs.console import ConsoleReporter
    from sidebranch.train.loop import train

    folder = _folder_of(options.output, Path(name), config, options.resume)

    def run_all() -> None:
        train(config, folder, resume=options.resume, reporter=ConsoleReporter())
        if is_main_process():
            write_report([read_record(folder)], folder.report, folder.root.name)
            print(f"the plain backbone: {folder.weights}\nthe report: {folder.report}")

    return exit_status(run_all, f"sidebranch train {shlex.quote(str(folder.root))} --resume")


def _train_replicas(config: Config, options: Namespace, name: str, flags: Sequence[str]) -> int:
    """The same command for each of the seeds, at the same time."""
    from sidebranch.device import cores
    from sidebranch.study.replicas import run_replicas

    single = replace(config, runtime=replace(config.runtime, replicas=1))
    commands = {}
    for seed in range(config.seed, config.seed + config.runtime.replicas):
        output = f"{options.output}/seed{seed}" if options.output else ""
        folder = _folder_of(output, Path(name), replace(single, seed=seed), options.resume)
        command = [sys.executable, "-m", "sidebranch", "train", name]
        command += [flag for flag in flags if flag != "--resume"]
        command += ["--seed", str(seed), "--runtime.replicas", "1", "--output", str(folder.root)]
        commands[str(seed)] = command + (["--resume"] if folder.is_used() else [])
    statuses = run_replicas(commands, threads=max(1, cores() // len(commands)))
    for seed, status in statuses.items():
        if status:
            print(f"sidebranch: the run of seed {seed} ended with status {status}", file=sys.stderr)
    return max(statuses.values())


def _folder_of(output: str, source: Path, config: Config, resume: bool) -> RunFolder:
    """The folder of --output; on resume, the folder of this config's run; else a new one under runs/."""
    if output:
        folder = RunFolder(Path(output))
        if folder.is_used() and not resume:
            raise UserError(f"'{output}' has a run already; add --resume to continue it, or give another --output")
        return folder
    of_source = RunFolder(source if source.is_dir() else source.parent)
    is_a_run = source.is_dir() or source.name == of_source.config.name
    if resume and is_a_run and source.exists() and of_source.last.exists():
        return of_source
    from sidebranch.runs.resume import is_run_of

    base = Path("runs") / f"{config.name}-{config.method}-seed{config.seed}"
    names = [base, *(base.with_name(f"{base.name}-{count}") for count in range(2, 1000))]
    folders = [RunFolder(each) for each in names]
    used = [folder for folder in folders if folder.is_used()]
    same = [folder for folder in used if is_run_of(folder, config)]
    unfinished = [folder for folder in same if not folder.weights.exists()]
    if not resume:
        if unfinished:
            print(f"'{unfinished[-1].root}' has an unfinished run of this config: --resume continues it.")
            print("This is a new run.")
        elif same:
            print(f"'{same[-1].root}' has a finished run of this config. This is a new run.")
        return next(folder for folder in folders if not folder.is_used())
    return [folders[0], *used, *same, *unfinished][-1]
