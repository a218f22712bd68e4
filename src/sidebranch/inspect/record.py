"""A run folder, read back; and several of them, summarised method by method."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from sidebranch.engine import Config, RunFolder, recipe
from sidebranch.engine.config import as_dict, differences
from sidebranch.engine.measure import Measure, measure_of
from sidebranch.errors import UserError


@dataclass(frozen=True)
class Record:
    """One run.

    Attributes:
        rows: of metrics.csv, one an epoch; errors and mAP in percent.
        environment: versions, hardware, parameter counts.
    """

    folder: RunFolder
    config: Config
    rows: list[dict[str, float]]
    environment: dict[str, Any]

    @property
    def measure(self) -> Measure:
        """What it is judged by: validation top-1 error, or mAP."""
        return measure_of(self.rows[-1])

    @property
    def columns(self) -> list[str]:
        """The classifiers that were evaluated, and "ensemble" or "concat"."""
        return self.measure.columns(self.rows[-1])

    def value(self, column: str) -> float:
        """Its measure after the last epoch, in percent."""
        return self.measure.of(self.rows[-1], column)

    @property
    def best(self) -> float:
        """Main's best over the epochs, in percent: optimistic, as it was chosen by looking."""
        values = [self.measure.of(row) for row in self.rows]
        return max(values) if self.measure.higher_is_better else min(values)


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over seeds (0 for one)."""

    mean: float
    std: float
    count: int

    def __str__(self) -> str:
        return f"{self.mean:.2f}" + (f" ± {self.std:.2f}" if self.count > 1 else "")


def read_record(folder: RunFolder) -> Record:
    """Reads a run folder in which at least one epoch is done."""
    if not folder.config.is_file() or not folder.metrics.is_file():
        raise UserError(f"'{folder.root}' is no run folder with a finished epoch: it lacks config.yaml or metrics.csv")
    try:
        with open(folder.metrics, encoding="utf-8", newline="") as file:
            rows = [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]
        environment = json.loads(folder.environment.read_text(encoding="utf-8")) if folder.environment.is_file() else {}
    except ValueError as error:
        raise UserError(f"metrics.csv or environment.json of '{folder.root}' cannot be read: {error}") from error
    if not rows or "main" not in measure_of(rows[-1]).columns(rows[-1]):
        raise UserError(f"'{folder.metrics}' has no row with the error of main: no epoch is finished")
    return Record(folder, recipe.load(folder.config), rows, environment)


def label(method: str) -> str:
    """A method's name as it is written in prose."""
    return method if method == "baseline" else method.upper()


def by_kind(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Runs that differ in nothing but the seed, under a name that tells them from the others.

    The name is the method, and what else differs from the first record: "DHM, optim.lr 0.05".

    Raises:
        UserError: a run is given twice, or some classify and others re-identify.
    """
    if len({record.measure for record in records}) > 1:
        raise UserError("these runs are of two tasks, classification and re-identification; compare those of one")
    groups: dict[str, list[Record]] = {}
    first = as_dict(records[0].config)
    for record in records:
        changed = [
            each for each in differences(first, as_dict(record.config)) if not each.startswith(("method:", "seed:"))
        ]
        told = [f"{key} {values.split(' -> ')[-1]}" for key, values in (each.split(": ", 1) for each in changed)]
        if len(told) > 2:  # another network or data set: its own name says it shorter
            told = [re.sub(r"-seed\d+$", "", record.folder.root.resolve().name)]
        group = groups.setdefault(", ".join([label(record.config.method), *told]), [])
        if any(record.folder.root.resolve() == other.folder.root.resolve() for other in group):
            raise UserError(f"the run '{record.folder.root}' is given twice")
        group.append(record)
    return groups


def summarise(records: Sequence[Record]) -> dict[str, dict[str, Spread]]:
    """Kind of run to classifier to its final measure over the seeds, in percent."""
    summary: dict[str, dict[str, Spread]] = {}
    for kind, group in by_kind(records).items():
        columns = group[0].columns
        found = {column: [record.value(column) for record in group] for column in columns}
        summary[kind] = {column: spread(values) for column, values in found.items()}
    return summary


def spread(values: Sequence[float]) -> Spread:
    return Spread(mean(values), stdev(values) if len(values) > 1 else 0.0, len(values))
