"""Figures of runs, as SVG text."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sidebranch.inspect.record import Record, by_method, label

# Okabe and Ito's palette: told apart with any colour vision.
COLOURS = {"baseline": "#555555", "dsl": "#E69F00", "dks": "#0072B2", "dhm": "#009E73"}
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
    """Main's top-1 error against the epoch: training solid, validation dashed, a colour a method, a line a seed."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure("epoch", "top-1 error of main, %")
        for method, group in by_method(records).items():
            for position, record in enumerate(group):
                epochs = [row["epoch"] for row in record.rows]
                colour = COLOURS[method]
                for kind, dashes in (("train", "-"), ("val", "--")):
                    errors = [row.get(f"{kind}/top1/main", float("nan")) for row in record.rows]
                    what = "training" if kind == "train" else "validation"
                    name = None if position else f"{label(method)}, {what}"
                    alpha = 0.9 if len(group) == 1 else 0.6
                    axes.plot(epochs, errors, dashes, color=colour, alpha=alpha, linewidth=1.4, label=name)
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False, fontsize=9, ncols=2, loc="upper center", bbox_to_anchor=(0.5, 1.22))
        return _svg(figure)


def final_errors(records: Sequence[Record]) -> str:
    """Every classifier's validation top-1 error after the last epoch: a dot a seed, a bar at their mean."""
    groups = by_method(records)
    columns = list(dict.fromkeys(column for record in records for column in record.columns))
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure("", "final validation top-1 error, %")
        width = 0.7 / len(groups)
        for position, (method, group) in enumerate(groups.items()):
            shift = (position - (len(groups) - 1) / 2) * width
            for place, column in enumerate(columns):
                errors = [record.error(column) for record in group if column in record.columns]
                if errors:
                    where = place + shift
                    middle = sum(errors) / len(errors)
                    axes.hlines(middle, where - width / 3, where + width / 3, color=COLOURS[method], linewidth=3)
                    axes.plot([where] * len(errors), errors, "o", color=COLOURS[method], alpha=0.6, markersize=5)
            axes.plot([], [], "o", color=COLOURS[method], label=label(method))
        axes.set_xticks(range(len(columns)), columns)
        axes.grid(axis="x", visible=False)
        axes.legend(frameon=False, fontsize=9, ncols=4, loc="upper center", bbox_to_anchor=(0.5, 1.14))
        return _svg(figure)


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
