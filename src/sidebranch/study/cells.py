"""The cells of a study: one run each, found in the study's folder by what its config trains. No torch.

In: a study, seeds and flags. Out: `Cell`s with their folders and states.
"""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from sidebranch.config.compare import as_dict, fingerprint
from sidebranch.config.schema import Config
from sidebranch.errors import UserError
from sidebranch.runs.folder import RunFolder
from sidebranch.runs.teacher_file import with_teacher_hash
from sidebranch.study.spec import Row, Study

ADOPTED = "adopted"  # a file in the folder of a run that was copied from elsewhere
SMALL_FILES = ("config.yaml", "metrics.csv", "environment.json", "classes.json", "rankings.json", "model.safetensors")
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast


@dataclass(frozen=True)
class State:
    """Of a cell.

    Attributes:
        kind: `waiting`, `started` (and stopped), `done`, `failed` or `damaged`.
        epochs: finished.
        seconds: of training so far.
        error: main's headline metric after the last finished epoch, in percent; None before the first.
        message: why it failed, one line.
    """

    kind: str
    epochs: int = 0
    seconds: float = 0.0
    error: float | None = None
    message: str = ""


@dataclass(frozen=True)
class Cell:
    """One run of a study.

    Attributes:
        row: of the study's table.
        seed: of the run.
        config: the whole config.
        folder: of the run, in the study's `cells/`.
        logs: of the study; `logs/CELL.json` has the exit status.
    """

    row: Row
    seed: int
    config: Config
    folder: RunFolder
    logs: Path

    @property
    def name(self) -> str:
        return self.folder.root.name

    @property
    def outcome(self) -> Path:
        """Exit status and message of the last attempt, JSON."""
        return self.logs / f"{self.name}.json"

    def state(self) -> State:
        """What the files say."""
        try:
            rows = read_rows(self.folder)
            failure = json.loads(self.outcome.read_text(encoding="utf-8")) if self.outcome.is_file() else {}
        except (OSError, ValueError, KeyError) as error:
            return State("damaged", message=f"{type(error).__name__}: {error}")
        last = rows[-1] if rows else {}
        error = last.get("val/top1/main", last.get("val/mAP/main"))
        epochs, seconds = int(last.get("epoch", 0)), last.get("seconds", 0.0)
        is_done = self.folder.weights.is_file() or (self.folder.root / ADOPTED).is_file()
        if is_done and epochs >= self.config.optim.epochs:
            return State("done", epochs, seconds, error)
        if failure.get("message"):
            return State("failed", epochs, seconds, error, failure["message"])
        return State("started" if self.folder.config.is_file() else "waiting", epochs, seconds, error)


def read_rows(folder: RunFolder) -> list[dict[str, float]]:
    """The rows of metrics.csv; none if there is no such file."""
    if not folder.metrics.is_file():
        return []
    with open(folder.metrics, encoding="utf-8", newline="") as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


def plan(study: Study, root: Path, seeds: Sequence[int], only: Sequence[str], flags: Sequence[str]) -> list[Cell]:
    """The cells of a study, row by row, with the folders that they have or will have.

    Args:
        study: the table.
        root: the study's folder.
        seeds: of every row.
        only: parts of the names of recipes, networks or variants; rows that have one of each are taken; all if empty.
        flags: of `sidebranch train`, for every row.

    Raises:
        UserError: a recipe or a flag is wrong, or no row is left.
    """
    configs = [(row, row.config(flags)) for row in study.rows]
    configs = [(row, config) for row, config in configs if all(each in _words(row, config) for each in only)]
    if not configs:
        raise UserError(f"no row of the study {study.name} has {' and '.join(only)} in its recipe, network or variant")
    known = _known(root)
    cells, taken = [], set(known.values())
    for row, config in configs:
        for seed in seeds:
            name = _slug(f"{row.recipe}-{row.variant}-seed{seed}")
            own = with_teacher_hash(replace(config, seed=seed, name=config.name or _slug(row.recipe)))
            path = known.get(fingerprint(as_dict(own)))
            if path is None:
                names = [name, *(f"{name}-{count}" for count in range(2, 1000))]
                path = next(each for each in (root / "cells" / each for each in names) if each not in taken)
                taken.add(path)
                known[fingerprint(as_dict(own))] = path  # rows that train the same share a run
            cells.append(Cell(row, seed, own, RunFolder(path), root / "logs"))
    return cells


def adopt(cells: Sequence[Cell], source: Path) -> list[str]:
    """Copies finished runs of a study's cells from a run folder, or from all run folders below `source`.

    Returns:
        The names of the adopted cells.

    Raises:
        UserError: there is no finished run, or none of them trains what a cell trains.
    """
    found = [path.parent for path in sorted(source.rglob("config.yaml")) if (path.parent / "metrics.csv").is_file()]
    if not found:
        raise UserError(f"'{source}' has no run with a finished epoch")
    runs = {fingerprint(_read(path / "config.yaml")): path for path in found}
    adopted = []
    for cell in cells:
        path = runs.get(fingerprint(as_dict(cell.config)))
        if path is None or cell.folder.config.is_file():
            continue
        rows = read_rows(RunFolder(path))
        if not rows or rows[-1]["epoch"] < cell.config.optim.epochs:
            raise UserError(f"'{path}' is not finished; continue it first: sidebranch train {path} --resume")
        cell.folder.root.mkdir(parents=True)
        for name in SMALL_FILES:
            if (path / name).is_file():
                shutil.copy2(path / name, cell.folder.root / name)
        (cell.folder.root / ADOPTED).write_text(f"{path.resolve()}\n", encoding="utf-8")
        adopted.append(cell.name)
    if not adopted:
        raise UserError(f"no run in '{source}' trains what a cell of this study without a run trains")
    return adopted


def _known(root: Path) -> dict[str, Path]:
    """Fingerprint to folder, of the runs in a study's folder."""
    found = {}
    for path in sorted((root / "cells").glob("*/config.yaml")):
        if not path.stat().st_size:  # a run that starts at this moment
            continue
        try:
            found[fingerprint(_read(path))] = path.parent
        except (ValueError, yaml.YAMLError, AttributeError) as error:
            raise UserError(f"'{path}' is damaged ({error}); remove '{path.parent}' to train this cell anew") from error
    return found


def _read(path: Path) -> dict[str, Any]:
    return yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)


def _words(row: Row, config: Config) -> str:
    return f"{row.recipe} {config.model.name} {row.variant} {config.method}"


def _slug(text: str) -> str:
    return re.sub(r"[^\w.]+", "-", text).strip("-").lower()
