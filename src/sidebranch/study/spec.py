"""Studies: tables of runs. In: a YAML file of recipes and variants. Out: its rows, each with a command. No torch.

A study is groups of recipes and variants; every variant is run with every recipe of its group. A variant is the fields
that it changes: `{method: dhm, branches.use: [b1]}`.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from sidebranch.config import recipe
from sidebranch.config.schema import Config
from sidebranch.errors import UserError, nearest

KEYS = ("about", "note", "seeds", "first_seed", "groups", "published")


@dataclass(frozen=True)
class Row:
    """One recipe with one variant.

    Attributes:
        recipe: its name.
        variant: its name in the study.
        settings: dotted field to value.
        published: metric to the papers' result, in percent; empty if there is none.
    """

    recipe: str
    variant: str
    settings: dict[str, Any]
    published: dict[str, float]

    @property
    def flags(self) -> list[str]:
        """The settings as flags of `sidebranch train`."""
        return [word for key, value in self.settings.items() for word in (f"--{key}", _as_word(value))]

    @property
    def command(self) -> str:
        """The command line that trains this row."""
        return shlex.join(["sidebranch", "train", self.recipe, *self.flags])

    def config(self, flags: Sequence[str] = ()) -> Config:
        """The row's config, with further flags of `sidebranch train`; what the row sets itself, stays.

        Raises:
            UserError: the recipe, a setting or a flag is wrong.
        """
        return recipe.parse([*recipe.flags(recipe.find(self.recipe)), *flags, *self.flags], self.recipe)


@dataclass(frozen=True)
class Study:
    """A table of runs.

    Attributes:
        name: of the study.
        about: one line about it.
        note: a sentence below the table, or empty.
        seeds: number of runs of every row.
        first_seed: theirs are this and those after it.
        rows: of the table.
    """

    name: str
    about: str
    note: str
    seeds: int
    first_seed: int = 0
    rows: tuple[Row, ...] = field(default=())

    def seeds_of(self, count: int = 0) -> range:
        """The first `count` seeds, or all of the study's."""
        return range(self.first_seed, self.first_seed + (count or self.seeds))


def shipped() -> dict[str, Path]:
    """The studies of the package: name ("dhm-table1") to file."""
    root = Path(str(files("sidebranch") / "studies"))
    return {path.stem: path for path in sorted(root.glob("*.yaml"))}


def of_papers() -> list[str]:
    """The names of the shipped studies that are the papers' own."""
    return [name for name in shipped() if name.startswith(("dhm-", "dks-")) and not name.endswith("-short")]


def read_study(name: str) -> Study:
    """A shipped study by its name, or a YAML file.

    Raises:
        UserError: there is no such study, or it has a wrong key.
    """
    path = shipped().get(name) or Path(name)
    if not path.is_file():
        raise UserError(f"no study '{name}', neither shipped nor a file; {nearest(name, shipped())}")
    content = _content(path)
    published, names = content.get("published", {}), {name for group in content["groups"] for name in group["recipes"]}
    of_recipes = {name: recipe.load(recipe.find(name)).published.results for name in names}
    rows = [
        Row(name, str(variant), settings, published.get(variant) or _of_method(of_recipes[name], settings))
        for group in content["groups"]
        for name in group["recipes"]
        for variant, settings in group["variants"].items()
    ]
    names_of_rows = [(row.recipe, row.variant) for row in rows]
    if twice := [each for each in names_of_rows if names_of_rows.count(each) > 1]:
        raise UserError(f"{path}: the recipe {twice[0][0]} has two variants '{twice[0][1]}'; give each its own name")
    texts = path.stem, content.get("about", ""), content.get("note", "")
    return Study(*texts, content.get("seeds", 5), content.get("first_seed", 0), tuple(rows))


def _content(path: Path) -> dict[str, Any]:
    """What a study's file holds, its structure checked."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no study: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not isinstance(content.get("groups"), list):
        raise UserError(f"{path} is no study: it needs `groups`, a list of recipes and variants")
    for key in content:
        if key not in KEYS:
            raise UserError(f"{path}: unknown key '{key}'; {nearest(key, KEYS)}")
    for key, least in (("seeds", 1), ("first_seed", 0)):
        value = content.get(key, least)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise UserError(f"{path}: {key} is {value!r}; it must be a whole number of at least {least}")
    for group in content["groups"]:
        wrong = sorted(set(group) ^ {"recipes", "variants"}) if isinstance(group, dict) else []
        of_kinds = isinstance(group, dict) and not wrong and isinstance(group["recipes"], list)
        if not of_kinds or not isinstance(group["variants"], dict):
            what = f", not '{wrong[0]}'" if wrong and wrong[0] in group else ""
            raise UserError(f"{path}: every group is `recipes`, a list, and `variants`, a mapping{what}")
        for name, settings in group["variants"].items():
            if not isinstance(settings, dict) or "method" not in settings:
                has = f"; it has no `method`, but {', '.join(settings)}" if isinstance(settings, dict) else ""
                raise UserError(f"{path}: the variant '{name}' must be fields and values, such as {{method: dhm}}{has}")
    return content


def _of_method(results: dict[str, dict[str, float]], settings: dict[str, Any]) -> dict[str, float]:
    """The papers' result of a recipe, if a variant sets nothing but the method."""
    return results.get(settings["method"], {}) if set(settings) == {"method"} else {}


def _as_word(value: Any) -> str:
    """A value as the command line takes it."""
    return value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True).split("\n...")[0].strip()
