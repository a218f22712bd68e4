"""The forks of a backbone as a tree, and its branches' costs as a table, for a terminal."""

from __future__ import annotations

from itertools import groupby

from rich.table import Table
from rich.tree import Tree

from sidebranch.inspect.cost import Anatomy, Place

SHOWN = 6  # places per stage


def forks_tree(name: str, shown: Anatomy) -> Tree:
    """The stages by output shape, the places in them, and the branches that fork there."""
    size = "x".join(map(str, shown.input_size))
    tree = Tree(f"[bold]{name}[/bold], images {size}", guide_style="dim")
    branches = {cost.at: cost.name for cost in shown.costs[1:]}
    for _, group in groupby(shown.places, lambda place: place.shape):
        stage = list(group)
        node = tree.add(f"{_shape(stage[0])}  [dim]{_listed(stage, branches)}[/dim]")
        for place in stage:
            if place.at in branches:
                node.add(f"[bold]{branches[place.at]}[/bold] forks at {place.at}")
    return tree


def cost_table(shown: Anatomy) -> Table:
    """One line per classifier: the cost of main, and the additional cost of each branch."""
    table = Table(title=f"A training step costs {shown.times_baseline:.2f} times the baseline's", title_justify="left")
    for heading in ("", "forks at", "depth", "width", "parameters", "MACs", "activations", "times"):
        table.add_column(heading, justify="left" if heading in ("", "forks at") else "right")
    main = shown.costs[0]
    for cost in shown.costs:
        plus = "+" if cost.at else ""
        table.add_row(
            cost.name,
            cost.at,
            cost.depth,
            cost.width,
            plus + _count(cost.parameters),
            plus + _count(cost.macs),
            plus + f"{cost.activations / 2**20:.1f} MiB",
            f"{plus}{cost.macs / main.macs:.2f}",
        )
    return table


def _shape(place: Place) -> str:
    cells = place.cells
    side = round(cells**0.5)
    spread = f"{side}x{side}" if side * side == cells and len(place.shape) == 3 else f"{cells} cells"
    return f"{spread:>9} x {place.channels:<5}"


def _listed(stage: list[Place], branches: dict[str, str]) -> str:
    """The paths of the places; of many, the first and the last."""
    paths = [place.at for place in stage]
    if len(paths) <= SHOWN:
        return ", ".join(paths)
    return f"{', '.join(paths[:2])}, ... ({len(paths) - 4} more), {', '.join(paths[-2:])}"


def _count(number: int) -> str:
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if abs(number) >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)
