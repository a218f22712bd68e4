"""The two arrays of an objective as a chart: who learns from the labels, and who teaches whom.

In: `Objective.described`, as a run's environment.json keeps it. Out: a `Chart`.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from typing import Any

import altair as alt

from sidebranch.config.method import ObjectiveConfig
from sidebranch.inspect.chart import Chart, chart_of

LABELS = "labels"
ROW = 34  # pixels
PLAIN = ObjectiveConfig()
TEACHER = "teacher"  # as `core.objective` has it, which would import torch
EXPLAINED = {
    "average": "average: the moving average of the network",
    "past": "past: the prediction of the epoch before for the same image",
    "ensemble": "ensemble: the mean of the classifiers' logits",
    "best": "best: the classifier with the lowest loss in the batch",
    TEACHER: "teacher: an outside network",
}


def who_teaches_whom(kind: str, described: Mapping[str, Any], settings: ObjectiveConfig = PLAIN) -> Chart:
    """A row a teacher, the labels first, and a column a student; the area of a disc is its weight in the loss.

    Args:
        kind: of run.
        described: its objective.
        settings: of its config, for what changes over a training.
    """
    students, teachers = described["students"], [LABELS, *described["teachers"]]
    table = [described["supervision"], *described["mimicry"]]
    values = [
        {"teacher": teacher, "student": student, "weight": float(weight), "kind": "labels" if not row else "mimicry"}
        for row, (teacher, weights) in enumerate(zip(teachers, table, strict=True))
        for student, weight in zip(students, weights, strict=True)
    ]
    base = alt.Chart(alt.Data(values=values)).encode(
        x=alt.X("student:N", sort=students, title="learns", axis=alt.Axis(orient="top", labelAngle=0, domain=False)),
        y=alt.Y("teacher:N", sort=teachers, title="teaches", axis=alt.Axis(domain=False)),
        tooltip=["teacher:N", "student:N", "weight:Q"],
    )
    largest = max(each["weight"] for each in values) or 1.0
    colours = alt.Scale(domain=["labels", "mimicry"], range=["#C27A00", "#3A7FC1"])
    discs = base.mark_circle(opacity=0.85).encode(
        size=alt.Size("weight:Q", legend=None, scale=alt.Scale(domain=[0, largest], range=[0, 520])),
        color=alt.Color("kind:N", legend=None, scale=colours),
    )
    shown = base.transform_calculate(shown="datum.weight == 0 ? '·' : format(datum.weight, '.3~g')")
    text = shown.mark_text(dx=22, fontSize=12, color="currentColor").encode(text="shown:N")
    how = _how(described, settings) if any(map(any, table[1:])) else ""
    roles = dict.fromkeys(name.partition(".")[0] for name in teachers)
    further = [EXPLAINED[each] for each in roles if each in EXPLAINED]
    several = [name for name in teachers if name.rstrip(string.digits) == TEACHER != name]
    further += [f"{', '.join(several)}: outside networks"] if several else []
    return chart_of(
        f"{kind}: who teaches whom",
        "Weights in the loss: of the labels (first row) and of what each classifier learns from each teacher."
        + how
        + (f" {'; '.join(further)}." if further else ""),
        (discs + text).properties(height=ROW * len(teachers)),
        ("teacher", "student", "weight"),
        [(each["teacher"], each["student"], f"{each['weight']:g}") for each in values if each["weight"]],
    )


def _how(described: Mapping[str, Any], settings: ObjectiveConfig) -> str:
    """The temperature, the divergence and the ramp, a sentence each."""
    end, divergence, ramp = settings.temperature_end, described["divergence"], settings.mimicry_ramp
    cools = f", which goes to {end:g} in a line" if end else ""
    text = f" Teachers and students are softened by T = {described['temperature']:g}{cools}."
    if divergence != "kl":
        parts = " ({:g} for the label, {:g} for the others)".format(*settings.decoupled)
        text += f" Divergence: {divergence}{parts if divergence == 'decoupled' else ''}."
    return text + (f" The weights of mimicry rise from 0 over the first {ramp} epochs." if ramp else "")
