"""The charts of early exit. In: what `sidebranch eval --early-exit` found. Out: `Chart`s of error against cost."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import altair as alt

from sidebranch.inspect.chart import FURTHER, Chart, chart_of, rounded

MEASURED = {
    "macs": ("multiply-adds of an image, M", 1e6, "Early exit: error and multiply-adds"),
    "ms": ("milliseconds of an image", 1.0, "Early exit: error and time"),
}


def told_exits(point: Mapping[str, Any]) -> str:
    """A policy in a table or legend: "b2 > main, mean"."""
    return " > ".join(point["policy"]["exits"]) + (", mean" if point["policy"]["averaged"] else "")


def _against(cost: str, found: Mapping[str, Any]) -> Chart:
    """Top-1 error against the mean cost of an image: policies in grey, and the classifiers."""
    title, unit, name = MEASURED[cost]
    line = [{"cost": each[cost] / unit, "error": each["error"], "what": told_exits(each)} for each in found["points"]]
    points = [
        {"cost": each[cost] / unit, "error": each["error"], "what": each["name"]} for each in found["classifiers"]
    ]
    names = [each["what"] for each in points]
    x = alt.X("cost:Q", title=title, scale=alt.Scale(zero=False))
    y = alt.Y("error:Q", title="top-1 error, %", scale=alt.Scale(zero=False))
    tooltip = ["what:N", "cost:Q", "error:Q"]
    policies = alt.Chart(alt.Data(values=rounded(line))).encode(x=x, y=y, tooltip=tooltip)
    legend = alt.Legend(title=None, columns=4)
    kinds = alt.Scale(domain=names, range=list(FURTHER[: len(names)]))
    alone = (
        alt.Chart(alt.Data(values=rounded(points)))
        .mark_point(size=110, filled=True, opacity=1)
        .encode(
            x=x,
            y=y,
            color=alt.Color("what:N", sort=names, scale=kinds, legend=legend),
            shape=alt.Shape("what:N", sort=names, scale=alt.Scale(domain=names), legend=legend),
            tooltip=tooltip,
        )
    )
    dots = policies.mark_point(color="#888888", size=25, filled=True, opacity=1)
    is_ordered = cost == "macs"  # times are noisy: a line through them would go to and fro
    drawn = policies.mark_line(color="#888888", strokeWidth=1.8) + dots if is_ordered else dots
    choice = found["chosen"]
    taken = {"cost": choice[cost] / unit, "error": choice["error"], "what": "chosen: " + told_exits(choice)}
    ring = alt.Chart(alt.Data(values=rounded([taken]))).mark_point(size=320, color="#888888", strokeWidth=1.8)
    return chart_of(
        name,
        f"Grey: images leave at the first sure classifier, thresholds chosen on {found['held_out']:,} held-out images "
        f"({found['chosen_on']}). Coloured: one classifier for all images. Ring: the chosen exits. "
        "Mean: each exit answers with the mean of the classifiers so far.",
        drawn + alone + ring.encode(x=x, y=y, tooltip=tooltip),
        ("exits", title, "top-1 error, %"),
        [(each["what"], f"{each['cost']:.2f}", f"{each['error']:.2f}") for each in [taken, *line, *points]],
    )


error_against_macs = partial(_against, "macs")
error_against_time = partial(_against, "ms")
