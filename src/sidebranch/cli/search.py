"""`sidebranch search`: the photographs nearest to a photograph, in a file of features."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser

from sidebranch.cli.parsing import parse, plain_parser
from sidebranch.cli.predict import print_table
from sidebranch.cli.texts import SEARCH_HELP
from sidebranch.errors import UserError


def parser() -> ArgumentParser:
    made = plain_parser("search", SEARCH_HELP)
    made.add_argument("query", type=str, help="A photograph.")
    made.add_argument("features", type=str, help="Of `sidebranch embed`.")
    made.add_argument("--top", type=int, default=10, help="How many.")
    made.add_argument("--model", type=str, default="", help="Where the model is, if it has moved.")
    made.add_argument("--format", choices=["table", "jsonl"], default="table", help="Of the output.")
    return made


def run(arguments: Sequence[str]) -> int:
    options = parse(parser(), arguments)
    if options.top < 1:
        raise UserError(f"--top is {options.top}; it must be at least 1")
    from sidebranch.cli.running import quiet_libraries
    from sidebranch.predict.features import embed, nearest, read_table
    from sidebranch.predict.model import open_model

    quiet_libraries()
    if not Path(options.query).is_file():
        raise UserError(f"no photograph '{options.query}'")
    table = read_table(Path(options.features))
    model = open_model(Path(options.model or table.model), which=table.checkpoint, recipe_name=table.recipe)
    features, batch = next(embed(model, [options.query], table.classifier))
    if not batch.paths:
        raise UserError(f"cannot read '{options.query}': {batch.skipped[options.query]}")
    if features.shape[1] != table.features.shape[1]:
        raise UserError(
            f"'{options.features}' has features of {table.features.shape[1]} numbers, this model gives "
            f"{features.shape[1]}; embed the images anew"
        )
    found = nearest(table, features[0], options.top)
    if options.format == "jsonl":
        for place, (image, cosine) in enumerate(found, 1):
            print(json.dumps({"rank": place, "image": image, "cosine": round(cosine, 6)}, ensure_ascii=False))
        return 0
    rows = [(image, [str(place), f"{cosine:.4f}"]) for place, (image, cosine) in enumerate(found, 1)]
    print_table(["rank", "cosine", "image"], rows, sys.stdout, before=2)
    return 0
