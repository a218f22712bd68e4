"""`sidebranch recipes`: the shipped recipes and the papers' numbers; one recipe beside its paper's text and code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from jsonargparse import ArgumentParser

from sidebranch.cli.parsing import parse, plain_parser
from sidebranch.cli.texts import RECIPES_HELP
from sidebranch.config import recipe
from sidebranch.config.compare import as_dict, leaves
from sidebranch.config.schema import METHODS, Config, Published
from sidebranch.inspect.record import label

METRICS = {"top1": "top-1 error", "std": "std", "top5": "top-5 error", "mAP": "mAP", "rank1": "rank 1"}


def parser() -> ArgumentParser:
    made = plain_parser("recipes", RECIPES_HELP)
    made.add_argument("recipe", type=str, nargs="?", default="", help="Show this one; all if left out.")
    return made


def run(arguments: Sequence[str]) -> int:
    name = parse(parser(), arguments).recipe
    return _show_one(name) if name else _list_all()


def _list_all() -> int:
    from rich.console import Console
    from rich.table import Table

    configs = {name: recipe.load(path) for name, path in recipe.shipped().items()}
    console = Console(highlight=False)
    for is_reid, title in {False: "The papers' top-1 error, %", True: "Re-identification: the papers' mAP, %"}.items():
        table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0))
        for heading in ("recipe", "source"):
            table.add_column(heading, no_wrap=True)
        shown = [method for method in METHODS if method != "kd"]
        for method in shown:
            table.add_column(label(method), justify="right", no_wrap=True)
        for name, config in configs.items():
            if (config.data.name == "reid") == is_reid:
                results = config.published.results
                table.add_row(name, config.about, *(_headline(results.get(method, {})) for method in shown))
        console.print(table)
        console.print()
    print("Run one:   sidebranch train RECIPE --method baseline|dsl|dks|dhm")
    print("Read one:  sidebranch recipes RECIPE, sidebranch train RECIPE --print-config")
    return 0


def _show_one(name: str) -> int:
    """The papers' numbers, and each field that differs between text, code and this recipe."""
    from rich.console import Console
    from rich.table import Table

    config = recipe.load(recipe.find(name))
    console = Console(highlight=False)
    console.print(f"{name}: {config.about}")
    published = config.published
    metrics = [key for key in METRICS if any(key in values for values in published.results.values())]
    if metrics:
        epoch = f", {published.epoch} epoch" if published.epoch else ""
        table = Table(title=f"{published.table}{epoch}, %", title_justify="left")
        table.add_column("method")
        for key in metrics:
            table.add_column(METRICS[key], justify="right")
        for method, values in published.results.items():
            table.add_row(label(method), *(f"{values[key]:g}" if key in values else "" for key in metrics))
        console.print(table)
    if config.differs:
        table = Table(title="Where text, code and this recipe differ", title_justify="left")
        for heading in ("field", "text", "code", "here", "why"):
            table.add_column(heading)
        for field, row in config.differs.items():
            table.add_row(field, row.get("text", ""), row.get("code", ""), _here(config, field), row.get("why", ""))
        console.print(table)
    print(recipe.dump_changes(replace(config, about="", differs={}, published=Published())).rstrip())
    data = "" if config.data.name == "digits" else " --data.root DIR"
    print(f"Run it:  sidebranch train {name}{data} --method {config.method}    # or another: sidebranch train --help")
    return 0


def _here(config: Config, field: str) -> str:
    """This recipe's value of a field."""
    values: dict[str, Any] = leaves(as_dict(config))
    return str(values[field]) if field in values else ""


def _headline(values: Mapping[str, float]) -> str:
    value = values.get("top1", values.get("mAP"))
    return "" if value is None else f"{value:.2f}"
