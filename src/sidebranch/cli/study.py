"""`sidebranch study`: a table of runs, trained to its end."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from sidebranch.cli.parsing import options_of, parse, plain_parser
from sidebranch.cli.texts import STUDY_HELP
from sidebranch.config import recipe
from sidebranch.config.compare import as_dict
from sidebranch.config.schema import Config
from sidebranch.errors import UserError, nearest
from sidebranch.runs.atomic_files import write_text
from sidebranch.runs.lock import only_process
from sidebranch.study.cells import INDEX, Cell, adopt, plan, read_cells, write_cells
from sidebranch.study.spec import read_study, shipped

SETTINGS = "study.json"  # in the study's folder: the spec and the flags it was started with

SIGNALLED = 128  # an exit status above it: that number of a signal more


def parser() -> ArgumentParser:
    made = plain_parser("study", STUDY_HELP)
    made.add_argument("spec", type=str, help="A shipped study, a YAML file, or a study's folder, to go on.")
    made.add_argument("--output", type=str, default="", help="The study's folder. Default: studies/NAME.")
    made.add_argument("--seeds", type=int, default=0, help="Runs of each row. Default: the study's own.")
    text = "Rows with all of these words in recipe, network or variant."
    made.add_argument("--only", type=str, nargs="+", default=[], help=text)
    made.add_argument("--parallel", type=int, default=1, help="Processes at a time; they share cores and GPUs out.")
    made.add_argument(
        "--launcher", choices=["local", "ray", "slurm"], default="local", help="Who starts the processes."
    )
    made.add_argument("--cpus", type=int, default=0, help="Threads of a process. Default: the cores, shared out.")
    made.add_argument(
        "--gpus",
        type=float,
        default=0.0,
        help="GPUs of a process: 1, or a share: 0.5. Default here: one, if any; else none.",
    )
    made.add_argument("--ray.address", type=str, default="", help="Of a Ray cluster. Default: one on this machine.")
    made.add_argument("--cell", type=str, default="", help="Train this cell of a started study alone.")
    made.add_argument("--retry", action="store_true", help="Train failed cells again.")
    made.add_argument("--adopt", type=str, nargs="+", default=[], help="Take finished runs from these folders.")
    made.add_argument("--status", action="store_true", help="Show the cells; train nothing.")
    made.add_argument("--table", action="store_true", help="Print the table of what is done; train nothing.")
    return made


def run(arguments: Sequence[str]) -> int:
    own, flags = split_flags(arguments)
    if not own and not flags:
        raise UserError(f"study needs a spec: sidebranch study {'|'.join(list(shipped())[:3])}|...|FILE|FOLDER")
    made = parser()
    options = parse(made, own, [*options_of(made), *recipe.keys(as_dict(Config()))])
    if options.seeds == 0 and "--seeds" in " ".join(own):
        raise UserError("--seeds is 0; it must be at least 1")
    if options.parallel < 1 or options.seeds < 0 or options.cpus < 0 or options.gpus < 0:
        raise UserError("--parallel and --seeds must be at least 1, --cpus and --gpus at least 0")
    if any(each.split("=")[0] == "--seed" for each in flags):
        raise UserError("a study gives each run its seed; --seeds N trains every row with N of them")
    if any(each.split("=")[0] == "--runtime.replicas" for each in flags):
        raise UserError("a study trains a seed a cell; --parallel N trains N of them at a time")
    if options["ray.address"] and options.launcher != "ray":
        raise UserError("--ray.address needs --launcher ray")
    is_as_started = not (flags or options.seeds or options.only or options.adopt)
    if options.cell:
        return _train_one(options)
    if (options.status or options.table) and is_as_started:
        for place in (Path(options.spec), _root_of(options)):  # nothing is parsed: at once, also of hundreds of cells
            if (place / INDEX).is_file():
                return _show(read_cells(place), options)
    root, spec, seeds, only, flags = _settings(options, flags)
    study = read_study(spec)
    cells, configs = plan(study, root, study.seeds_of(seeds), only, flags)
    wanted = None
    if (Path(options.spec) / SETTINGS).is_file() and options.only:  # the table keeps its other rows
        wanted = plan(study, root, study.seeds_of(seeds), [*only, *options.only], flags)[1]
    if options.status or options.table:
        return _show(cells, options)
    if options.launcher == "local":  # before anything of an earlier start is changed
        _need_data(configs)
    root.mkdir(parents=True, exist_ok=True)
    with only_process(root, "trains the study in", "wait for it, or stop it") as is_locked:
        if not is_locked:
            print("this file system has no locks: a second study in this folder would not be noticed")
        write_text(root / SETTINGS, json.dumps({"spec": spec, "seeds": seeds, "only": only, "flags": flags}) + "\n")
        write_cells(root, cells, configs)
        for source in options.adopt:
            for name in adopt(cells, Path(source)):
                print(f"adopted {name}")
        status = _train(cells, options, root, wanted, next(iter(configs.values())).runtime.accelerator)
        _write(cells, configs, root)
    return status


def _need_data(configs: Mapping[str, Config]) -> None:
    """Raises if a folder of images is not there."""
    for data in dict.fromkeys(config.data for config in configs.values()):
        is_path = "://" not in data.root and not data.root.startswith("hf:")
        if data.name in ("folder", "reid") and is_path and not Path(data.root).exists():
            raise UserError(f"there is no '{data.root}'; give the images' folder as --data.root")


def _train_one(options: Namespace) -> int:
    """An element of a job array: one cell, beside those of other elements."""
    from sidebranch.device import cores
    from sidebranch.study.process import train_cell

    known = {cell.name: cell for cell in read_cells(Path(options.spec))}
    if options.cell not in known:
        raise UserError(f"the study in '{options.spec}' has no cell '{options.cell}'; {nearest(options.cell, known)}")
    cell = known[options.cell]
    status = train_cell(cell, options.cpus or cores())
    state = cell.state()
    print(f"{cell.name}: {state.kind}, {state.epochs} of {cell.epochs} epochs {state.message}".rstrip())
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
        seeds = options.seeds or known["seeds"]
        return Path(options.spec).resolve(), known["spec"], seeds, known["only"], [*known["flags"], *flags]
    root = _root_of(options)
    is_file = options.spec not in shipped() and Path(options.spec).is_file()
    spec = str(Path(options.spec).resolve()) if is_file else options.spec
    return root, spec, options.seeds, options.only, flags


def _root_of(options: Namespace) -> Path:
    """The folder of a study that is given by its name or file."""
    return Path(options.output or Path("studies") / Path(options.spec).stem).resolve()


def _train(
    cells: Sequence[Cell], options: Namespace, root: Path, wanted: Collection[str] | None, accelerator: str
) -> int:
    """Trains what is not done, with a live table; of a study that goes on with --only, the wanted cells."""
    from rich.console import Console
    from rich.live import Live

    from sidebranch.device import cores
    from sidebranch.study import local
    from sidebranch.study.progress import Progress

    progress = Progress(cells)
    damaged = progress.of("damaged")
    for cell in damaged:
        print(f"sidebranch: {cell.name} is damaged: {progress.states[cell.name].message}", file=sys.stderr)
    todo = progress.of("waiting", "started", *(("failed",) if options.retry else ()))
    todo = [cell for cell in todo if wanted is None or cell.name in wanted]
    parallel = min(options.parallel, len(todo) or 1)
    slots: list[str | None] = [None] * parallel
    if options.launcher == "local" and todo and accelerator != "cpu" and (gpus := local.gpus_here()):
        slots = local.slots_of(parallel, gpus, local.free_memory(gpus), options.gpus or 1)
    cpus = options.cpus or max(1, cores() // len(slots))
    if options.launcher == "slurm":
        from sidebranch.study.slurm import SCRIPT, array_script

        if not todo:
            raise UserError("no cell of this study is left to train")
        write_text(root / SCRIPT, array_script(todo, root, cpus, options.gpus, options.parallel))
        print(f"{len(todo)} cells: sbatch {root / SCRIPT}; when they have ended: sidebranch study {root}")
        return 0
    console = Console(highlight=False)
    with Live(console=console, refresh_per_second=2, transient=True) as live:
        ended = {cell.name for cell in progress.of("done", "failed")}

        def watch(running: Sequence[Cell]) -> None:
            progress.update(running)
            live.update(progress.table())
            for cell in () if console.is_terminal else progress.of("done", "failed"):  # a log has no live table
                if cell.name not in ended:
                    ended.add(cell.name)
                    print(progress.told(cell), flush=True)

        if options.launcher == "ray" and todo:
            from sidebranch.study import ray_tasks

            status = ray_tasks.run_cells(todo, options["ray.address"], cpus, options.gpus, parallel, watch)
        else:
            progress.parallel = len(slots)
            status = local.run_cells(todo, slots, cpus, watch)
    progress = Progress(cells, parallel)
    console.print(progress.table())
    for cell in progress.of("failed"):
        message = progress.states[cell.name].message.removeprefix("sidebranch: ")
        print(f"sidebranch: {cell.name} failed: {message}; once that is mended: --retry", file=sys.stderr)
    if status > SIGNALLED:
        print(f"stopped, all is saved; go on: sidebranch study {root}")
    return status or int(bool(damaged or progress.of("failed")))


def _show(cells: Sequence[Cell], options: Namespace) -> int:
    from rich.console import Console

    from sidebranch.study.costs import read_costs
    from sidebranch.study.progress import Progress
    from sidebranch.study.results import lines, markdown, records

    if not options.table:
        Console(highlight=False).print(Progress(cells).table())
        return 0
    found = records(cells)
    if not found:
        raise UserError("no cell of this study is done yet")
    print_table(markdown(lines(cells, found, read_costs(cells[0].logs.parent))))
    return 0


def _write(cells: Sequence[Cell], configs: dict[str, Config], root: Path) -> None:
    """results.jsonl, table.md, table.csv and the page, of what is done."""
    from sidebranch.inspect.report import write_report
    from sidebranch.study.costs import count_costs
    from sidebranch.study.results import comma_separated, json_line, lines, markdown, named, records, verdict

    found = records(cells)
    if not found:
        return
    macs = count_costs(root, [cell for cell in cells if cell.name in found], configs)
    made = lines(cells, found, macs)
    rows = {json_line(cell, found[cell.name], macs): None for cell in cells if cell.name in found}
    write_text(root / "results.jsonl", "\n".join(rows) + "\n")
    write_text(root / "table.md", markdown(made))
    write_text(root / "table.csv", comma_separated(made))
    shown = {name: [found[each] for each in line.cells] for name, line in named(made).items()}
    write_report(list(found.values()), root / "report.html", root.name, groups=shown, sentences=verdict(made))
    print_table(markdown(made))
    print(f"{root / 'table.md'}, table.csv, results.jsonl, report.html")


def print_table(text: str) -> None:
    """A Markdown table: as it is into a file, else as wide as the terminal, without its empty columns."""
    if not sys.stdout.isatty():
        print(text)
        return
    from rich.console import Console
    from rich.table import Table

    heads, _, *rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in text.splitlines()]
    table = Table()
    shown = [place for place, _ in enumerate(heads) if len({row[place] for row in rows} | {""}) > (1 if place else 2)]
    for place in shown:
        table.add_column(heads[place], justify="left" if heads[place] in ("recipe", "variant") else "right")
    for row in rows:
        table.add_row(*(row[place] for place in shown))
    Console(highlight=False).print(table)
