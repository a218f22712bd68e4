"""`sidebranch export`: a network that ships, as a file or a folder, verified."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from sidebranch.cli.parsing import add_checkpoint_arguments, parse, plain_parser
from sidebranch.cli.texts import EXPORT_HELP
from sidebranch.config import recipe
from sidebranch.errors import UserError

FORMATS = ("safetensors", "timm", "onnx", "onnx-int8", "pt2")


def parser() -> ArgumentParser:
    made = plain_parser("export", EXPORT_HELP)
    add_checkpoint_arguments(made)
    made.add_argument("--format", choices=FORMATS, default="safetensors", help="The weights alone, or a folder.")
    made.add_argument("--classifier", type=str, default="main", help="main, a branch (b1, b2), or ensemble.")
    made.add_argument(
        "--output", type=str, default="", help="The file or folder. Default: model.safetensors, or FORMAT."
    )
    made.add_argument("--with-preprocessing", action="store_true", help="onnx: uint8 [N, H, W, C] to probabilities.")
    made.add_argument("--data.root", type=str, default="", help="Where the data are, if they have moved.")
    return made


def run(arguments: Sequence[str]) -> int:
    options = parse(parser(), arguments)
    if options.format == "safetensors":
        return _weights(options)
    if options.weights:
        raise UserError(f"--weights is for --format safetensors; --format {options.format} needs a run")
    if options.with_preprocessing and options.format != "onnx":
        raise UserError(f"--with-preprocessing is for --format onnx, not {options.format}")
    return _folder(options)


def _weights(options: Namespace) -> int:
    path = Path(options.output or "model.safetensors")
    if path.suffix != ".safetensors":
        raise UserError(f"--output is '{path}'; the file is safetensors, so call it {path.with_suffix('.safetensors')}")
    if options.classifier != "main":
        raise UserError(f"the safetensors file holds main; {options.classifier} leaves by --format onnx or pt2")
    from sidebranch.deploy.export import export_reference, export_run
    from sidebranch.runs.folder import RunFolder

    if options.weights:
        name = export_reference(recipe.find(options.run), options.weights, path)
    else:
        name = export_run(RunFolder(Path(options.run)), options.checkpoint, path)
    print(f"the plain backbone, {name}: {path}")
    return 0


def _folder(options: Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from sidebranch.cli.running import quiet_libraries
    from sidebranch.deploy.ship import export
    from sidebranch.deploy.shipped import ship
    from sidebranch.runs.folder import RunFolder
    from sidebranch.runs.headline import headline_of

    quiet_libraries()
    folder, output = RunFolder(Path(options.run)), Path(options.output or options.format)
    shipped = ship(folder, options.checkpoint, options.classifier, options["data.root"])
    rows = folder.read_metrics()
    headline = headline_of(rows[-1]) if rows else None
    errors = {each: headline.of(rows[-1], each) for each in headline.columns(rows[-1])} if headline else {}
    environment = json.loads(folder.environment.read_text(encoding="utf-8")) if folder.environment.is_file() else {}
    found = export(shipped, options.format, output, errors, environment, options.with_preprocessing)
    table = Table(title=f"{shipped.about['model']}, {shipped.classifier}, as {options.format}", title_justify="left")
    table.add_column(f"on {found.images} validation images")
    table.add_column("", justify="right")
    table.add_row("largest difference of a probability", f"{found.difference:.1e}")
    table.add_row("same answers, %", f"{found.agreement:.2f}")
    table.add_row("top-1 error, %: training network", f"{found.before:.2f}")
    table.add_row("top-1 error, %: export", f"{found.after:.2f}")
    table.add_row("parameters", f"{found.parameters:,}")
    table.add_row("size, MB", f"{found.bytes / 1e6:.2f}")
    for count, milliseconds in found.milliseconds.items():
        table.add_row(f"ms for a batch of {count}", f"{milliseconds:.2f}")
    Console(highlight=False).print(table)
    print(f"read back by a fresh process and compared: {output}")
    return 0
