"""Tables of the studies beyond the papers, from results/: what teachers teach better, what branches cost less."""

from __future__ import annotations

import csv
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sidebranch.errors import Notice
from sidebranch.inspect.record import Record, Spread, read_record, spread
from sidebranch.inspect.significance import Gain, gain
from sidebranch.runs.folder import RunFolder

RESULTS = Path(__file__).parent.parent / "results"
CHEAP = "--model.branches auto --branches.width 1 --branches.pool 2 --branches.use '[b1]'"
ONE = CHEAP.replace(" --branches.pool 2", "")
BEST = "--objective.teachers '[best]' --objective.temperature 3 --objective.mimicry '{best->*: 1}'"
ON_TOP = ("label smoothing", "CutMix", "mixup", "moving average", "twice as long")
KINDS = {  # of branches, as tables call them, to a study's row
    "DHM": "DHM",
    "DHM, cheap": "DHM, cheap",
    "cheap, the best teaches": "DHM, cheap, the best teaches, T = 3",
}
Errors = dict[str, dict[int, float]]


def records(study: str) -> list[Record]:
    """The runs kept under results/, in the order of their names."""
    warnings.simplefilter("ignore", Notice)  # of fields that are called otherwise today
    return [read_record(RunFolder(path.parent)) for path in sorted((RESULTS / study).rglob("metrics.csv"))]


def errors_of(study: str) -> tuple[Errors, int]:
    """Variant to seed to main's error after the last epoch, and the number of validation images."""
    rows = [json.loads(line) for line in (RESULTS / study / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    errors: Errors = {}
    for row in rows:
        errors.setdefault(row["variant"], {})[row["seed"]] = row["last"]["main"]
    return errors, next(row["images"]["val"] for row in rows if row["images"])


def multiplies(study: str) -> dict[str, str]:
    """Variant to its multiply-adds, as a multiple of the baseline's."""
    with (RESULTS / study / "table.csv").open(encoding="utf-8") as file:
        return {row["variant"]: f"{float(row['MACs']):.2f}" for row in csv.DictReader(file) if row["MACs"]}


def costs_of(study: str) -> dict[str, Any]:
    """Variant to what a step of it costs (`branch_costs.py`)."""
    rows = json.loads((RESULTS / study / "costs.json").read_text(encoding="utf-8"))["rows"]
    return {row["variant"]: row for row in rows}


def change(errors: Errors, variant: str, base: str, images: int) -> str:
    """The paired difference to a row, with its 95 % interval from two common seeds on."""
    return told(gain(errors[variant], errors[base], images))


def told(change: Gain) -> str:
    """The points, with their interval if it is over seeds."""
    is_over_seeds = change.half_width is not None and change.of == "seeds"
    return f"{change.points:+.2f}" + (f" ± {change.half_width:.2f}" if is_over_seeds else "")


def plain_table(study: str, beside: Sequence[str] = (), variants: Sequence[str] = ()) -> str:
    """A row a variant: main's error, and its differences to the baseline and to other rows.

    Args:
        study: its name.
        beside: the other rows, if any.
        variants: the rows; all if left out.
    """
    errors, images = errors_of(study)
    bases = ("baseline", *beside)
    heads = [
        "",
        "main's error, %",
        *(f"less {'the baseline' if each == 'baseline' else each}'s" for each in bases),
        "seeds",
    ]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for variant in [each for each in errors if not variants or each in variants]:
        less = ["" if variant in ("baseline", base) else change(errors, variant, base, images) for base in bases]
        values = list(errors[variant].values())
        lines.append("| " + " | ".join([variant, str(spread(values)), *less, str(len(values))]) + " |")
    return "\n".join(lines)


def cheap_table(study: str) -> str:
    """The same with costs, where they were measured, and the paired difference to DHM as published."""
    errors, images = errors_of(study)
    costs = {variant: row["time"] for variant, row in costs_of(study).items()}
    macs = {row["variant"]: f"{row['macs']:.2f}" for row in costs_of(study).values() if "macs" in row} | multiplies(
        study
    )
    heads = ["", "multiply-adds", "time", "main's error, %", "less the baseline's", "less DHM's", "seeds"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    known = {what for each in ON_TOP for what in on_top(each).values()}
    for variant in dict.fromkeys([*costs, *(each for each in errors if each not in known)]):
        time = f"{costs[variant]:.2f}" if variant in costs else ""
        if variant not in errors:
            lines.append(f"| {variant} | {macs.get(variant, '')} | {time} | not trained | | | |")
            continue
        values = errors[variant]
        less = "" if variant == "baseline" else change(errors, variant, "baseline", images)
        than_dhm = "" if variant in ("baseline", "DHM") else change(errors, variant, "DHM", images)
        lines.append(
            f"| {variant} | {macs.get(variant, '')} | {time} | {spread(list(values.values()))} | {less} | "
            f"{than_dhm} | {len(values)} |"
        )
    return "\n".join(lines)


def on_top(what: str) -> dict[str, str]:
    """What a network is trained with to the study's rows: without branches, and with each kind of them."""
    before = f"{what} and " if what else ""
    return {"baseline": what or "baseline"} | {name: before + row for name, row in KINDS.items()}


def on_top_table(study: str) -> str:
    """A row each of what a network is trained with: the errors, and the paired differences that branches make."""
    errors, images = errors_of(study)
    kinds = [name for name in KINDS if any(on_top(what)[name] in errors for what in ("", *ON_TOP))]
    heads = ["with", "baseline", *(head for name in kinds for head in (name, "less")), "seeds"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for what in ("", *ON_TOP):
        rows = {name: each for name, each in on_top(what).items() if each in errors}
        if "baseline" not in rows:
            continue
        cells = [what or "neither", spread(list(errors[rows["baseline"]].values()))]
        for row in map(rows.get, kinds):
            is_there = row is not None
            cells += [spread(list(errors[row].values())) if is_there else ""]
            cells += [change(errors, row, rows["baseline"], images) if is_there else ""]
        counts = sorted({len(errors[each]) for each in rows.values()})
        lines.append("| " + " | ".join([*map(str, cells), " or ".join(map(str, counts))]) + " |")
    return "\n".join(lines)


def epochs_table(study: str, epochs: Sequence[int]) -> str:
    """Main's error of baseline and DHM after some epochs, over the seeds that got so far, and the paired difference.

    The last row is the paper's.
    """
    runs = records(study)
    heads = ["after epoch", "learning rate", "baseline", "DHM", "less", "seeds", "b1", "b2", "ensemble"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for epoch in epochs:
        there = {(run.config.method, run.config.seed): run.rows[epoch - 1] for run in runs if len(run.rows) >= epoch}
        plain, dhm = (
            {seed: row["val/top1/main"] for (method, seed), row in there.items() if method == each}
            for each in ("baseline", "dhm")
        )
        common = sorted(plain.keys() & dhm.keys())
        values = [spread([found[seed] for seed in common]) for found in (plain, dhm)]
        less = change({"baseline": plain, "DHM": dhm}, "DHM", "baseline", runs[0].images or 0)
        others = [
            spread([there["dhm", seed][f"val/top1/{name}"] for seed in common]) for name in ("b1", "b2", "ensemble")
        ]
        rate = f"{there['dhm', common[0]]['lr']:g}"
        lines.append("| " + " | ".join(map(str, [epoch, rate, *values, less, len(common), *others])) + " |")
    known = runs[0].config.published.results
    plain, dhm = (Spread(known[each]["top1"], known[each]["std"], 5) for each in ("baseline", "dhm"))
    paper = ["the paper", "", plain, dhm, f"{dhm.mean - plain.mean:+.2f}", plain.count, "", "", ""]
    lines.append("| " + " | ".join(map(str, paper)) + " |")
    return "\n".join(lines)


def gain_share(study: str, row: str = "DHM, cheap") -> str:
    """How much of DHM's gain a cheaper row has, over the seeds that it, DHM and the baseline have."""
    errors, _ = errors_of(study)
    seeds = set.intersection(*(set(errors[each]) for each in ("baseline", "DHM", row)))
    base, dhm, cheap = (sum(errors[each][seed] for seed in seeds) for each in ("baseline", "DHM", row))
    return f"{100 * (base - cheap) / (base - dhm):.0f} %"


def grouped(channels: int, side: int, groups: int) -> str:
    """A grouped convolution's time as a multiple of the dense one's."""
    rows = json.loads((RESULTS / "bench" / "grouped.json").read_text(encoding="utf-8"))["rows"]
    found = [row for row in rows if (row["channels"], row["side"], row["groups"]) == (channels, side, groups)]
    return f"{found[0]['time']:.2f}"


def told_costs(study: str) -> str:
    """The times of the cheap setting and of DHM."""
    costs = {variant: row["time"] for variant, row in costs_of(study).items()}
    return f"{costs['DHM, cheap']:.2f} times the baseline's time, where DHM takes {costs['DHM']:.2f}"


def cheap_summary() -> str:
    """What the cheap setting is, costs and gains, for the README."""
    told = []
    for study, what in (("mine-on-top", "the photographs"), ("cheap-setting", "10,000 images of CIFAR-100")):
        less = change(errors_of(study)[0], "DHM, cheap", "DHM", errors_of(study)[1])
        told.append(f"{gain_share(study)} of DHM's gain on {what} ({less} beside DHM)")
    errors, images = errors_of("cheap-setting")
    less = change(errors, "DHM, one branch", "DHM", images)
    time = costs_of("cheap-setting")["DHM, one branch"]["time"]
    seeds = len(errors["DHM, one branch"].keys() & errors["DHM"].keys() & errors["baseline"].keys())
    return (
        f"**Cheap** is one branch, as wide as main, on features of half the resolution: `{CHEAP}`. It had "
        f"{' and '.join(told)}. Without `--branches.pool 2`, at {time:.2f} times the baseline's time, it had "
        f"{gain_share('cheap-setting', 'DHM, one branch')} there ({less}, {seeds} seeds).\n"
    )


def best_summary() -> str:
    """What the best of the batch as the teacher gains, for the README."""
    errors, images = errors_of("mine-on-top")
    row = KINDS["cheap, the best teaches"]
    less = [change(errors, row, base, images) for base in ("DHM", "DHM, cheap", "DSL, cheap")]
    on_cifar = change(errors_of("cheap-setting")[0], row, "DHM", errors_of("cheap-setting")[1])
    return (
        f"**The best teaches** (`{BEST}`): with the cheap branch, only the classifier with the lowest loss on the "
        f"batch teaches, at T = 3. On the photographs {less[0]} beside DHM, {less[1]} beside cheap DHM, {less[2]} "
        f"beside cheap deep supervision (DSL); on CIFAR-100 it does not lead ({on_cifar} beside DHM).\n"
    )
