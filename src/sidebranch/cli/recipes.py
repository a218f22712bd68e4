"""`sidebranch recipes`: the shipped recipes and the papers' numbers."""

from __future__ import annotations

from collections.abc import Sequence

from jsonargparse import ArgumentParser

from sidebranch.cli.parsing import parse, plain_parser
from sidebranch.config import recipe
from sidebranch.config.schema import METHODS


def parser() -> ArgumentParser:
    return plain_parser("recipes", "List the shipped recipes.")


def run(arguments: Sequence[str]) -> int:
    parse(parser(), arguments)
    from rich.console import Console
    from rich.table import Table

    configs = {name: recipe.load(path) for name, path in recipe.shipped().items()}
    console = Console(highlight=False)
    for is_reid, title in {False: "The papers' top-1 error, %", True: "Re-identification: the papers' mAP, %"}.items():
        table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0))
        for heading in ("recipe", "source"):
            table.add_column(heading, no_wrap=True)
        for method in METHODS:
            table.add_column(method if method == "baseline" else method.upper(), justify="right", no_wrap=True)
        for name, config in configs.items():
            if (config.data.name == "reid") == is_reid:
                published = (f"{config.published[each]:.2f}" if each in config.published else "" for each in METHODS)
                table.add_row(name, config.about, *published)
        console.print(table)
        console.print()
    print("Run one:   sidebranch train RECIPE --method baseline|dsl|dks|dhm")
    print("Read one:  sidebranch train RECIPE --print-config")
    return 0
