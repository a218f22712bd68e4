"""Multiply-adds of a study's networks. In: configs, finished runs. Out: counts by what a cell trains, in a file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from sidebranch.config.schema import Config
from sidebranch.runs.atomic_files import write_text
from sidebranch.study.cells import Cell

FILE = "costs.json"


def read_costs(root: Path) -> dict[str, dict[str, float]]:
    """What was counted before; nothing if the file is missing or damaged."""
    try:
        found = json.loads((root / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def count_costs(root: Path, cells: Sequence[Cell], configs: Mapping[str, Config]) -> dict[str, dict[str, float]]:
    """Multiply-adds of one image's forward pass, of main and of what each branch adds; of an outside teacher, nothing.

    A branch that sees a part of the batch counts as much less. Seeds of a row are counted once. The runs must have
    recorded their images' size.
    """
    known, of_row = read_costs(root), {}
    missing = [cell for cell in cells if cell.trains not in known]
    for cell in missing:
        row = (cell.row.recipe, cell.row.variant)
        if row not in of_row:
            of_row[row] = _count(cell, configs[cell.name])
        if of_row[row]:
            known[cell.trains] = of_row[row]
    if missing:
        write_text(root / FILE, json.dumps(known) + "\n")
    return known


def _count(cell: Cell, config: Config) -> dict[str, float]:
    import torch  # slow to import, and not needed to show a study

    from sidebranch.inspect.cost import costs
    from sidebranch.network import build_network, untrained

    environment = json.loads(cell.folder.environment.read_text(encoding="utf-8"))
    if "image" not in environment or not cell.folder.classes.is_file():
        return {}
    classes = len(json.loads(cell.folder.classes.read_text(encoding="utf-8")))
    with torch.device("meta"):
        net = build_network(untrained(config), classes, environment["image"])
    found = costs(net, environment["image"])
    share = {each.name: 1.0 if each.name == "main" else config.branches.batch_fraction for each in found}
    return {each.name: each.macs * share[each.name] for each in found}
