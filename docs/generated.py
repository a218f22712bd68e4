"""What the site shows of the code: the arrays of every method, the fields of a config, the commands' help.

In: the package. Out: files that pages include, in docs/_generated, which is not committed.
"""

from __future__ import annotations

import dataclasses
import importlib
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

from docstring_parser import parse

import sidebranch as sb
from sidebranch.cli import COMMANDS, command
from sidebranch.config.schema import Config
from sidebranch.inspect.arrays import who_teaches_whom

NAMES = ("main", "b1", "b2")
OBJECTIVES = {
    "baseline": sb.baseline(),
    "dsl": sb.dsl(),
    "dks": sb.dks(),
    "dks-top-down": sb.dks(direction="top_down"),
    "dhm": sb.dhm(),
    "kd": sb.Objective([1, 0, 0], {"teacher->main": 1.0}, teachers=["teacher"]),
    "byot": sb.byot(),
    "best": sb.best_teacher(),
    "one": sb.one(),
    "pcl": sb.pcl(),
    "mean-teacher": sb.mean_teacher(),
    "ps-kd": sb.Objective([1, 1, 1], {f"past.main->{name}": 1.0 for name in NAMES}, teachers=["past.main"]),
}


def write(place: Path) -> None:
    """Writes all of them."""
    place.mkdir(exist_ok=True)
    for name, objective in OBJECTIVES.items():
        chart = who_teaches_whom(name, objective.described(NAMES))
        _write(place / f"{name}.svg", f'<figure class="arrays">{chart.svg}</figure>')
    _write(place / "config.md", "".join(_fields()))
    _write(place / "commands.md", "".join(_commands()))


def _write(path: Path, text: str) -> None:
    """Only if it changes, so that Sphinx reads no page twice."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def _fields() -> Iterator[str]:
    """A table a group of the config: field, default, what it is."""
    yield _table("A run", Config, "")
    for field in dataclasses.fields(Config):
        group = get_type_hints(Config)[field.name]
        if dataclasses.is_dataclass(group) and field.name != "published":
            yield _table(field.name, group, f"{field.name}.")


def _table(title: str, group: Any, prefix: str) -> str:
    params = parse(group.__doc__ or "").params
    described = {each.arg_name: " ".join((each.description or "").split()) for each in params}
    rows = []
    for field in dataclasses.fields(group):
        default = field.default if field.default is not dataclasses.MISSING else field.default_factory()  # pyright: ignore[reportCallIssue]
        if dataclasses.is_dataclass(default) or field.name not in described:
            continue
        shown = json.dumps(default) if not isinstance(default, str) else default or "(empty)"
        rows.append(f"| `{prefix}{field.name}` | `{shown}` | {described[field.name].replace('|', chr(92) + '|')} |\n")
    about = (group.__doc__ or "").strip().splitlines()[0]
    return f"## {title}\n\n{about}\n\n| field | default | |\n|---|---|---|\n" + "".join(rows) + "\n"


def _commands() -> Iterator[str]:
    """The help of every command, as a terminal of 100 columns shows it."""
    os.environ["COLUMNS"] = "100"
    for name in COMMANDS:
        out = io.StringIO()
        command(name).parser().print_help(out)
        text = out.getvalue().partition("\n\nin a recipe:")[0]  # the fields have a page of their own
        yield f"## {name}\n\n```text\n{text.rstrip()}\n```\n\n"


if __name__ == "__main__":
    importlib.invalidate_caches()
    write(Path(__file__).parent / "_generated")
