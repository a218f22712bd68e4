"""A chart in Vega-Lite, what it looks like, and what is read in its stead.

Colours keep a contrast of 3 to 1 with white and with near black, and are told apart by any colour vision; where marks
differ in kind, they also differ in dashes or shapes. Text and axes take the page's own colour.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any
from zlib import crc32

import altair as alt

COLOURS = {"baseline": "#767676", "DSL": "#C27A00", "DKS": "#3A7FC1", "DHM": "#1B8A5A", "KD": "#C2559B"}
FURTHER = ("#C2559B", "#D5502A", "#3A7FC1", "#8A6FD1", "#C27A00", "#1B8A5A", "#767676")
HEIGHT, STATIC_WIDTH = 280, 560
CONFIG: dict[str, Any] = {
    "background": "transparent",
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelColor": "currentColor",
        "titleColor": "currentColor",
        "titleFontWeight": 500,
        "gridColor": "#88888840",
        "domainColor": "#888888",
        "tickColor": "#888888",
        "labelFlush": False,
        "labelFontSize": 12,
        "titleFontSize": 12,
    },
    "legend": {
        "labelColor": "currentColor",
        "titleColor": "currentColor",
        "labelFontSize": 12,
        "orient": "top",
        "title": None,
        "columns": 3,
        "symbolOpacity": 1,
        "labelLimit": 260,
    },
}


@dataclass(frozen=True)
class Chart:
    """A chart and what is read in its stead.

    Attributes:
        title: a few words.
        caption: how to read it.
        spec: Vega-Lite, as wide as its container.
        heads: of the table of its numbers.
        rows: of that table.
    """

    title: str
    caption: str
    spec: dict[str, Any]
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    @property
    def svg(self) -> str:
        """The chart as it stands without scripts, and in print."""
        import vl_convert  # a browser's engine: slow to import

        text = vl_convert.vegalite_to_svg(self.spec | {"width": STATIC_WIDTH}, vl_version=_version())
        return re.sub(r"\bgradient_\d+", f"gradient-{crc32(self.title.encode())}", text)  # they are numbered on and on


@cache
def scripts() -> str:
    """Vega, Vega-Lite and vega-embed in one script, which needs no network."""
    import vl_convert

    bundle = vl_convert.javascript_bundle(vl_version=_version())  # pyright: ignore[reportCallIssue]
    return bundle.replace("</script", "<\\/script")


def chart_of(title: str, caption: str, chart: Any, heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Chart:
    spec = chart.to_dict() | {"config": CONFIG}
    spec.setdefault("height", HEIGHT)
    spec |= {"width": "container", "autosize": {"type": "fit-x", "contains": "padding"}}
    spec["description"] = f"{title}. {caption}"
    return Chart(title, caption, spec, heads, tuple(rows))


def kinds(groups: Mapping[str, Any]) -> alt.Color:
    """The colour of a kind of run: its method's, or another by its place."""
    names = list(groups)
    colours = [COLOURS.get(name) or FURTHER[place % len(FURTHER)] for place, name in enumerate(names)]
    return alt.Color("kind:N", sort=names, scale=alt.Scale(domain=names, range=colours), legend=_legend(names))


def shapes(groups: Mapping[str, Any]) -> alt.Shape:
    """The same legend as the colours have."""
    names = list(groups)
    return alt.Shape("kind:N", sort=names, scale=alt.Scale(domain=names), legend=_legend(names))


def _legend(names: Sequence[str]) -> alt.Legend:
    """As many columns as fit a phone."""
    longest = max(map(len, names))
    return alt.Legend(title=None, columns=1 if longest > 24 else 2 if longest > 12 else 3)


def dashes(parts: Sequence[str]) -> alt.StrokeDash:
    scale = alt.Scale(domain=list(parts), range=[[1, 0], [4, 3]][: len(parts)])
    return alt.StrokeDash("part:N", scale=scale, legend=None)


def epochs() -> alt.X:
    whole = "datum.value % 1 ? '' : format(datum.value, 'd')"  # ticks come by width: two epochs would have three
    return alt.X("epoch:Q", axis=alt.Axis(tickMinStep=1, labelExpr=whole), scale=alt.Scale(zero=False, nice=False))


def rounded(values: Sequence[Mapping[str, Any]], digits: int = 3) -> list[dict[str, Any]]:
    return [{k: round(v, digits) if isinstance(v, float) else v for k, v in each.items()} for each in values]


def texts(*values: float) -> tuple[str, ...]:
    return tuple(f"{value:.2f}" for value in values)


def _version() -> str:
    """Of Vega-Lite, as Altair writes it: "6.1"."""
    return ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])


def as_json(spec: Mapping[str, Any]) -> str:
    """A chart's spec for a script element."""
    return json.dumps(spec, separators=(",", ":")).replace("<", "\\u003c")
