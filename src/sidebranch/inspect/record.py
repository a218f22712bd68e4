"""Read run folders, and summarise them by kind of run. Imports no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from sidebranch.config import recipe
from sidebranch.config.compare import as_dict, differences
from sidebranch.config.schema import Config
from sidebranch.errors import UserError
from sidebranch.runs.folder import RunFolder
from sidebranch.runs.headline import Headline, headline_of


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
    def headline(self) -> Headline:
        """The headline metric: validation top-1 error, or mAP."""
        return headline_of(self.rows[-1])

    @property
    def images(self) -> int | None:
        """Number of validation images; None if the run did not record it."""
        return self.environment.get("images", {}).get("val")

    @property
    def columns(self) -> list[str]:
        """The evaluated classifiers, and "ensemble" or "concat"."""
        return self.headline.columns(self.rows[-1])

    def value(self, column: str) -> float:
        """The headline metric after the last epoch, in percent."""
        return self.headline.of(self.rows[-1], column)

    @property
    def best(self) -> float:
        """Main's best epoch, in percent: optimistic, as it is selected on the validation images."""
        values = [self.headline.of(row) for row in self.rows]
        return max(values) if self.headline.higher_is_better else min(values)


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over seeds (0 for one seed)."""

    mean: float
    std: float
    count: int

    def __str__(self) -> str:
        return f"{self.mean:.2f}" + (f" ± {self.std:.2f}" if self.count > 1 else "")


def read_record(folder: RunFolder) -> Record:
    """Reads a run folder with at least one finished epoch."""
    if not folder.config.is_file() or not folder.metrics.is_file():
        raise UserError(f"'{folder.root}' is no run folder with a finished epoch: it lacks config.yaml or metrics.csv")
    try:
        rows = folder.read_metrics()
        environment = json.loads(folder.environment.read_text(encoding="utf-8")) if folder.environment.is_file() else {}
    except ValueError as error:
        raise UserError(f"metrics.csv or environment.json of '{folder.root}' cannot be read: {error}") from error
    if not rows or "main" not in headline_of(rows[-1]).columns(rows[-1]):
        raise UserError(f"'{folder.metrics}' has no row with the error of main: no epoch is finished")
    return Record(folder, recipe.load(folder.config), rows, environment)


def read_json(path: Path, keys: Collection[str]) -> dict[str, Any]:
    """A file that a run's end wrote.

    Raises:
        UserError: it is damaged, or lacks one of the keys.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        if lacking := sorted(set(keys) - set(table)):
            raise ValueError(f"it lacks {', '.join(lacking)}")
    except (ValueError, TypeError) as error:
        raise UserError(f"'{path}' cannot be read: {error}") from error
    return table


def label(method: str) -> str:
    """A method's name in prose."""
    return method if method == "baseline" else method.upper()


def by_kind(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Groups runs that differ only in the seed; the name of a group tells it from the others.

    The name is the method, and the settings that differ from the first record: "DHM, optim.lr 0.05".

    Raises:
        UserError: a run is given twice, or the runs are of both classification and re-identification.
    """
    if len({record.headline for record in records}) > 1:
        raise UserError("these runs are of two tasks, classification and re-identification; compare those of one")
    groups: dict[str, list[Record]] = {}
    differing: dict[str, list[str]] = {}
    for record in records:
        changed = [each for each in changes(records[0], record) if not each.startswith(("method:", "seed:"))]
        names = [f"{key} {values.split(' -> ')[-1]}" for key, values in (each.split(": ", 1) for each in changed)]
        if len(names) > 2:  # such as another network or data set: the folder's name is shorter
            path = record.folder.root.resolve()
            short = re.sub(r"-?seed\d+$", "", path.name) or path.parent.name
            is_taken = differing.setdefault(f"{label(record.config.method)}, {short}", changed) != changed
            names = names if is_taken else [short]
        group = groups.setdefault(", ".join([label(record.config.method), *names]), [])
        if any(record.folder.root.resolve() == other.folder.root.resolve() for other in group):
            raise UserError(f"the run '{record.folder.root}' is given twice")
        group.append(record)
    return groups


def changes(first: Record, record: Record) -> list[str]:
    """The settings in which two runs' training differs, as "optim.lr: 0.1 -> 0.05"; also what `auto` resolved to."""
    changed = differences(as_dict(first.config), as_dict(record.config))
    before, after = (each.environment.get("choices", {}).get("precision") for each in (first, record))
    if before and after and before != after and not any(each.startswith("runtime.precision:") for each in changed):
        changed.append(f"runtime.precision: {before} -> {after}")
    return changed


def summarise(groups: Mapping[str, Sequence[Record]]) -> dict[str, dict[str, Spread]]:
    """Kind of run to classifier to its final headline metric over the seeds, in percent."""
    return {
        kind: {column: spread([record.value(column) for record in group]) for column in group[0].columns}
        for kind, group in groups.items()
    }


def spread(values: Sequence[float]) -> Spread:
    return Spread(mean(values), stdev(values) if len(values) > 1 else 0.0, len(values))
