"""Nearest gallery images of some queries in re-identification runs, side by side."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from sidebranch.errors import Notice, UserError, nearest
from sidebranch.inspect.record import Record, read_json

SHOWN = 6  # queries, where none are chosen
THUMB = (64, 128)
KEYS = {"root", "files", "identities", "queries", "average_precision", "nearest", "cmc"}


@dataclass(frozen=True)
class Found:
    """One run's rankings.json."""

    kind: str
    table: dict[str, Any]

    @property
    def queries(self) -> list[str]:
        """The queries' files, relative to the root of the data."""
        return [self.table["files"][number] for number in self.table["queries"]]

    def image(self, number: int) -> Path:
        """A test image."""
        return Path(self.table["root"]) / self.table["files"][number]


@dataclass(frozen=True)
class Row:
    """One run's answer to a query: its nearest images, and whether each shows the same person."""

    kind: str
    precision: str
    query: Path
    nearest: list[tuple[Path, bool]]


@dataclass(frozen=True)
class Query:
    """A query's file and the runs' answers."""

    name: str
    rows: list[Row]


def read_rankings(record: Record, data_root: str = "") -> dict[str, Any] | None:
    """A run's CMC curves and nearest images; None if the run is not finished.

    Args:
        record: of the run.
        data_root: where its images are, if they have moved.
    """
    path = record.folder.rankings
    return read_json(path, KEYS) | ({"root": data_root} if data_root else {}) if path.is_file() else None


def gallery(groups: Mapping[str, Sequence[Record]], queries: Sequence[str] = (), data_root: str = "") -> list[Query]:
    """The ten nearest images of each chosen query; one row per kind of run, of its first finished seed.

    Args:
        groups: kind to its re-identification runs.
        queries: files of queries, or the ends of their paths; if none, six of those with a match, evenly spaced.
        data_root: where the images are, if they have moved.

    Raises:
        UserError: a chosen query does not exist, or no run is finished.
    """
    found = []
    for kind, group in groups.items():
        tables = (read_rankings(record, data_root) for record in group)
        found += [Found(kind, table) for table in tables if table is not None][:1]
    if not found:
        if queries:
            raise UserError("none of these runs is finished; the nearest images are written at a run's end")
        return []
    chosen = [_named(each, found[0].queries) for each in queries] or _spaced(found[0])
    shown = [Query(name, [_row(name, each) for each in found if name in each.queries]) for name in chosen]
    images = {path for query in shown for row in query.rows for path in (row.query, *(path for path, _ in row.nearest))}
    if gone := sorted(path for path in images if not path.is_file()):
        text = f"{len(gone)} of the page's {len(images)} images are gone, such as '{gone[0]}'; --data.root says where"
        warnings.warn(f"{text} the data are now", Notice, stacklevel=2)
    return shown


def _named(name: str, queries: Sequence[str]) -> str:
    """The query with this path below the data's root, or with an end of it; or that a whole path ends with."""
    meant = [each for each in queries if each == name or each.endswith(f"/{name}") or name.endswith(f"/{each}")]
    if not meant:
        raise UserError(f"no query '{name}'; {nearest(name, [Path(each).name for each in queries])}")
    if len(meant) > 1:
        raise UserError(f"{len(meant)} queries are called '{name}'; give more of the path, such as '{meant[0]}'")
    return meant[0]


def _spaced(found: Found) -> list[str]:
    """Evenly spaced queries that have a match, in the order of their files."""
    precisions = found.table["average_precision"]
    known = [name for name, precision in zip(found.queries, precisions, strict=True) if precision >= 0]
    count = min(SHOWN, len(known))
    return [known[int((at + 0.5) * len(known) / count)] for at in range(count)]


def _row(name: str, found: Found) -> Row:
    """One run's answer to a query."""
    table, at = found.table, found.queries.index(name)
    number = table["queries"][at]
    who, precision = table["identities"][number], table["average_precision"][at]
    return Row(
        found.kind,
        f"AP {100 * precision:.0f} %" if precision >= 0 else "no match to find",
        found.image(number),
        [(found.image(other), table["identities"][other] == who) for other in table["nearest"][at] if other >= 0],
    )


def embedded(path: Path, what: str) -> str:
    """An image as an HTML element that needs no file; its name where the file is gone."""
    try:
        with Image.open(path) as file:
            small = file.convert("RGB")
            small.thumbnail(THUMB)
    except (OSError, SyntaxError, ValueError):
        return f'<div class="gone">{escape(path.name)} is gone</div>'
    data = io.BytesIO()
    small.save(data, "JPEG", quality=88)
    text = base64.b64encode(data.getvalue()).decode()
    return f'<img alt="{what}: {escape(path.name)}" src="data:image/jpeg;base64,{text}">'
