"""`sidebranch export`: a network that ships, as a file or a folder, verified."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from sidebranch.cli.parsing import add_checkpoint_arguments, parse, plain_parser
from sidebranch.cli.texts import EXPORT_HELP
from sidebranch.config import recipe
from sidebranch.errors import UserError

if TYPE_CHECKING:
    from sidebranch.deploy.ship import Comparison

FORMATS = ("safetensors", "timm", "onnx", "onnx-int8", "pt2", "torchvision")

BESIDE = {"onnx-int8": "onnx", "onnx": "onnx", "pt2": "pt2"}  # main's format that an export is compared with
ROWS: dict[str, Callable[[Comparison], str]] = {
    "largest difference of a probability": lambda found: f"{found.difference:.1e}",
    "same answers, %": lambda found: f"{found.agreement:.2f}",
    "top-1 error before, %": lambda found: f"{found.before:.2f}",
    "top-1 error after, %": lambda found: f"{found.after:.2f}",
    "parameters": lambda found: f"{found.parameters:,}",
    "multiply-adds, M": lambda found: f"{found.macs / 1e6:,.1f}",
    "size, MB": lambda found: f"{found.bytes / 1e6:.2f}",
    "ms for 1 image": lambda found: f"{found.milliseconds['1']:.2f}",
    "ms for 32": lambda found: f"{found.milliseconds['32']:.2f}",
}


def parser() -> ArgumentParser:
    made = plain_parser("export", EXPORT_HELP)
    add_checkpoint_arguments(made)
    made.add_argument("--format", choices=FORMATS, default="safetensors", help="The weights alone, or a folder.")
    made.add_argument(
        "--classifier",
        type=str,
        default="main",
        help="main; by ONNX or pt2 a branch (b1, b2) or ensemble; by ONNX early_exit.",
    )
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
    if options.format in ("timm", "torchvision") and options.classifier != "main":
        raise UserError(f"--format {options.format} holds main; {options.classifier} leaves by {_format_of(options)}")
    if options.classifier == "early_exit" and (options.format != "onnx" or options.with_preprocessing):
        raise UserError("--classifier early_exit leaves by --format onnx, a file an exit, without --with-preprocessing")
    try:
        return _folder(options)
    except OSError as error:
        raise UserError(
            f"the export cannot be written: {error.strerror or error} ('{error.filename or options.output}'); files "
            f"that are compared go to '{tempfile.gettempdir()}', or to TMPDIR"
        ) from error


def _format_of(options: Namespace) -> str:
    """The formats that a classifier other than main leaves by."""
    return "--format onnx" if options.classifier == "early_exit" else "--format onnx or pt2"


def _weights(options: Namespace) -> int:
    path = Path(options.output or "model.safetensors")
    if options.classifier != "main":
        raise UserError(
            f"the safetensors file holds main; {options.classifier} leaves by {_format_of(options)}, and of a "
            f"re-identification run its features alone, by sidebranch embed"
        )
    if path.suffix != ".safetensors":
        raise UserError(f"--output is '{path}'; the file is safetensors, so call it {path.with_suffix('.safetensors')}")
    if path.exists():
        raise UserError(f"'{path}' exists; give another --output")
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
    from sidebranch.deploy.ship import export, measure
    from sidebranch.deploy.shipped import ship
    from sidebranch.evaluation.exits_of_run import told_wish
    from sidebranch.inspect.exit_charts import told_exits
    from sidebranch.runs.folder import RunFolder
    from sidebranch.runs.headline import headline_of

    quiet_libraries()
    folder, output = RunFolder(Path(options.run)), Path(options.output or options.format)
    if output.exists():  # before minutes of work
        raise UserError(f"'{output}' exists; give another --output")
    shipped = ship(folder, options.checkpoint, options.classifier, options["data.root"])
    rows = folder.read_metrics()
    headline = headline_of(rows[-1]) if rows else None
    if options.checkpoint == "last":
        shipped.trained.warn(folder.root)
    row = min(rows, key=headline.of) if headline and options.checkpoint == "best" else rows[-1] if rows else {}
    errors = {}
    if headline and not shipped.trained.step:  # within an epoch, the row is of other weights
        errors = {each: headline.of(row, each) for each in headline.columns(row)}
    environment = json.loads(folder.environment.read_text(encoding="utf-8")) if folder.environment.is_file() else {}
    beside = {}
    if shipped.classifier != "main" or options.format == "onnx-int8":  # first, so that an error leaves nothing
        main = ship(folder, options.checkpoint, "main", options["data.root"])
        beside[f"main, {BESIDE[options.format]}"] = measure(main, BESIDE[options.format])
    found = export(shipped, options.format, output, errors, environment, options.with_preprocessing)
    columns = {f"{shipped.classifier}, {options.format}": found} | beside
    if shipped.classifier == "early_exit":
        kept = folder.read_early_exit()
        print(f"exits: {told_exits(kept['chosen'])}, {told_wish(kept)}")
    print(f"{shipped.about['model']} on {found.images} validation images")
    table = Table()
    table.add_column("")
    for name in columns:
        table.add_column(name, justify="right")
    for name, text in ROWS.items():
        table.add_row(name, *(text(each) for each in columns.values()))
    Console(highlight=False).print(table)
    print(f"read back by a fresh process and compared: {output}")
    return 0
