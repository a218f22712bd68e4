"""`sidebranch prepare`: check, sort, pack or generate a data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from sidebranch.cli.parsing import parse, plain_parser
from sidebranch.cli.texts import (
    CHECK_HELP,
    IMAGENET_VAL_HELP,
    PREPARE_HELP,
    SHARDS_HELP,
    SPLIT_HELP,
    SYNTHETIC_REID_HELP,
)
from sidebranch.errors import UserError, nearest

if TYPE_CHECKING:
    from rich.progress import Progress

LISTED = 20  # classes at most that are counted one by one


def parser() -> ArgumentParser:
    made = plain_parser("prepare", PREPARE_HELP)
    kinds = made.add_subcommands(required=True, metavar="KIND")
    check = plain_parser("prepare check", CHECK_HELP)
    check.add_argument("folder", type=str, help="With train/CLASS/*.jpg and val/CLASS/*.jpg.")
    split = plain_parser("prepare split", SPLIT_HELP)
    split.add_argument("source", type=str, help="With CLASS/*.jpg.")
    split.add_argument("output", type=str, help="A new folder.")
    split.add_argument("--val", type=float, default=0.2, help="Share of each class that is for validation.")
    split.add_argument("--seed", type=int, default=0, help="The same seed gives the same split.")
    imagenet_val = plain_parser("prepare imagenet-val", IMAGENET_VAL_HELP)
    imagenet_val.add_argument("folder", type=str, help="Folder of the images.")
    imagenet_val.add_argument("--labels", type=str, default="", help="Lines of image and class (n01751748).")
    imagenet_val.add_argument("--devkit", type=str, default="", help="The unpacked ILSVRC2012_devkit_t12.")
    imagenet_val.add_argument("--dry-run", action="store_true", help="Only print what would be done.")
    shards = plain_parser("prepare shards", SHARDS_HELP)
    shards.add_argument("root", type=str, help="A folder with train/ and val/, or hf:NAME.")
    shards.add_argument("output", type=str, help="A new folder.")
    shards.add_argument("--megabytes", type=int, default=500, help="Size of a full shard.")
    synthetic_reid = plain_parser("prepare synthetic-reid", SYNTHETIC_REID_HELP)
    synthetic_reid.add_argument("folder", type=str, help="A new folder.")
    synthetic_reid.add_argument("--identities", type=int, default=200, help="Persons; half of them are for training.")
    synthetic_reid.add_argument("--seed", type=int, default=0, help="The same seed gives the same images.")
    parts = {
        "check": check,
        "split": split,
        "imagenet-val": imagenet_val,
        "shards": shards,
        "synthetic-reid": synthetic_reid,
    }
    for name, part in parts.items():
        kinds.add_subcommand(name, part, help=(part.description or "").splitlines()[0])
    return made


def run(arguments: Sequence[str]) -> int:
    if arguments and arguments[0] not in KINDS and not arguments[0].startswith("-"):
        raise UserError(f"prepare has no '{arguments[0]}'; {nearest(arguments[0], KINDS)}")
    options = parse(parser(), arguments)
    return KINDS[options.subcommand](options[options.subcommand])


def _progress() -> Progress:
    from rich.console import Console
    from rich.progress import Progress

    return Progress(console=Console(stderr=True), transient=True)


def _check_folder(options: Namespace) -> int:
    from sidebranch.prepare.folders import check_folder

    with _progress() as progress:
        task = progress.add_task("images", total=None)
        found = check_folder(Path(options.folder), lambda: progress.advance(task))
    for name, counts in found.counts.items():
        sizes = sorted(counts.values())
        spread = f"{sizes[0]:,} to {sizes[-1]:,} per class"
        print(f"{name}: {sum(sizes):,} images of {len(sizes):,} classes, {spread}")
    classes = sorted({each for counts in found.counts.values() for each in counts})
    if len(classes) <= LISTED:
        for name in classes:
            print(f"  {name}: " + ", ".join(f"{counts.get(name, 0):,} {of}" for of, counts in found.counts.items()))
    if found.others:
        print(f"{found.others:,} other files are passed over: their names are none of images")
    if found.missing:
        print(f"no folder: {Path(options.folder) / found.missing}")
    for path in found.unreadable:
        print(f"unreadable: {path}")
    if found.unreadable:
        print("remove unreadable images, or train with --data.on_corrupt skip")
    for name in found.differing:
        print(f"class in {'train' if name in found.counts['train'] else 'val'} only: {name}")
    for folder in found.empty:
        print(f"no images: {folder}")
    print(f"{found.faults} fault{'' if found.faults == 1 else 's'} found" if found.faults else "no faults found")
    return 1 if found.faults else 0


def _split_folder(options: Namespace) -> int:
    from sidebranch.prepare.folders import split_folder

    if not 0 < options.val < 1:
        raise UserError(f"--val is {options.val:g}; it is a share of the images, between 0 and 1")
    if not 0 <= options.seed < 2**32:
        raise UserError(f"--seed is {options.seed}; it must be at least 0 and below 2^32")
    with _progress() as progress:
        task = progress.add_task("images", total=None)
        counts = split_folder(
            Path(options.source), Path(options.output), options.val, options.seed, lambda: progress.advance(task)
        )
    for name, classes in counts.items():
        print(f"{name}: {sum(classes.values()):,} images of {len(classes):,} classes")
    print(f"copied to '{options.output}'; check them: sidebranch prepare check {options.output}")
    return 0


def _sort_imagenet_val(options: Namespace) -> int:
    from sidebranch.prepare.folders import imagenet_val_moves, move, read_imagenet_labels

    folder = Path(options.folder)
    labels = read_imagenet_labels(options.labels, options.devkit)
    moves = imagenet_val_moves(folder, labels)
    print(f"{len(labels):,} labels: {len(moves.to_do):,} images to move, {moves.done:,} in place", end="")
    print(f", {len(moves.missing):,} missing, such as {moves.missing[0]}" if moves.missing else "")
    if options.dry_run:
        print("nothing was moved (--dry-run)")
        return 0
    move(moves)
    left = imagenet_val_moves(folder, labels)
    print(f"{left.done:,} images in {len(set(labels.values())):,} classes under '{folder}'")
    return 1 if left.missing or left.to_do else 0


def _pack_shards(options: Namespace) -> int:
    if options.megabytes < 1:
        raise UserError(f"--megabytes is {options.megabytes}; it must be at least 1")
    target = Path(options.output)
    if (target / "index.json").exists():
        raise UserError(f"'{target}' has shards already; give another folder")
    from sidebranch.data.datasets import read_images
    from sidebranch.data.sources.shards import write_shards

    train_split, val_split = read_images(options.root)
    splits = {"train": train_split, "val": val_split}
    counts = write_shards(splits, target, options.megabytes)
    for name, split in splits.items():
        print(f"{name}: {len(split):,} images of {len(split.classes):,} classes in {counts[name]:,} shards")
    print(f"train on them: sidebranch train RECIPE --data.root {target}")
    return 0


def _draw_reid(options: Namespace) -> int:
    from sidebranch.prepare.synthetic_reid import write_synthetic_reid

    with _progress() as progress:
        task = progress.add_task("images", total=None)
        counts = write_synthetic_reid(
            Path(options.folder),
            options.identities,
            options.seed,
            lambda at, of: progress.update(task, completed=at, total=of),
        )
    for name, count in counts.items():
        print(f"{name}: {count:,} images")
    print(f"train on them: sidebranch train market1501/mobilenet-short --data.root {options.folder}")
    return 0


KINDS = {
    "check": _check_folder,
    "split": _split_folder,
    "imagenet-val": _sort_imagenet_val,
    "shards": _pack_shards,
    "synthetic-reid": _draw_reid,
}
