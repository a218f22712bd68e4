"""`sidebranch predict`: a model and photographs to answers."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser

from sidebranch.cli.parsing import parse, plain_parser
from sidebranch.cli.texts import PREDICT_HELP
from sidebranch.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

SHOWN = 20  # skipped files that are named
WIDE = 10_000  # columns where no terminal folds the table
SKIPPED = 1  # exit status, if a file was skipped


def parser() -> ArgumentParser:
    made = plain_parser("predict", PREDICT_HELP)
    made.add_argument("model", type=str, help="A run, an exported folder, or a file of weights.")
    made.add_argument("images", type=str, nargs="+", help="Files, folders, or patterns.")
    made.add_argument("--classifier", type=str, default="", help="Whose answer counts: main, b1, ..., ensemble.")
    made.add_argument("--top", type=int, default=3, help="Answers an image.")
    made.add_argument("--format", choices=["table", "csv", "jsonl"], default="table", help="Of the output.")
    made.add_argument("--output", type=str, default="", help="A file; the terminal, if left out.")
    made.add_argument("--explain", type=str, default="", help="Also write a page: every classifier's opinion.")
    made.add_argument("--batch-size", type=int, default=64, help="Images at a time.")
    made.add_argument("--checkpoint", choices=["last", "best"], default="last", help="Of a run.")
    made.add_argument("--recipe", type=str, default="", help="Of a checkpoint of the papers' public code (.pth).")
    return made


def run(arguments: Sequence[str]) -> int:
    options = parse(parser(), arguments)
    for name in ("top", "batch_size"):
        if options[name] < 1:
            raise UserError(f"--{name.replace('_', '-')} is {options[name]}; it must be at least 1")
    from sidebranch.cli.running import quiet_libraries
    from sidebranch.data.augmentation.batched import Normalisation
    from sidebranch.predict.model import EXIT, open_model
    from sidebranch.predict.page import Explained, Opinion, write_page
    from sidebranch.predict.photos import batches, find

    quiet_libraries()
    check_outputs(options.output, options.explain)
    paths = find(options.images)
    model = open_model(Path(options.model), options.classifier, options.checkpoint, options.recipe)
    if model.size[1] != model.size[2]:
        raise UserError("this model re-identifies and has no classes to answer; see: sidebranch embed --help")
    scale = Normalisation(tuple(model.about["mean"]), tuple(model.about["std"]))
    top = min(options.top, len(model.classes))
    skipped: dict[str, str] = {}
    photos: list[Explained] = []
    streams = options.format != "table" and not options.output and sys.stdout.isatty()  # a bar would be in between
    with writing(options.output) as out:
        write = WRITERS[options.format](out, top, model.names, bool(model.exits))
        with progress(len(paths), not streams) as done:
            for batch in batches(paths, model.transform, scale, options.batch_size, bool(options.explain), done):
                skipped |= batch.skipped
                answers = model.run(batch.images) if batch.paths else {}
                for place, path in enumerate(batch.paths):
                    told = {name: _ranked(answers[name][place], model.classes, top) for name in model.names}
                    write(path, told, model.exits[int(answers[EXIT][place])] if model.exits else "")
                    if options.explain:
                        opinions = tuple(Opinion(name, *each[0]) for name, each in told.items())
                        photos.append(Explained(path, batch.thumbs[place], opinions))
        write("", {}, "")
    if options.explain:
        write_page(photos, Path(options.explain), f"What {Path(options.model).resolve().name} says")
        print(f"the page: {options.explain}", file=sys.stderr)
    if options.output:
        print(f"{len(paths) - len(skipped):,} images: {options.output}", file=sys.stderr)
    return report_skipped(skipped, len(paths))


def _ranked(probabilities: Tensor, classes: Sequence[str], top: int) -> list[tuple[str, float]]:
    values, places = probabilities.topk(top)
    return [(classes[int(place)], float(value)) for value, place in zip(values, places, strict=True)]


def check_outputs(*outputs: str) -> None:
    """Refuses what cannot be written before the work is done.

    Raises:
        UserError: an output is a folder, lies below a file, or is given twice.
    """
    given = [Path(each) for each in outputs if each]
    for path in given:
        if path.is_dir():
            raise UserError(f"'{path}' is a folder; give a file to write")
        above = next((each for each in path.absolute().parents if each.exists()), path)
        if not above.is_dir():
            raise UserError(f"'{path}' cannot be written: '{above}' is a file")
    if len({each.absolute() for each in given}) < len(given):
        raise UserError(f"'{given[0]}' is given for two outputs")


@contextmanager
def writing(output: str) -> Iterator[Any]:
    """The output: a file, written whole, or the terminal."""
    if not output:
        yield sys.stdout
        return
    from sidebranch.runs.atomic_files import write_text

    text = io.StringIO()
    yield text
    write_text(Path(output), text.getvalue())


@contextmanager
def progress(count: int, shown: bool = True) -> Iterator[Callable[[int], object]]:
    """A bar on the terminal's error stream; the function moves it on."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("images"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(
        *columns, console=Console(stderr=True), transient=True, disable=not (shown and sys.stderr.isatty())
    ) as bar:
        task = bar.add_task("", total=count)
        yield lambda more: bar.advance(task, more)


def report_skipped(skipped: dict[str, str], count: int) -> int:
    """Names the files that could not be read; the exit status."""
    for path, what in list(skipped.items())[:SHOWN]:
        print(f"sidebranch: skipped '{path}': {what}", file=sys.stderr)
    if len(skipped) > SHOWN:
        print(f"sidebranch: and {len(skipped) - SHOWN} more", file=sys.stderr)
    if skipped:
        print(f"sidebranch: {len(skipped)} of {count} images were skipped", file=sys.stderr)
    return SKIPPED if skipped else 0


Told = dict[str, list[tuple[str, float]]]  # classifier to its best answers
Write = Callable[[str, Told, str], None]  # an image, and the exit that answered


def _as_table(out: Any, top: int, names: Sequence[str], has_exits: bool) -> Write:
    """A table at the end, of the classifier that counts."""
    rows: list[tuple[str, list[str]]] = []

    def write(path: str, told: Told, exit: str) -> None:
        if told:
            first = [exit] if has_exits else []
            rows.append((path, [*first, *(f"{name} {100 * value:.1f} %" for name, value in told[names[0]])]))
        elif rows:
            further = [f"{place}." for place in range(2, top + 1)]
            print_table(["image", *(["exit"] if has_exits else []), names[0], *further], rows, out)

    return write


def print_table(heads: Sequence[str], rows: Sequence[tuple[str, list[str]]], out: Any, before: int = 0) -> None:
    """Images and a row each; on a terminal below their common folder, with as many columns as it has room for.

    Args:
        heads: of the columns, the image's among them.
        rows: an image and its other columns each.
        out: the stream.
        before: how many of these stand before the image.
    """
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table

    top = os.path.commonpath([os.path.dirname(path) for path, _ in rows]) if out.isatty() and len(rows) > 1 else ""
    console = Console(file=out, highlight=False, markup=False, width=None if out.isatty() else WIDE)
    lines = [[*cells[:before], os.path.relpath(path, top) if top else path, *cells[before:]] for path, cells in rows]
    widths = [max(map(cell_len, column)) + 1 for column in zip(heads, *lines, strict=True)]
    count = max(before + 2, sum(width <= console.width + 1 for width in accumulate(widths)))
    table = Table(box=None, pad_edge=False)
    for place, name in enumerate(heads[:count]):
        table.add_column(name, justify="right" if place < before else "left", overflow="fold")
    for line in lines:
        table.add_row(*line[:count])
    if top:
        console.print(f"in {top}:", soft_wrap=True)
    console.print(table)


def _as_csv(out: Any, top: int, names: Sequence[str], has_exits: bool) -> Write:
    writer = csv.writer(out, lineterminator="\n")
    ranks = range(1, top + 1)
    others = [f"{word}_{name}" for name in names[1:] for word in ("class", "probability")]
    others += ["exit"] if has_exits else []
    writer.writerow(["image", *(f"{word}{rank}" for rank in ranks for word in ("class", "probability")), *others])

    def write(path: str, told: Told, exit: str) -> None:
        if told:
            first = [word for name, value in told[names[0]] for word in (name, f"{value:.6f}")]
            rest = [word for name in names[1:] for word in (told[name][0][0], f"{told[name][0][1]:.6f}")]
            writer.writerow([path, *first, *rest, *([exit] if has_exits else [])])

    return write


def _as_jsonl(out: Any, top: int, names: Sequence[str], has_exits: bool) -> Write:
    def answers(ranked: list[tuple[str, float]]) -> list[dict[str, Any]]:
        return [{"class": name, "probability": round(value, 6)} for name, value in ranked]

    def write(path: str, told: Told, exit: str) -> None:
        if told:
            row = {"image": path, "classifier": names[0], "answers": answers(told[names[0]])}
            row |= {"exit": exit} if has_exits else {}
            row |= {"others": {name: answers(told[name][:1])[0] for name in names[1:]}} if len(names) > 1 else {}
            print(json.dumps(row, ensure_ascii=False), file=out, flush=out is sys.stdout)

    return write


WRITERS: dict[str, Callable[[Any, int, Sequence[str], bool], Write]] = {
    "table": _as_table,
    "csv": _as_csv,
    "jsonl": _as_jsonl,
}
