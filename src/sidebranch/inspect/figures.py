"""The papers' figures, of runs: curves with a band over seeds, kernels, gradients, disagreement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sidebranch.errors import UserError
from sidebranch.inspect.gradients import Alignment, Expansion
from sidebranch.inspect.kernels import KernelCorrelation
from sidebranch.inspect.record import Record, by_kind

LAYERS = 4  # shown of a network
SHARE_OF_INSET = 0.25  # of the epochs, at the end

# Okabe and Ito's palette, for any colour vision. Methods have fixed colours; other kinds of run take the rest.
COLOURS = {"baseline": "#555555", "DSL": "#E69F00", "DKS": "#0072B2", "DHM": "#009E73", "KD": "#CC79A7"}
FURTHER = ("#CC79A7", "#D55E00", "#56B4E9", "#000000", "#F0E442")
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


def seed_curves(records: Sequence[Record], solid: Literal["train", "val"] = "train", accuracy: bool = False) -> Figure:
    """Main's top-1 error by epoch: a colour a kind of run, a line at the mean of its seeds, a band over them.

    As DHM's supplement, Figs. 1 and 2: training solid and validation dashed, an inset of the last epochs. DKS's Fig. 3
    has them the other way around.

    Args:
        records: the runs, of classification.
        solid: the part that is drawn solid; the other is dashed.
        accuracy: draw 100 less the error.
    """
    if records[0].headline.higher_is_better:
        raise UserError("curves of the training error are of classification; these runs are of re-identification")
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 4.4), layout="constrained")
        axes = figure.subplots()
        axes.set_xlabel("epoch")
        axes.set_ylabel(f"top-1 {'accuracy' if accuracy else 'error'} of main, %")
        last = max(row["epoch"] for record in records for row in record.rows)
        inset = axes.inset_axes((0.56, 0.08 if accuracy else 0.6, 0.42, 0.36)) if last >= 8 else None
        inside: list[float] = []
        for place, (kind, group) in enumerate(by_kind(records).items()):
            for part, what in (("train", "training"), ("val", "validation")):
                epochs, values = _by_epoch(group, f"{part}/top1/main")
                values = 100 - values if accuracy else values
                line = {"color": colour_of(kind, place), "linestyle": "-" if part == solid else "--", "linewidth": 1.4}
                for each in (axes, inset):
                    if each is not None:
                        each.fill_between(epochs, values.min(0), values.max(0), color=line["color"], alpha=0.15, lw=0)
                        each.plot(epochs, values.mean(0), label=f"{kind}, {what}", **line)
                inside += list(values[:, epochs > last * (1 - SHARE_OF_INSET)].flatten())
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if inset is not None:
            inset.set_xlim(last * (1 - SHARE_OF_INSET), last)
            room = 0.05 * (max(inside) - min(inside)) + 0.1
            inset.set_ylim(min(inside) - room, max(inside) + room)
            inset.tick_params(labelsize=8)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False, fontsize=9)
        return figure


def _by_epoch(group: Sequence[Record], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Epochs, and [seeds, epochs] of a column; as many epochs as all seeds have."""
    count = min(len(record.rows) for record in group)
    values = [[row.get(key, float("nan")) for row in record.rows[:count]] for record in group]
    return np.array([row["epoch"] for row in group[0].rows[:count]]), np.array(values)


def correlation_maps(found: Mapping[str, KernelCorrelation]) -> Figure:
    """Kernel correlations of several kinds of runs side by side, on one scale (DHM's supplement, Fig. 3).

    A row a layer, a column a kind; the number is the correlation of the two classifiers' kernels in that layer.
    """
    paths = [path for path in next(iter(found.values())).maps if all(path in each.maps for each in found.values())]
    shown = [paths[round(place)] for place in np.linspace(0, len(paths) - 1, min(LAYERS, len(paths)))]
    limit = max(float(each.maps[path].abs().quantile(0.98)) for each in found.values() for path in shown)
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(1.2 + 2.6 * len(found), 2.6 * len(shown)), layout="constrained")
        grid = figure.subplots(len(shown), len(found), squeeze=False)
        image = None
        for column, (kind, each) in enumerate(found.items()):
            for row, path in enumerate(shown):
                axes: Axes = grid[row, column]
                image = axes.imshow(each.maps[path].numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
                above = f"{kind}, mean of all layers {each.mean:+.3f}\n" if row == 0 else ""
                axes.set_title(f"{above}{path}: {each.correlations[path]:+.3f}", fontsize=9)
                axes.set_ylabel("output channel" if column == 0 else "", fontsize=9)
                axes.set_xlabel("input channel" if row == len(shown) - 1 else "", fontsize=9)
                axes.tick_params(labelsize=8)
        if image is not None:
            figure.colorbar(image, ax=grid, shrink=0.6, label="product of normalised kernels")
        return figure


def alignment_curves(found: Mapping[str, Mapping[int, Sequence[Alignment]]]) -> Figure:
    """Cosines of the gradients in the shared stem: kind of run to epoch to its seeds. A panel a pair of classifiers.

    With one epoch only, the panels show the cosine by module of the stem instead.
    """
    pairs = list(
        dict.fromkeys(pair for epochs in found.values() for seeds in epochs.values() for pair in seeds[0].overall)
    )
    is_series = max(map(len, found.values())) > 1
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.2 * len(pairs), 3.4), layout="constrained")
        for axes, pair in zip(figure.subplots(1, len(pairs), squeeze=False, sharey=True)[0], pairs, strict=True):
            for place, (kind, epochs) in enumerate(found.items()):
                colour = colour_of(kind, place)
                if is_series:
                    means = [np.mean([each.overall[pair] for each in seeds]) for seeds in epochs.values()]
                    axes.plot(list(epochs), means, "o-", color=colour, label=kind, markersize=3, linewidth=1.4)
                else:
                    (seeds,) = epochs.values()
                    names = list(seeds[0].modules[pair])
                    means = [np.mean([each.modules[pair][name] for each in seeds]) for name in names]
                    axes.plot(names, means, "o-", color=colour, label=kind, markersize=3, linewidth=1.4)
                    axes.tick_params("x", rotation=45)
            axes.set_title(pair.replace("-", " and "), fontsize=10)
            axes.set_xlabel("epoch" if is_series else "module of the stem")
        figure.axes[0].set_ylabel("cosine of the gradients")
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
        return figure


def disagreement_curves(records: Sequence[Record]) -> Figure:
    """How far the classifiers disagree on validation images, by epoch: a column a kind of run, means over its seeds.

    Above, the Kullback-Leibler divergence of every student from every teacher; below, the images on which a pair gives
    different answers.
    """
    kinds = {kind: group for kind, group in by_kind(records).items() if len(group[0].columns) > 1}
    if not kinds or "val/kl/main->b1" not in {key for group in kinds.values() for key in group[0].rows[-1]}:
        raise UserError("these runs have no divergences of their classifiers: no branches, or trained before 0.1.0")
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(0.6 + 3.4 * len(kinds), 5.6), layout="constrained")
        grid = figure.subplots(2, len(kinds), squeeze=False, sharex=True, sharey="row")
        for column, (kind, group) in enumerate(kinds.items()):
            names = [name for name in group[0].columns if name != "ensemble"]
            for place, (teacher, student) in enumerate(permutations(names, 2)):
                _plot_mean(grid[0, column], group, f"val/kl/{teacher}->{student}", f"{teacher} to {student}", place)
            pairs = [key for key in group[0].rows[-1] if key.startswith("val/differ/")]
            for place, key in enumerate(pairs):
                name = key.removeprefix("val/differ/").replace("-", ", ")
                _plot_mean(grid[1, column], group, key, name, place)
            grid[0, column].set_title(kind, fontsize=10)
            grid[0, column].legend(frameon=False, fontsize=8)
            grid[1, column].legend(frameon=False, fontsize=8)
            grid[1, column].set_xlabel("epoch")
        grid[0, 0].set_ylabel("divergence, nats")
        grid[1, 0].set_ylabel("different answers, %")
        for axes in figure.axes:
            axes.set_ylim(bottom=0)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        return figure


PAIRS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")
MARKERS = ("-", "--", ":")


def _plot_mean(axes: Axes, group: Sequence[Record], key: str, name: str, place: int) -> None:
    epochs, values = _by_epoch(group, key)
    dashes = MARKERS[place // len(PAIRS) % len(MARKERS)]
    axes.plot(epochs, values.mean(0), dashes, color=PAIRS[place % len(PAIRS)], label=name, linewidth=1.4)


def expansion_curves(found: Sequence[Expansion]) -> Figure:
    """Eq. 11: what noise on the shared features changes, over sigma^2, and the terms of its expansion."""
    sigmas = [each.sigma for each in found]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.4, 3.8), layout="constrained")
        axes = figure.subplots()
        measured, errors = [each.measured for each in found], [2 * each.error for each in found]
        axes.errorbar(
            sigmas, measured, errors, fmt="o", color="#000000", label="measured, ± 2 standard errors", capsize=3
        )
        axes.axhline(found[0].gradients, color="#0072B2", label="Eq. 11: product of the gradients")
        if found[0].full == found[0].full:
            axes.axhline(found[0].full, color="#D55E00", linestyle="--", label="with the second derivatives")
        axes.set_xscale("log")
        axes.set_xlabel("standard deviation of the noise, sigma")
        axes.set_ylabel("change of the mimicry term / sigma²")
        figure.legend(loc="outside upper center", ncols=1, frameon=False, fontsize=9)
        return figure


def colour_of(kind: str, place: int) -> str:
    """A kind of run's colour: its method's, or another by its place."""
    return COLOURS.get(kind) or FURTHER[place % len(FURTHER)]
