"""What side branches gain and cost, for the README: its two tables, and docs/gains-light.svg and -dark.svg.

In: rows under results/. Out: `Row`s, and the text and the pictures that show them. `tables.py` writes the tables.

python benchmarks/gains.py [--check]
"""

from __future__ import annotations

import itertools
import json
import sys
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import mean

import matplotlib.pyplot as plt
import research
from drawing import COLOURS, svg, write

from sidebranch.inspect.record import Spread, by_kind, spread, summarise
from sidebranch.inspect.significance import Gain, gain
from sidebranch.runs.headline import TOP1

MARKS = dict(zip(research.KINDS, "oD^", strict=True))
TASKS = {  # study to what it is
    "digits-methods": "digits, half of the labels replaced, ResNet-20",
    "reid-synthetic": "drawn people, re-identification, mAP",
}
PHOTOGRAPHS = "2,000 photographs of 10 classes, RegNetX-200MF from scratch"
TUNED = "fine-tuning from ImageNet weights, 2,000 photographs, EfficientNet-Lite0"


@dataclass(frozen=True)
class Row:
    """A kind of run beside its baseline.

    Attributes:
        change: of main's error, or of mAP where higher is better.
    """

    task: str
    base: Spread
    kind: str
    value: Spread
    change: Gain
    is_error: bool = True


def of_runs(study: str) -> Row:
    """DHM in a study whose runs are kept whole."""
    groups = by_kind(research.records(study))
    plain, dhm = ({run.config.seed: run.value("main") for run in groups[kind]} for kind in ("baseline", "DHM"))
    summary, run = summarise(groups), groups["baseline"][0]
    is_error = run.headline == TOP1
    change = gain(dhm, plain, run.images, is_share=is_error)
    return Row(TASKS[study], summary["baseline"]["main"], "DHM", summary["DHM"]["main"], change, is_error)


def of_study(study: str, task: str, variants: dict[str, str], base: str = "baseline") -> Iterable[Row]:
    """The same of a study whose rows differ in more than the method; variants to their names here."""
    errors, images = research.errors_of(study)
    for variant, kind in variants.items():
        change = gain(errors[variant], errors[base], images)
        yield Row(task, spread(list(errors[base].values())), kind, spread(list(errors[variant].values())), change)


def _kinds(study: str, what: str = "") -> dict[str, str]:
    """Those of a study's rows on top of something that were trained, to the kinds of branches that they are."""
    errors, _ = research.errors_of(study)
    return {row: name for name, row in research.on_top(what).items() if name != "baseline" and row in errors}


def rows() -> list[Row]:
    found: list[Row] = []
    for what in ("", "label smoothing", "CutMix", "mixup"):
        task = f"the same with {what}" if what else PHOTOGRAPHS
        found += of_study("mine-on-top", task, _kinds("mine-on-top", what), what or "baseline")
    found += of_study("mine-on-top-60-epochs", "the same, twice the epochs", _kinds("mine-on-top-60-epochs"))
    found += of_study("cheap-setting", "CIFAR-100, 10,000 images, ResNet-32, 40 epochs", _kinds("cheap-setting"))
    found += of_study("cifar100-resnet32", "CIFAR-100, all images, ResNet-32, the paper's 164 epochs", {"DHM": "DHM"})
    found += [of_runs(study) for study in TASKS]
    found += of_study("finetune-imagenette/finetune", TUNED, {"DHM": "DHM"})
    found += of_study("finetune-imagenette/finetune", "the same, branches copied", {"DHM, copied branches": "DHM"})
    return found


def gains_table() -> str:
    heads = ["top-1 error of what ships, %", "baseline", *MARKS, "seeds"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for task, found in itertools.groupby(rows(), lambda row: (row.task, row.base)):
        kinds = {row.kind: row for row in found}
        cells = [f"{row.value} ({research.told(row.change)})" if row else "" for row in map(kinds.get, MARKS)]
        counts = sorted({row.value.count for row in kinds.values()})
        lines.append("| " + " | ".join([*map(str, task), *cells, " or ".join(map(str, counts))]) + " |")
    return "\n".join(lines)


def costs_table() -> str:
    """Times of a training step and of what ships, and speed against the plain reference."""
    lines = ["| | baseline | " + " | ".join(MARKS) + " |", "|---" * (2 + len(MARKS)) + "|"]
    for study, what in (
        ("mine-on-top", "RegNetX-200MF, 96x96, one CPU core"),
        ("cheap-setting", "ResNet-32, 32x32, one CPU core"),
    ):
        costs = research.costs_of(study)
        times = [f"{costs[row]['time']:.2f}" if row in costs else "" for row in research.KINDS.values()]
        lines.append(f"| time of a training step: {what} | 1 | " + " | ".join(times) + " |")
    bench, gpu = (
        json.loads((research.RESULTS / "bench" / name).read_text(encoding="utf-8"))
        for name in ("cpu.json", "h100.json")
    )
    ours = {row["method"]: row["speedup"] for row in bench["steps"] if row["model"] == "cifar_resnet32"}
    compiled = {row["method"]: row["step_ms"] for row in gpu["steps"] if row["compile"] == "cuda_graphs"}
    reference = {method: times["median"] for method, times in gpu["reference_step_ms"].items()}
    faster = [f"{reference[each] / compiled[each]:.1f}" for each in ("baseline", "dhm")]
    lines.append(f"| times as fast as a plain loop: ResNet-32, 2 CPU cores | {ours['baseline']} | {ours['dhm']} | | |")
    lines.append(f"| the same on one H100 | {faster[0]} | {faster[1]} | | |")
    ratios = [row["ratio"] for row in bench["export"]]
    ships = " | ".join([f"{min(ratios):.2f} to {max(ratios):.2f}"] * len(MARKS))
    lines.append(f"| inference time of what ships (1: the same network, never branched) | 1 | {ships} |")
    return "\n".join(lines)


def draw(theme: str) -> str:
    """Every row's gain, with its interval: right of 0 is better than the baseline."""
    ink, soft, cheap, dhm = COLOURS[theme]
    colours = dict(zip(MARKS, (dhm, cheap, ink), strict=True))
    figure, axes = plt.subplots(figsize=(8.4, 6.0))
    places, height, before = {}, 0.0, ""
    for row in rows():
        height -= 1.0 if row.task == before else 2.3
        better = -row.change.points if row.is_error else row.change.points
        style = {"color": colours[row.kind], "marker": MARKS[row.kind], "markersize": 6, "capsize": 3, "linewidth": 1.6}
        axes.errorbar(better, height, xerr=row.change.half_width if row.change.of == "seeds" else None, **style)
        places.setdefault(row.task, []).append(height)
        before = row.task
    axes.axvline(0, color=soft, linewidth=1)
    axes.set_yticks([mean(found) for found in places.values()], [textwrap.fill(task, 42) for task in places])
    axes.tick_params(colors=ink, labelsize=8.5)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(soft)
    axes.set_xlabel("points better than the baseline, with 95 % intervals over seeds", color=ink, fontsize=9)
    handles = [
        axes.plot([], [], color=colours[each], marker=MARKS[each], linewidth=1.6, label=each)[0] for each in MARKS
    ]
    axes.legend(handles=handles, frameon=False, labelcolor=ink, fontsize=9, loc="upper left")
    return svg(figure)


if __name__ == "__main__":
    raise SystemExit(write({f"gains-{theme}.svg": draw(theme) for theme in COLOURS}, "--check" in sys.argv))
