"""The results of a study: a row a cell, and the table over seeds with the differences to the baseline. No torch."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sidebranch.inspect.record import Record, Spread, read_record, spread
from sidebranch.inspect.significance import Gain, gain
from sidebranch.runs.headline import TOP1
from sidebranch.study.cells import Cell

Macs = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Line:
    """One recipe with one variant, over the seeds that are done.

    Attributes:
        recipe: its name.
        variant: its name.
        values: classifier to its headline metric, in percent.
        best: main's best epoch, in percent; optimistic.
        change: the paired difference to the recipe's baseline; None for the baseline itself, or without one.
        seconds: of training, as a multiple of the baseline's; None without one.
        macs: multiply-adds of a training step, as a multiple of those of main alone; None if they are not known.
        published: the papers' result, in percent; None if there is none.
        missing: cells that are not done.
        cells: those that are.
    """

    recipe: str
    variant: str
    values: dict[str, Spread]
    best: Spread | None
    change: Gain | None
    seconds: float | None
    macs: float | None
    published: float | None
    missing: int
    cells: tuple[str, ...]


def records(cells: Sequence[Cell]) -> dict[str, Record]:
    """Cell to its run, of those that are done."""
    return {cell.name: read_record(cell.folder) for cell in cells if cell.state().kind == "done"}


def lines(cells: Sequence[Cell], found: dict[str, Record], macs: Macs) -> list[Line]:
    """The table, in the order of the cells.

    Args:
        cells: of the study.
        found: cell to its run, of those that are done.
        macs: what a cell trains to the multiply-adds of its classifiers, where they are known.
    """
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.row.recipe, cell.row.variant), []).append(cell)
    made = []
    for (name, variant), group in groups.items():
        reference = _baseline_of(name, group, groups)
        done = [cell for cell in group if cell.name in found]
        values = _by_seed(done, found)
        base = [] if reference is None else [cell for cell in reference if cell.name in found]
        is_baseline = reference is group
        first = found[done[0].name] if done else None
        change = None
        if values and base and not is_baseline and first is not None:
            change = gain(values, _by_seed(base, found), first.images, is_share=first.headline == TOP1)
        times = [found[cell.name].rows[-1]["seconds"] for cell in done]
        base_times = [found[cell.name].rows[-1]["seconds"] for cell in base]
        published = group[0].row.published
        made.append(
            Line(
                name,
                variant,
                {}
                if first is None
                else {key: spread([found[c.name].value(key) for c in done]) for key in first.columns},
                spread([found[cell.name].best for cell in done]) if done else None,
                change,
                sum(times) / len(times) / (sum(base_times) / len(base_times)) if times and base_times else None,
                _times_main(macs.get(done[0].trains)) if done else None,
                published.get("top1", published.get("mAP")),
                len(group) - len(done),
                tuple(cell.name for cell in done),
            )
        )
    return made


def _baseline_of(name: str, group: Sequence[Cell], groups: dict[tuple[str, str], list[Cell]]) -> Sequence[Cell] | None:
    """The group of the same recipe, network and data with nothing but method baseline; else the one called so."""
    wanted, called = _task(group[0].row.settings), None
    for (other, variant), cells in groups.items():
        settings = cells[0].row.settings
        if other != name or settings["method"] != "baseline" or _task(settings) != wanted:
            continue
        if len(settings) == len(_task(settings)) + 1:
            return cells
        called = cells if variant == "baseline" else called
    return called


def _task(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What two variants must share to be compared: the backbone and the data."""
    about = {key: value for key, value in settings.items() if key.startswith(("data.", "model."))}
    return {key: value for key, value in about.items() if key != "model.branches"}


def _times_main(macs: Mapping[str, float] | None) -> float | None:
    return sum(macs.values()) / macs["main"] if macs else None


def _by_seed(cells: Sequence[Cell], found: dict[str, Record]) -> dict[int, float]:
    return {cell.seed: found[cell.name].value("main") for cell in cells}


def named(made: Sequence[Line]) -> dict[str, Line]:
    """The lines with cells that are done, under a name that tells them apart."""
    is_one = len({line.recipe for line in made}) == 1
    return {line.variant if is_one else f"{line.recipe}, {line.variant}": line for line in made if line.cells}


def verdict(made: Sequence[Line]) -> list[str]:
    """Each line with a baseline in a sentence, its difference with the 95 % interval; without one, its value."""
    found = named(made)
    compared = [
        f"{name}: main {line.values['main']} %; compared with the baseline, {line.change} ({_seeds(line)})."
        for name, line in found.items()
        if line.change is not None
    ]
    return compared or [f"{name}: main {line.values['main']} % ({_seeds(line)})." for name, line in found.items()]


def _seeds(line: Line) -> str:
    done, count = len(line.cells), len(line.cells) + line.missing
    return f"{done} of {count} seeds" if line.missing else f"{done} seed{'s' * (done > 1)}"


def markdown(made: Sequence[Line]) -> str:
    """The table in Markdown."""
    columns = list(dict.fromkeys(column for line in made for column in line.values))
    heads = [
        "recipe",
        "variant",
        *columns,
        "main's best epoch",
        "n",
        "main less the baseline's",
        "MACs",
        "time",
        "published",
    ]
    text = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    text += ["| " + " | ".join(_texts(line, columns)) + " |" for line in made]
    return "\n".join(text) + "\n"


def comma_separated(made: Sequence[Line]) -> str:
    """The same table as CSV, with means and standard deviations apart."""
    columns = list(dict.fromkeys(column for line in made for column in line.values))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    pairs = [f"{column} {what}" for column in columns for what in ("mean", "std")]
    writer.writerow(
        ["recipe", "variant", "n", *pairs, "difference", "half width of 95 %", "of", "MACs", "time", "published"]
    )
    for line in made:
        spreads = [line.values.get(column) for column in columns]
        numbers = [value for each in spreads for value in (("", "") if each is None else (each.mean, each.std))]
        change = ("", "", "") if line.change is None else (line.change.points, line.change.half_width, line.change.of)
        count = line.values["main"].count if line.values else 0
        writer.writerow([line.recipe, line.variant, count, *numbers, *change, line.macs, line.seconds, line.published])
    return out.getvalue()


def _texts(line: Line, columns: Sequence[str]) -> list[str]:
    count = line.values["main"].count if line.values else 0
    change = ""
    if line.change is not None:
        half = "" if line.change.half_width is None else f" ± {line.change.half_width:.2f}"
        change = f"{line.change.points:+.2f}{half}" + (" (over images)" if half and line.change.of == "images" else "")
    return [
        line.recipe,
        line.variant,
        *(str(line.values.get(column, "")) for column in columns),
        "" if line.best is None else str(line.best),
        str(count) + (f" of {count + line.missing}" if line.missing else ""),
        change,
        "" if line.macs is None else f"{line.macs:.2f}",
        "" if line.seconds is None else f"{line.seconds:.2f}",
        "" if line.published is None else f"{line.published:.2f}",
    ]


def json_line(cell: Cell, record: Record, macs: Macs) -> str:
    """A cell's row of results.jsonl."""
    errors = {f"{column}": record.value(column) for column in record.columns}
    best = min(record.rows, key=lambda row: record.headline.of(row) * (-1 if record.headline.higher_is_better else 1))
    known = record.environment
    row: dict[str, Any] = {
        "cell": cell.name,
        "recipe": cell.row.recipe,
        "variant": cell.row.variant,
        "seed": cell.seed,
        "metric": record.headline.name,
        "last": errors,
        "best_epoch": int(best["epoch"]),
        "best": {column: record.headline.of(best, column) for column in record.columns},
        "epochs": int(record.rows[-1]["epoch"]),
        "seconds": record.rows[-1]["seconds"],
        "images": known.get("images", {}),
        "macs": macs.get(cell.trains, {}),
        "parameters": known.get("parameters", {}),
        "device": known.get("device"),
        "choices": known.get("choices", {}),
        "revision": known.get("git_revision"),
        "config": cell.trains,
        "weights": _sha256(cell),
    }
    return json.dumps(row)


def _sha256(cell: Cell) -> str | None:
    path = cell.folder.weights
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
