"""`sidebranch embed` and `sidebranch search`: photographs to features, and the nearest to a photograph."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser

from sidebranch.cli.parsing import parse, plain_parser
from sidebranch.cli.texts import EMBED_HELP
from sidebranch.errors import UserError


def parser() -> ArgumentParser:
    made = plain_parser("embed", EMBED_HELP)
    made.add_argument("model", type=str, help="A run, its model.safetensors, or a checkpoint with --recipe.")
    made.add_argument("images", type=str, nargs="+", help="Files, folders, or patterns.")
    made.add_argument("--output", type=str, default="features.npz", help="The file of features.")
    made.add_argument("--classifier", type=str, default="main", help="Whose features: main, b1, ..., or concat.")
    made.add_argument("--batch-size", type=int, default=64, help="Images at a time.")
    made.add_argument("--checkpoint", choices=["last", "best"], default="last", help="Of a run.")
    made.add_argument("--recipe", type=str, default="", help="Of the network, for a checkpoint of other code.")
    return made


def run(arguments: Sequence[str]) -> int:
    options = parse(parser(), arguments)
    if Path(options.output).suffix != ".npz":
        raise UserError(f"--output is '{options.output}'; the file is NumPy's, so call it features.npz")
    if options.batch_size < 1:
        raise UserError(f"--batch-size is {options.batch_size}; it must be at least 1")
    import numpy as np

    from sidebranch.cli.predict import check_outputs, progress, report_skipped
    from sidebranch.cli.running import quiet_libraries
    from sidebranch.predict.features import Table, embed, write_table
    from sidebranch.predict.model import open_model
    from sidebranch.predict.photos import find

    quiet_libraries()
    check_outputs(options.output)
    paths = find(options.images)
    model = open_model(Path(options.model), which=options.checkpoint, recipe_name=options.recipe)
    rows, images, skipped = [], [], {}
    with progress(len(paths)) as done:
        for features, batch in embed(model, paths, options.classifier, options.batch_size, done):
            rows += [features] if batch.paths else []
            images += batch.paths
            skipped |= batch.skipped
    if not images:
        raise UserError(f"none of the {len(paths)} images could be read, such as '{paths[0]}'")
    made_by = str(Path(options.model).resolve()), options.classifier, options.checkpoint, options.recipe
    table = Table(np.concatenate(rows), tuple(images), *made_by)
    write_table(table, Path(options.output))
    print(f"{len(images):,} features of {table.features.shape[1]} numbers: {options.output}")
    return report_skipped(skipped, len(paths))
