"""`sidebranch branches`: where branches fork from a backbone, and their cost."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict

from jsonargparse import ArgumentParser

from sidebranch.cli.parsing import parse, plain_parser
from sidebranch.cli.texts import BRANCHES_HELP, COST_NOTE
from sidebranch.config.method import BranchesConfig, ModelConfig
from sidebranch.errors import UserError


def parser() -> ArgumentParser:
    default = BranchesConfig()
    made = plain_parser("branches", BRANCHES_HELP)
    made.add_argument("backbone", type=str, help="timm's name of the network.")
    made.add_argument("--kind", choices=["default", "paper", "auto"], default="default", help="Which branches.")
    made.add_argument("--at", type=str, nargs="+", default=[], help="Modules to fork at.")
    made.add_argument("--count", type=int, default=default.count, help="Number of branches, without --at.")
    made.add_argument("--keep", type=float, default=default.keep, help="Auto: share of blocks the farther ones keep.")
    made.add_argument("--width", type=float, default=default.width, help="Auto: the nearest's width, as a multiple.")
    made.add_argument("--pool", type=int, default=default.pool, help="Auto: side of the squares that branches average.")
    made.add_argument("--num-classes", type=int, default=1000, help="Number of classes.")
    made.add_argument("--input-size", type=int, nargs=3, default=[], help="Channels, height, width of an image.")
    made.add_argument("--small-input", action="store_true", help="Adapt the stem to images of 32x32 to 64x64.")
    made.add_argument("--json", action="store_true", help="Print JSON.")
    return made


def run(arguments: Sequence[str]) -> int:
    options = parse(parser(), arguments)
    if min([*options.input_size, options.num_classes]) < 1:
        raise UserError("--num-classes and the three numbers of --input-size must be at least 1")
    import torch
    from rich.console import Console

    from sidebranch._attach import attach
    from sidebranch.branches import Growth
    from sidebranch.inspect.cost import anatomy
    from sidebranch.inspect.tree import cost_table, forks_tree
    from sidebranch.network import build_adapted

    size = tuple(options.input_size)
    model = ModelConfig(name=options.backbone, small_input=options.small_input)
    with torch.device("meta"):
        backbone = build_adapted(model, options.num_classes, size[0] if size else 3)
    with torch.device("meta"), warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always", UserWarning)
        net = attach(
            backbone,
            None if options.kind == "default" else options.kind,
            count=options.count,
            at=options.at,
            growth=Growth(options.keep, options.width, pool=options.pool),
            input_size=size or None,
        )
    shown = anatomy(net, size or None, [str(note.message) for note in notes])
    if options.json:
        print(json.dumps(asdict(shown), indent=1))
        return 0
    console = Console(highlight=False)
    console.print(forks_tree(options.backbone, shown))
    console.print(cost_table(shown))
    console.print(COST_NOTE)
    for note in shown.notes:
        console.print(f"Note: {note}.")
    return 0
