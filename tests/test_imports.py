"""Imports point one way: a file imports only from rooms above its own in this table, or from its own."""

import ast
from pathlib import Path

import pytest

import sidebranch

ROOT = Path(sidebranch.__file__).parent
GROUND = {"errors", "seeding"}
MODEL = GROUND | {"loss", "objective", "sampling", "model"}
LIBRARY = MODEL | {"branches", "zoo", "attach"}
ENGINE = LIBRARY | {"data", "metrics", "engine"}

# Room to the rooms it may import; docs/design.md says what lives in each.
ALLOWED = {
    "errors": set(),
    "seeding": set(),
    "loss": GROUND,
    "objective": GROUND | {"loss"},
    "sampling": GROUND,
    "model": GROUND | {"objective", "sampling"},
    "branches": MODEL,
    "zoo": MODEL | {"branches"},
    "attach": MODEL | {"branches", "zoo"},
    "data": GROUND,
    "metrics": GROUND,
    "engine": LIBRARY | {"data", "metrics"},
    "deploy": ENGINE,
    "inspect": ENGINE,
    "study": ENGINE,
    "prepare": GROUND | {"data"},
    "cli": ENGINE | {"deploy", "inspect", "prepare", "study"},
    "__init__": LIBRARY,
    "__main__": {"cli"},
}
# The core works in anyone's loop with torch alone (jaxtyping is annotation).
TORCH_ONLY = {"errors", "seeding", "loss", "objective", "sampling", "model", "branches", "metrics"}
STANDARD = {
    "__future__",
    "collections",
    "contextlib",
    "copy",
    "dataclasses",
    "difflib",
    "functools",
    "itertools",
    "hashlib",
    "math",
    "operator",
    "typing",
    "torch",
}


def imports_of(source: str, package: str) -> set[str]:
    """The absolute names that a file imports; `from a import b` counts as a.b."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parent = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parent, *([node.module] if node.module else [])])
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return names


def rooms_of(names: set[str]) -> set[str]:
    """The sidebranch rooms among imported names."""
    return {parts[1] for name in names if (parts := name.split("."))[0] == "sidebranch" and len(parts) > 1}


def files():
    for path in sorted(ROOT.rglob("*.py")):
        relative = path.relative_to(ROOT)
        yield pytest.param(path, relative.parts[0].removesuffix(".py"), id=str(relative))


@pytest.mark.parametrize(("path", "room"), list(files()))
def test_imports_point_one_way(path, room):
    package = ".".join(["sidebranch", *path.relative_to(ROOT).parts[:-1]])
    wrong = rooms_of(imports_of(path.read_text(), package)) - ALLOWED[room] - {room}
    assert not wrong, f"{path.relative_to(ROOT)} may not import {sorted(wrong)}"


@pytest.mark.parametrize(("path", "room"), list(files()))
def test_the_core_needs_torch_alone(path, room):
    if room in TORCH_ONLY:
        outside = {name.split(".")[0] for name in imports_of(path.read_text(), "sidebranch")}
        sorts = {"numpy"} if room == "metrics" else set()  # ten times as fast as torch does on a CPU
        assert outside <= STANDARD | sorts | {"jaxtyping", "sidebranch"}


def test_an_upward_import_would_be_seen():
    for source in ("from sidebranch.engine import train", "from ..engine import x", "import sidebranch.engine.loop"):
        assert rooms_of(imports_of(source, "sidebranch.data")) == {"engine"}
    assert rooms_of(imports_of("from sidebranch import engine", "sidebranch.data")) == {"engine"}
