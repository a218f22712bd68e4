"""Figures of runs, as SVG text."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sidebranch.inspect.record import Record, by_kind

# Okabe and Ito's palette, for any colour vision. Methods have fixed colours; other kinds of run take the rest.
COLOURS = {"baseline": "#555555", "DSL": "#E69F00", "DKS": "#0072B2", "DHM": "#009E73", "KD": "#CC79A7"}
FURTHER = ("#CC79A7", "#D55E00", "#56B4E9", "#000000", "#F0E442")
RANKS = 20  # of a CMC curve
STYLE: dict[Any, Any] = {
    "font.size": 11,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e5e5e5",
    "axes.edgecolor": "#888888",
    "svg.hashsalt": "sidebranch",  # the same runs give the same bytes
}


def training_curves(records: Sequence[Record]) -> str:
    """Main's headline metric by epoch: training solid, validation dashed; a colour per method, a line per seed.

    mAP has no training curve: it is measured on persons who are not in the training set.
    """
    headline = records[0].headline
    parts = {"val": "--"} if headline.higher_is_better else {"train": "-", "val": "--"}
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure("epoch", f"{headline.name} of main, %")
        for place, (kind, group) in enumerate(by_kind(records).items()):
            for position, record in enumerate(group):
                epochs = [row["epoch"] for row in record.rows]
                for part, dashes in parts.items():
                    errors = [row.get(f"{part}/{headline.key}/main", float("nan")) for row in record.rows]
                    what = "training" if part == "train" else "validation"
                    name = None if position else f"{kind}, {what}"
                    alpha = 0.9 if len(group) == 1 else 0.6
                    axes.plot(
                        epochs, errors, dashes, color=colour_of(kind, place), alpha=alpha, linewidth=1.4, label=name
                    )
        axes.set_ylim(0, axes.get_ylim()[1] + 2)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False, fontsize=9, ncols=2, loc="upper center", bbox_to_anchor=(0.5, 1.22))
        return _svg(figure)


def final_errors(records: Sequence[Record]) -> str:
    """Every classifier's headline metric after the last epoch: a dot per seed, a bar at their mean."""
    groups = by_kind(records)
    columns = list(dict.fromkeys(column for record in records for column in record.columns))
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure("", f"final validation {records[0].headline.name}, %")
        width = 0.7 / len(groups)
        for position, (kind, group) in enumerate(groups.items()):
            colour = colour_of(kind, position)
            shift = (position - (len(groups) - 1) / 2) * width
            for place, column in enumerate(columns):
                errors = [record.value(column) for record in group if column in record.columns]
                if errors:
                    where = place + shift
                    middle = sum(errors) / len(errors)
                    axes.hlines(middle, where - width / 3, where + width / 3, color=colour, linewidth=3)
                    axes.plot([where] * len(errors), errors, "o", color=colour, alpha=0.6, markersize=5)
            axes.plot([], [], "o", color=colour, label=kind)
        axes.set_xticks(range(len(columns)), columns)
        axes.grid(axis="x", visible=False)
        axes.legend(frameon=False, fontsize=9, ncols=4, loc="upper center", bbox_to_anchor=(0.5, 1.14))
        return _svg(figure)


def cmc_curves(curves: Mapping[str, Sequence[Sequence[float]]]) -> str:
    """CMC by main's features. In: kind of run to the curves of its seeds."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure("rank", "queries with a match up to that rank, %")
        for place, (kind, seeds) in enumerate(curves.items()):
            for position, curve in enumerate(seeds):
                shown = curve[:RANKS]
                name = None if position else kind
                ranks = range(1, len(shown) + 1)
                axes.plot(ranks, shown, color=colour_of(kind, place), linewidth=1.4, alpha=0.7, label=name)
        axes.set_xlim(1, RANKS)
        axes.set_xticks([1, 5, 10, 15, RANKS])
        axes.legend(frameon=False, fontsize=9, ncols=4, loc="upper center", bbox_to_anchor=(0.5, 1.14))
        return _svg(figure)


def colour_of(kind: str, place: int) -> str:
    """A kind of run's colour: its method's, or another by its place."""
    return COLOURS.get(kind) or FURTHER[place % len(FURTHER)]


def _figure(x_label: str, y_label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.4, 3.8), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    return figure, axes


def _svg(figure: Figure) -> str:
    """The figure as an `<svg>` element that scales with the page."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]
