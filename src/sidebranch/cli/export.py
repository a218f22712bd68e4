"""`sidebranch export`: the plain backbone as a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser

from sidebranch.cli.parsing import add_checkpoint_arguments, parse, plain_parser
from sidebranch.cli.texts import EXPORT_HELP
from sidebranch.config import recipe
from sidebranch.errors import UserError


def parser() -> ArgumentParser:
    made = plain_parser("export", EXPORT_HELP)
    add_checkpoint_arguments(made)
    made.add_argument("--output", type=str, default="model.safetensors", help="The file to write.")
    return made


def run(arguments: Sequence[str]) -> int:
    options = parse(parser(), arguments)
    path = Path(options.output)
    if path.suffix != ".safetensors":
        raise UserError(f"--output is '{path}'; the file is safetensors, so call it {path.with_suffix('.safetensors')}")
    from sidebranch.deploy.export import export_reference, export_run
    from sidebranch.runs.folder import RunFolder

    if options.weights:
        name = export_reference(recipe.find(options.run), options.weights, path)
    else:
        name = export_run(RunFolder(Path(options.run)), options.checkpoint, path)
    print(f"the plain backbone, {name}: {path}")
    return 0
