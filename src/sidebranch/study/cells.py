"""The cells of a study: one run each, found in the study's folder by what its config trains. No torch.

In: a study, seeds and flags. Out: `Cell`s with their folders and states, and their configs. `cells.json` lists them, so
that a study is shown without its recipes being read again.
"""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from sidebranch.config import recipe
from sidebranch.config.compare import as_dict, differences, fingerprint
from sidebranch.config.schema import Config
from sidebranch.errors import Notice, UserError, reason
from sidebranch.runs.atomic_files import write_text
from sidebranch.runs.folder import RunFolder
from sidebranch.runs.lock import OWNER
from sidebranch.runs.weight_files import with_hashes
from sidebranch.study.spec import Row, Study

SHOWN = 12  # variants that an error lists
ADOPTED = "adopted"  # a file in the folder of a run that was copied from elsewhere
INDEX = "cells.json"
SMALL_FILES = (
    "config.yaml",
    "metrics.csv",
    "environment.json",
    "classes.json",
    "rankings.json",
    "answers.json",
    "model.safetensors",
)
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast
_BROKEN = (OSError, ValueError, AttributeError, yaml.YAMLError, UserError)


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
        epochs: that it trains.
        trains: the fingerprint of its config.
        folder: of the run, in the study's `cells/`.
        logs: of the study; `logs/CELL.json` has the exit status.
    """

    row: Row
    seed: int
    epochs: int
    trains: str
    folder: RunFolder
    logs: Path

    @property
    def name(self) -> str:
        return self.folder.root.name

    def log(self, kind: str) -> Path:
        """A file of its own in `logs/`: `yaml`, its config; `log` and `err`, what it printed."""
        return self.logs / f"{self.name}.{kind}"

    @property
    def outcome(self) -> Path:
        """Exit status and message of the last attempt, JSON."""
        return self.log("json")

    def is_held(self) -> bool:
        """Whether a process trains it, on any machine; also one that was killed, until it goes on."""
        return (self.folder.root / OWNER).is_file()

    def state(self) -> State:
        """What the files say."""
        try:
            rows = self.folder.read_metrics()
            failure = json.loads(self.outcome.read_text(encoding="utf-8")) if self.outcome.is_file() else {}
        except (OSError, ValueError, KeyError) as error:
            return State("damaged", message=f"{type(error).__name__}: {error}")
        last = rows[-1] if rows else {}
        error = last.get("val/top1/main", last.get("val/mAP/main"))
        epochs, seconds = int(last.get("epoch", 0)), last.get("seconds", 0.0)
        is_done = self.folder.weights.is_file() or (self.folder.root / ADOPTED).is_file()
        if is_done and epochs >= self.epochs:
            return State("done", epochs, seconds, error)
        if failure.get("message") and failure.get("trains", self.trains) == self.trains:
            return State("failed", epochs, seconds, error, failure["message"])
        return State("started" if self.folder.config.is_file() else "waiting", epochs, seconds, error)


def plan(
    study: Study, root: Path, seeds: Sequence[int], only: Sequence[str], flags: Sequence[str]
) -> tuple[list[Cell], dict[str, Config]]:
    """The cells of a study, row by row, with the folders that they have or will have; and cell to config.

    Args:
        study: the table.
        root: the study's folder.
        seeds: of every row.
        only: parts of the names of recipes, networks or variants; rows that have one of each are taken; all if empty.
        flags: of `sidebranch train`, for every row.

    Raises:
        UserError: a recipe or a flag is wrong, or no row is left.
    """
    rows = [(row, row.config(flags)) for row in study.rows]
    rows = [(row, config) for row, config in rows if all(each in _words(row, config) for each in only)]
    if flags:  # the papers' numbers stand beside the papers' recipes only
        rows = [(row if _trains_its_own(row, config) else replace(row, published={}), config) for row, config in rows]
    if not rows:
        names = list(dict.fromkeys(row.variant for row in study.rows))
        raise UserError(
            f"no row of the study {study.name} has {' and '.join(only)} in its recipe, network or variant; "
            f"the variants: {'; '.join(names[:SHOWN])}{'; ...' if len(names) > SHOWN else ''}"
        )
    known = _known(root)
    cells, configs, taken = [], {}, set(known.values())
    for row, config in rows:
        for seed in seeds:
            name = _slug(f"{row.recipe}-{row.variant}-seed{seed}")
            own = with_hashes(replace(config, seed=seed, name=config.name or _slug(row.recipe)))
            trains = fingerprint(as_dict(own))
            path = known.get(trains)
            if path is None:
                names = [name, *(f"{name}-{count}" for count in range(2, 1000))]
                path = next(each for each in (root / "cells" / each for each in names) if each not in taken)
                taken.add(path)
                known[trains] = path  # rows that train the same share a run
            cells.append(Cell(row, seed, own.optim.epochs, trains, RunFolder(path), root / "logs"))
            configs[path.name] = own
    return cells, configs


def _trains_its_own(row: Row, config: Config) -> bool:
    """Whether a config trains what its row says, on whatever hardware."""
    return not differences(as_dict(replace(row.config(), runtime=config.runtime, seed=config.seed)), as_dict(config))


def write_cells(root: Path, cells: Sequence[Cell], configs: dict[str, Config]) -> None:
    """Writes what processes and machines need to train the cells: `cells.json` and a config each."""
    for cell in cells:
        if not cell.log("yaml").is_file() or recipe.dump(configs[cell.name]) != cell.log("yaml").read_text("utf-8"):
            cell.logs.mkdir(parents=True, exist_ok=True)
            write_text(cell.log("yaml"), recipe.dump(configs[cell.name]))
    listed = [
        {"name": cell.name, "seed": cell.seed, "epochs": cell.epochs, "trains": cell.trains, "row": asdict(cell.row)}
        for cell in cells
    ]
    write_text(root / INDEX, json.dumps(listed) + "\n")


def read_cells(root: Path) -> list[Cell]:
    """The cells of a study that was started.

    Raises:
        UserError: its list is missing or damaged.
    """
    try:
        listed = json.loads((root / INDEX).read_text(encoding="utf-8"))
        return [
            Cell(
                Row(**each["row"]),
                each["seed"],
                each["epochs"],
                each["trains"],
                RunFolder(root / "cells" / each["name"]),
                root / "logs",
            )
            for each in listed
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"'{root / INDEX}' cannot be read ({error}); start the study again to write it anew") from error


def adopt(cells: Sequence[Cell], source: Path) -> list[str]:
    """Copies finished runs of a study's cells from a run folder, or from all run folders below `source`.

    Returns:
        The names of the adopted cells.

    Raises:
        UserError: there is no finished run, or none of them trains what a cell trains.
    """
    runs = _trained(path for path in sorted(source.rglob("config.yaml")) if (path.parent / "metrics.csv").is_file())
    if not runs:
        raise UserError(f"'{source}' has no run with a finished epoch")
    adopted = []
    for cell in cells:
        path = runs.get(cell.trains)
        if path is None or cell.folder.config.is_file():
            continue
        rows = RunFolder(path).read_metrics()
        if not rows or rows[-1]["epoch"] < cell.epochs:
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


def _trained(paths: Iterable[Path]) -> dict[str, Path]:
    """Fingerprint to folder, of config files; those that are none are named and passed over."""
    found = {}
    for path in paths:
        try:
            found[fingerprint(_read(path))] = path.parent
        except _BROKEN as error:
            warnings.warn(f"'{path}' is no config of a run ({reason(error)})", Notice, stacklevel=2)
    return found


def _known(root: Path) -> dict[str, Path]:
    """Fingerprint to folder, of the runs in a study's folder."""
    found = {}
    for path in sorted((root / "cells").glob("*/config.yaml")):
        if not path.stat().st_size:  # a run that starts at this moment
            continue
        try:
            found[fingerprint(_read(path))] = path.parent
        except _BROKEN as error:
            raise UserError(
                f"'{path}' is damaged ({reason(error)}); remove '{path.parent}' to train this cell anew"
            ) from error
    return found


def _read(path: Path) -> dict[str, Any]:
    content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    if not isinstance(content, dict):
        raise ValueError("it is no mapping")
    return content


def _words(row: Row, config: Config) -> str:
    return f"{row.recipe} {config.model.name} {row.variant} {config.method}"


def _slug(text: str) -> str:
    return re.sub(r"[^\w.]+", "-", text).strip("-").lower()
