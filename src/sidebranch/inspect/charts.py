"""The charts of a page. In: kind of run to its runs, or to what they measured. Out: `Chart`s."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import mean, stdev
from typing import Any

import altair as alt

from sidebranch.inspect.chart import Chart, chart_of, dashes, epochs, kinds, rounded, shapes, texts
from sidebranch.inspect.record import Record

CLASSIFIERS = {"main": "#3A7FC1", "ensemble": "#767676", "concat": "#767676"}
RANKS, CLASSES = 20, 20  # shown: of a CMC curve, and of the worst classes
Groups = Mapping[str, Sequence[Record]]


def error_over_epochs(groups: Groups) -> Chart:
    """Main's headline metric by epoch: the mean over seeds, within a band from the lowest to the highest seed."""
    headline = _first(groups).headline
    parts = {"validation": "val"} if headline.higher_is_better else {"validation": "val", "training": "train"}
    values = []
    for kind, group in groups.items():
        for part, prefix in parts.items():
            for epoch, found in _by_epoch(group, f"{prefix}/{headline.key}/main").items():
                band = {"low": min(found), "high": max(found), "mean": mean(found)}
                values.append({"kind": kind, "part": part, "epoch": epoch, **band})
    base = alt.Chart(alt.Data(values=rounded(values))).encode(x=epochs(), color=kinds(groups), detail="part:N")
    scale = _scale([each["low"] for each in values])
    value = alt.Y("mean:Q", title=f"{headline.name} of main, %", scale=scale)
    tooltip = ["kind:N", "part:N", "epoch:Q", "mean:Q", "low:Q", "high:Q"]
    lines = base.mark_line(strokeWidth=1.8).encode(y=value, strokeDash=dashes(tuple(parts)), tooltip=tooltip)
    band = base.mark_area(opacity=0.18, stroke=None).encode(y=alt.Y("low:Q", scale=scale), y2="high:Q")
    last = {(each["kind"], each["part"]): each for each in values}
    return chart_of(
        "Over the epochs",
        ("Solid: validation images; dashed: training, as they are augmented. " if len(parts) > 1 else "")
        + "Lines are means over seeds; bands reach from the lowest seed to the highest.",
        band + lines,
        ("run", "images", "last epoch", "mean, %", "lowest", "highest"),
        [(k, p, f"{e['epoch']:.0f}", *texts(e["mean"], e["low"], e["high"])) for (k, p), e in last.items()],
    )


def final_values(groups: Groups) -> Chart:
    """Every classifier's headline metric after the last epoch: a dot a seed, a tick at their mean."""
    headline = _first(groups).headline
    values = [
        {"kind": kind, "classifier": column, "seed": record.config.seed, "value": record.value(column)}
        for kind, group in groups.items()
        for record in group
        for column in record.columns
    ]
    columns = list(dict.fromkeys(each["classifier"] for each in values))
    base = alt.Chart(alt.Data(values=rounded(values))).encode(
        x=alt.X("classifier:N", sort=columns, title=None, axis=alt.Axis(labelAngle=0)),
        xOffset=alt.XOffset("kind:N", sort=list(groups)),
        color=kinds(groups),
        tooltip=["kind:N", "classifier:N", "seed:O", "value:Q"],
    )
    title = f"validation {headline.name}, %"
    dots = base.mark_circle(size=55, opacity=0.75).encode(y=alt.Y("value:Q", title=title, scale=alt.Scale(zero=False)))
    ticks = base.mark_tick(thickness=3, width=18).encode(y="mean(value):Q", tooltip=alt.value(None))
    means = {}
    for each in values:
        means.setdefault((each["kind"], each["classifier"]), []).append(each["value"])
    joined = "concat joins the features" if headline.higher_is_better else "the ensemble averages the probabilities"
    return chart_of(
        "After the last epoch",
        f"Each dot is a seed, each bar a mean. Main is shipped; {joined} of all classifiers.",
        dots + ticks,
        ("run", "classifier", "mean, %", "seeds"),
        [(kind, name, f"{mean(found):.2f}", str(len(found))) for (kind, name), found in means.items()],
    )


def cost_against_error(groups: Groups) -> Chart:
    """Training time against main's headline metric: means and sample standard deviations over seeds."""
    headline = _first(groups).headline
    unit, seconds = _unit(max(record.rows[-1]["seconds"] for group in groups.values() for record in group))
    values = []
    for kind, group in groups.items():
        errors = [record.value("main") for record in group]
        time = mean(record.rows[-1]["seconds"] / seconds for record in group)
        spread = stdev(errors) if len(errors) > 1 else 0.0
        middle = mean(errors)
        values.append({"kind": kind, "time": time, "value": middle, "low": middle - spread, "high": middle + spread})
    base = alt.Chart(alt.Data(values=rounded(values))).encode(
        x=alt.X("time:Q", title=f"training, {unit}", scale=alt.Scale(zero=True)),
        color=kinds(groups),
        tooltip=["kind:N", "time:Q", "value:Q"],
    )
    title = f"{headline.name} of main, %"
    dots = base.mark_point(size=110, filled=True, opacity=1).encode(
        y=alt.Y("value:Q", title=title, scale=alt.Scale(zero=False)), shape=shapes(groups)
    )
    spreads = base.mark_rule(strokeWidth=1.5).encode(y=alt.Y("low:Q"), y2="high:Q")
    return chart_of(
        "Cost and result",
        "Time of training against the shipped network's result; bars are a standard deviation over seeds to each "
        "side. What ships costs the same for all. Times include what else ran on the machine.",
        spreads + dots,
        ("run", unit, "main, %"),
        [(each["kind"], f"{each['time']:.1f}", f"{each['value']:.2f}") for each in values],
    )


def classifiers_over_epochs(kind: str, group: Sequence[Record]) -> Chart:
    """Each classifier's validation metric by epoch, the mean over seeds, of one kind of run."""
    headline, columns = group[0].headline, group[0].columns
    values = [
        {"classifier": column, "epoch": epoch, "value": mean(found)}
        for column in columns
        for epoch, found in _by_epoch(group, f"val/{headline.key}/{column}").items()
    ]
    others = iter(("#C27A00", "#1B8A5A", "#C2559B", "#D5502A", "#8A6FD1") * 3)
    colours = [CLASSIFIERS.get(column) or next(others) for column in columns]
    chart = (
        alt.Chart(alt.Data(values=rounded(values)))
        .mark_line(strokeWidth=1.8)
        .encode(
            x=epochs(),
            y=alt.Y(
                "value:Q", title=f"validation {headline.name}, %", scale=_scale([each["value"] for each in values])
            ),
            color=alt.Color("classifier:N", sort=columns, scale=alt.Scale(domain=columns, range=colours)),
            strokeDash=alt.StrokeDash("classifier:N", sort=columns, legend=None),
            tooltip=["classifier:N", "epoch:Q", "value:Q"],
        )
    )
    return chart_of(
        f"{kind}: each classifier over the epochs",
        "Means over seeds. b1 is the branch nearest the top.",
        chart,
        ("classifier", "last epoch, %"),
        [(column, f"{mean([record.value(column) for record in group]):.2f}") for column in columns],
    )


def mimicry_over_epochs(kind: str, group: Sequence[Record]) -> Chart | None:
    """How far every classifier is from every other by epoch, the mean over seeds; None if that was not measured."""
    pairs = [key.removeprefix("val/kl/") for key in group[0].rows[-1] if key.startswith("val/kl/")]
    if not pairs:
        return None
    values = [
        {"pair": pair.replace("->", " → "), "epoch": epoch, "nats": mean(found)}
        for pair in pairs
        for epoch, found in _by_epoch(group, f"val/kl/{pair}").items()
    ]
    chart = (
        alt.Chart(alt.Data(values=rounded(values, 4)))
        .mark_rect()
        .encode(
            x=alt.X("epoch:O", title="epoch", axis=alt.Axis(labelOverlap=True, labelAngle=0, tickSize=0)),
            y=alt.Y("pair:N", title=None, sort=None),
            color=alt.Color(
                "nats:Q",
                scale=alt.Scale(scheme="viridis"),
                legend=alt.Legend(title="nats", orient="top", gradientLength=160),
            ),
            tooltip=["pair:N", "epoch:Q", "nats:Q"],
        )
    )
    last = {each["pair"]: each["nats"] for each in values}
    return chart_of(
        f"{kind}: who has learnt from whom",
        "p → q: the Kullback-Leibler divergence of q's validation probabilities from p's, in nats. The lower, the more "
        "the two agree.",
        chart,
        ("pair", "last epoch, nats"),
        [(pair, f"{nats:.4f}") for pair, nats in last.items()],
    )


def reliability(bins: Mapping[str, Sequence[Sequence[float]]], errors: Mapping[str, float]) -> Chart:
    """Share of right answers by confidence, of main.

    Args:
        bins: kind of run to number of images, right answers, sum of confidences of each bin, summed over seeds.
        errors: kind of run to its expected calibration error, in percent.
    """
    values = [
        {"kind": kind, "confidence": 100 * sure / count, "right": 100 * right / count, "images": count}
        for kind, rows in bins.items()
        for count, right, sure in rows
        if count >= 5
    ]
    line = alt.Chart(alt.Data(values=[{"c": 0, "r": 0}, {"c": 100, "r": 100}]))
    ideal = line.mark_line(color="#888888", strokeDash=[2, 3], strokeWidth=1.2).encode(x="c:Q", y="r:Q")
    base = alt.Chart(alt.Data(values=rounded(values))).encode(
        x=alt.X("confidence:Q", title="mean confidence, %", scale=alt.Scale(domain=[0, 100])),
        y=alt.Y("right:Q", title="right answers, %", scale=alt.Scale(domain=[0, 100])),
        color=kinds(bins),
        tooltip=["kind:N", "confidence:Q", "right:Q", "images:Q"],
    )
    size = alt.Size("images:Q", legend=None, scale=alt.Scale(range=[15, 220]))
    return chart_of(
        "Reliability of main",
        "Images by confidence, larger dots for more of them. On the dotted diagonal, main is right as often as it "
        "says; below, it is too sure.",
        ideal + base.mark_line(strokeWidth=1.4) + base.mark_circle(opacity=0.8).encode(size=size),
        ("run", "expected calibration error, %"),
        [(kind, f"{error:.2f}") for kind, error in errors.items()],
    )


def calibration_error(bins: Sequence[Sequence[float]]) -> float:
    """Expected calibration error in percent: how far confidence is from the share of right answers, on average.

    Guo et al., 2017, Eq. 3.

    Args:
        bins: of confidence: number of images, of right answers, sum of confidences.
    """
    total = sum(count for count, _, _ in bins)
    return 100 * sum(abs(right - confidence) for _, right, confidence in bins) / total if total else 0.0


def worst_classes(errors: Mapping[str, Mapping[str, float]]) -> Chart:
    """Main's error by class, the classes that are worst on average first.

    Args:
        errors: kind of run to class to mean error over seeds, in percent.
    """
    names = [name for name in next(iter(errors.values())) if all(name in each for each in errors.values())]
    order = sorted(names, key=lambda name: -mean(each[name] for each in errors.values()))[:CLASSES]
    values = [{"kind": kind, "class": name, "error": each[name]} for kind, each in errors.items() for name in order]
    chart = (
        alt.Chart(alt.Data(values=rounded(values)))
        .mark_point(size=70, filled=True, opacity=0.85)
        .encode(
            x=alt.X("error:Q", title="error of main, %"),
            y=alt.Y("class:N", sort=order, title=None, axis=alt.Axis(labelLimit=140, grid=True)),
            color=kinds(errors),
            shape=shapes(errors),
            tooltip=["kind:N", "class:N", "error:Q"],
        )
        .properties(height=max(120, 20 * len(order)))
    )
    more = f", the {CLASSES} worst of {len(names)}" if len(names) > CLASSES else ""
    return chart_of(
        "Errors by class",
        f"Main's validation error by class{more}; means over seeds.",
        chart,
        ("class", *errors),
        [(name, *texts(*(each[name] for each in errors.values()))) for name in order],
    )


def cmc_curves(curves: Mapping[str, Sequence[Sequence[float]]]) -> Chart:
    """Share of queries with a match up to a rank, by main's features; means over seeds. In: kind to curves."""
    values = [
        {"kind": kind, "rank": rank, "queries": mean(found)}
        for kind, seeds in curves.items()
        if seeds
        for rank, found in enumerate(zip(*(seed[:RANKS] for seed in seeds), strict=True), 1)
    ]
    chart = (
        alt.Chart(alt.Data(values=rounded(values)))
        .mark_line(strokeWidth=1.8)
        .encode(
            x=alt.X("rank:Q", scale=alt.Scale(domain=[1, RANKS]), axis=alt.Axis(values=[1, 5, 10, 15, RANKS])),
            y=alt.Y("queries:Q", title="queries with a match, %", scale=alt.Scale(zero=False)),
            color=kinds(curves),
            tooltip=["kind:N", "rank:Q", "queries:Q"],
        )
    )
    shown = [each for each in values if each["rank"] in (1, 5, 10, 20)]
    return chart_of(
        "CMC",
        "Queries with a match up to that rank, by main's features; means over seeds.",
        chart,
        ("run", "rank", "queries, %"),
        [(each["kind"], str(each["rank"]), f"{each['queries']:.2f}") for each in shown],
    )


def _common(tables: Iterable[Mapping[str, Any]]) -> list[str]:
    """The keys that all have, in the first one's order."""
    first, *others = tables
    return [key for key in first if all(key in other for other in others)]


def kernel_correlation(measured: Mapping[str, Mapping[str, Any]]) -> Chart:
    """Mean correlation of kernels by layer, of `sidebranch inspect kernels`. In: kind to seed to numbers."""
    layers = _common(seed["layers"] for seeds in measured.values() for seed in seeds.values())
    values = [
        {"kind": kind, "layer": layer, "value": mean(seed["layers"][layer] for seed in seeds.values())}
        for kind, seeds in measured.items()
        for layer in layers
    ]
    caption = "DHM Figure 5: how alike the kernels of a layer are. Means over seeds."
    return _by_place("Correlation of kernels", caption, values, "layer", "mean correlation of kernels")


def gradient_alignment(measured: Mapping[str, Mapping[str, Any]]) -> Chart:
    """Cosine of the classifiers' gradients, of `sidebranch inspect gradients`. In: kind to seed to steps."""
    pairs = _common(step["overall"] for seeds in measured.values() for each in seeds.values() for step in each)
    values = [
        {"kind": kind, "pair": pair, "value": mean(step["overall"][pair] for seed in seeds.values() for step in seed)}
        for kind, seeds in measured.items()
        for pair in pairs
    ]
    caption = "1: two classifiers pull the shared layers the same way; 0: they ignore each other. Means over seeds."
    return _by_place("Alignment of gradients", caption, values, "pair", "cosine of gradients")


def _by_place(title: str, caption: str, values: list[dict[str, Any]], name: str, quantity: str) -> Chart:
    """A value a kind of run and a place, a layer or a pair."""
    order = list(dict.fromkeys(each[name] for each in values))
    groups = dict.fromkeys(each["kind"] for each in values)
    chart = (
        alt.Chart(alt.Data(values=rounded(values, 5)))
        .mark_point(size=80, filled=True, opacity=0.85)
        .encode(
            x=alt.X("value:Q", title=quantity),
            y=alt.Y(f"{name}:N", sort=order, title=None, axis=alt.Axis(grid=True)),
            color=kinds(groups),
            shape=shapes(groups),
            tooltip=["kind:N", f"{name}:N", "value:Q"],
        )
        .properties(height=max(120, 24 * len(order)))
    )
    rows = [(each["kind"], each[name], f"{each['value']:.4f}") for each in values]
    return chart_of(title, caption, chart, ("run", name, quantity), rows)


def _scale(values: Sequence[float]) -> alt.Scale:
    """Logarithmic where the values span a factor of ten, so that the end of a run can be told apart."""
    low, high = min(values), max(values)
    return alt.Scale(type="log", nice=False, padding=4) if low > 0 and high / low > 10 else alt.Scale(zero=False)


def _unit(seconds: float) -> tuple[str, float]:
    """A unit of time that suits a duration, and its length in seconds."""
    return next(
        each
        for each in (("hours", 3600.0), ("minutes", 60.0), ("seconds", 1.0))
        if seconds >= 2 * each[1] or each[1] == 1
    )


def _by_epoch(group: Sequence[Record], key: str) -> dict[float, list[float]]:
    """Epoch to a column's values over the seeds that have reached it."""
    found: dict[float, list[float]] = {}
    for record in group:
        for row in record.rows:
            if key in row:
                found.setdefault(row["epoch"], []).append(row[key])
    return dict(sorted(found.items()))


def _first(groups: Groups) -> Record:
    return next(iter(groups.values()))[0]
