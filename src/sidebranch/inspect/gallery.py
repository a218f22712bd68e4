"""Nearest gallery images of some queries in re-identification runs, side by side, as HTML."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from sidebranch.errors import UserError, nearest
from sidebranch.inspect.record import Record, by_kind

SHOWN = 6  # queries, where none are chosen
THUMB = (64, 128)
KEYS = {"root", "files", "identities", "queries", "average_precision", "nearest", "cmc"}

STYLE = """
.found { margin: 1.25rem 0; } .found h3 { font-size: 1rem; margin: 0 0 .25rem; }
.found .row { display: grid; grid-template-columns: 7.5rem repeat(11, 52px); gap: 10px;
              align-items: center; padding: 3px; }
.found .who { font-size: .85rem; line-height: 1.25; } .found .who b { display: block; }
.found img, .found .gone { display: block; width: 52px; height: 104px; border-radius: 2px; object-fit: cover; }
.found .gone { font-size: .6rem; overflow: hidden; background: #eee; overflow-wrap: anywhere; }
.found .right > *:first-child { outline: 3px solid #009E73; outline-offset: 0; }
.found .wrong > *:first-child { outline: 3px dashed #D55E00; outline-offset: 0; }
.found .cell { text-align: center; font-size: .75rem; line-height: 1.5; } .found .asked { align-self: start; }
"""


@dataclass(frozen=True)
class Found:
    """One run's rankings.json."""

    kind: str
    table: dict[str, Any]

    @property
    def queries(self) -> list[str]:
        """The queries' files, relative to the root of the data."""
        return [self.table["files"][number] for number in self.table["queries"]]

    def image(self, number: int, what: str) -> str:
        """A test image, embedded in the page."""
        return _image(Path(self.table["root"]) / self.table["files"][number], what)


def read_rankings(record: Record, data_root: str = "") -> dict[str, Any] | None:
    """A run's CMC curves and nearest images; None if the run is not finished.

    Args:
        record: of the run.
        data_root: where its images are, if they have moved.
    """
    path = record.folder.rankings
    if not path.is_file():
        return None
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        if lacking := sorted(KEYS - set(table)):
            raise ValueError(f"it lacks {', '.join(lacking)}")
    except (ValueError, TypeError) as error:
        raise UserError(f"'{path}' cannot be read: {error}") from error
    return table | ({"root": data_root} if data_root else {})


def gallery(records: Sequence[Record], queries: Sequence[str] = (), data_root: str = "") -> str:
    """The ten nearest images of each chosen query; one row per kind of run, of its first finished seed.

    Args:
        records: re-identification runs.
        queries: files of queries, or the ends of their paths; if none, six of those with a match, evenly spaced.
        data_root: where the images are, if they have moved.

    Raises:
        UserError: a chosen query does not exist, or no run is finished.
    """
    found = []
    for kind, group in by_kind(records).items():
        tables = (read_rankings(record, data_root) for record in group)
        found += [Found(kind, table) for table in tables if table is not None][:1]
    if not found:
        if queries:
            raise UserError("none of these runs is finished; the nearest images are written at a run's end")
        return ""
    chosen = [_named(each, found[0].queries) for each in queries] or _spaced(found[0])
    return "".join(_query(name, [each for each in found if name in each.queries]) for name in chosen)


def _named(name: str, queries: Sequence[str]) -> str:
    """The query with this path, or with a path that ends with it."""
    meant = [each for each in queries if each == name or each.endswith(f"/{name}")]
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


def _query(name: str, found: Sequence[Found]) -> str:
    """One query: its image, and a row of gallery images per run."""
    rows = []
    for place, each in enumerate(found):
        table, at = each.table, each.queries.index(name)
        number = table["queries"][at]
        who = table["identities"][number]
        asked = f'<div class="cell asked">{each.image(number, "query")}query</div>' if not place else "<div></div>"
        cells = [_cell(each, other, table["identities"][other] == who) for other in table["nearest"][at] if other >= 0]
        precision = table["average_precision"][at]
        text = f"AP {100 * precision:.0f} %" if precision >= 0 else "no match to find"
        rows.append(
            f'<div class="row"><div class="who"><b>{escape(each.kind)}</b>{text}</div>{asked}{"".join(cells)}</div>'
        )
    return f'<div class="found"><h3>{escape(name)}</h3><div class="scroll">{"".join(rows)}</div></div>'


def _cell(found: Found, number: int, is_right: bool) -> str:
    word = "right" if is_right else "wrong"
    mark = "✓" if is_right else "✗"
    return f'<div class="cell {word}">{found.image(number, word)}{mark}</div>'


def _image(path: Path, what: str) -> str:
    """The image, embedded in the page."""
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
