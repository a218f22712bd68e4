"""Tables of the studies beyond the papers, from results/: what teachers teach better, what branches cost less."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path

from sidebranch.inspect.record import spread
from sidebranch.inspect.significance import gain

RESULTS = Path(__file__).parent.parent / "results"
BEST = "b1 alone, grown, width 1, pooled by 2"
CHEAP = "--model.branches auto --branches.width 1 --branches.pool 2 --branches.use [b1]"
ON_TOP = ("label smoothing", "CutMix", "mixup", "moving average", "twice as long")
Errors = dict[str, dict[int, float]]


def errors_of(study: str) -> tuple[Errors, int]:
    """Variant to seed to main's error after the last epoch, and the number of validation images."""
    rows = [json.loads(line) for line in (RESULTS / study / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    errors: Errors = {}
    for row in rows:
        errors.setdefault(row["variant"], {})[row["seed"]] = row["last"]["main"]
    return errors, rows[0]["images"]["val"]


def multiplies(study: str) -> dict[str, str]:
    """Variant to its multiply-adds, as a multiple of the baseline's."""
    with (RESULTS / study / "table.csv").open(encoding="utf-8") as file:
        return {row["variant"]: f"{float(row['MACs']):.2f}" for row in csv.DictReader(file) if row["MACs"]}


def change(errors: Errors, variant: str, base: str, images: int) -> str:
    """The paired difference to a row, over the seeds that both have; with its 95 % interval from two seeds on."""
    common = sorted(set(errors[variant]) & set(errors[base]))
    values, reference = ({seed: errors[each][seed] for seed in common} for each in (variant, base))
    found = gain(values, reference, images)
    return f"{found.points:+.2f}" + (f" ± {found.half_width:.2f}" if found.half_width and len(common) > 1 else "")


def plain_table(study: str, bases: Mapping[str, str] | None = None) -> str:
    """A row a variant: main's error, and its difference to the baseline (or to its own, of `bases`)."""
    errors, images = errors_of(study)
    lines = ["| | main's error, % | less the baseline's | seeds |", "|---|---|---|---|"]
    for variant, values in errors.items():
        base = (bases or {}).get(variant, "baseline")
        less = "" if variant == base else change(errors, variant, base, images)
        lines.append(f"| {variant} | {spread(list(values.values()))} | {less} | {len(values)} |")
    return "\n".join(lines)


def cheap_table() -> str:
    """The same with costs, and the paired difference to DHM as published."""
    study = "cheap-branches"
    errors, images = errors_of(study)
    costs = {row["variant"]: row for row in json.loads((RESULTS / study / "costs.json").read_text("utf-8"))["rows"]}
    macs = multiplies(study)
    heads = ["", "multiply-adds", "time", "main's error, %", "less the baseline's", "less DHM's", "seeds"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for variant, cost in costs.items():
        if variant not in errors:
            lines.append(f"| {variant} | | {cost['time']:.2f} | not trained | | | |")
            continue
        values = errors[variant]
        less = "" if variant == "baseline" else change(errors, variant, "baseline", images)
        than_dhm = "" if variant in ("baseline", "DHM") else change(errors, variant, "DHM", images)
        lines.append(
            f"| {variant} | {macs.get(variant, '')} | {cost['time']:.2f} | {spread(list(values.values()))} | {less} | "
            f"{than_dhm} | {len(values)} |"
        )
    return "\n".join(lines)


def on_top(what: str) -> dict[str, str]:
    """What a network is trained with to the study's three rows: without branches, with DHM's, with the cheap one."""
    before = f"{what} and " if what else ""
    return {"baseline": what or "baseline", "DHM": f"{before}DHM", "DHM, cheap": f"{before}DHM, cheap"}


def on_top_table() -> str:
    """A row each of what a network is trained with: the errors, and the paired differences that branches make."""
    errors, images = errors_of("on-top")
    lines = ["| with | baseline | DHM | less | DHM, cheap | less | seeds |", "|---" * 7 + "|"]
    for what in ("", *ON_TOP):
        rows = {name: each for name, each in on_top(what).items() if each in errors}
        if "baseline" not in rows:
            continue
        base = rows["baseline"]
        cells = [what or "neither", spread(list(errors[base].values()))]
        for name in ("DHM", "DHM, cheap"):
            has = name in rows
            cells += (
                [spread(list(errors[rows[name]].values())), change(errors, rows[name], base, images)]
                if has
                else ["", ""]
            )
        counts = sorted({len(errors[each]) for each in rows.values()})
        lines.append("| " + " | ".join([*map(str, cells), " or ".join(map(str, counts))]) + " |")
    return "\n".join(lines)


def cheap_summary() -> str:
    """What the cheapest good setting is and costs, for the README."""
    rows = json.loads((RESULTS / "cheap-branches" / "costs.json").read_text(encoding="utf-8"))["rows"]
    costs = {row["variant"]: row["time"] for row in rows}
    flags = CHEAP.replace("[b1]", "'[b1]'")
    return f"\n**Cheap**: `{flags}`, {costs[BEST]:.2f} times the baseline's time, DHM {costs['DHM']:.2f}.\n"
