"""`sidebranch prepare`: its kinds, and what each does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.progress import Progress

from sidebranch import prepare
from sidebranch.cli.texts import CHECK_HELP, IMAGENET_VAL_HELP, SHARDS_HELP, SYNTHETIC_REID_HELP
from sidebranch.data import write_shards
from sidebranch.engine.inputs import read_images
from sidebranch.errors import UserError


def add_kinds(verb: ArgumentParser, plain: Callable[..., ArgumentParser]) -> None:
    """What may be prepared."""
    kinds = verb.add_subcommands(required=True, metavar="WHAT")
    texts = (CHECK_HELP, IMAGENET_VAL_HELP, SHARDS_HELP, SYNTHETIC_REID_HELP)
    checked, sorted_in, packed, drawn = (plain(description=text) for text in texts)
    checked.add_argument("folder", type=str, help="With train/CLASS/*.jpg and val/CLASS/*.jpg.")
    sorted_in.add_argument("folder", type=str, help="Where the images lie.")
    sorted_in.add_argument("--labels", type=str, default="", help="Lines of image and class (n01751748).")
    sorted_in.add_argument("--devkit", type=str, default="", help="The unpacked ILSVRC2012_devkit_t12.")
    sorted_in.add_argument("--dry-run", action="store_true", help="Only say what would be done.")
    packed.add_argument("root", type=str, help="A folder with train/ and val/, or hf:NAME.")
    packed.add_argument("output", type=str, help="A new folder.")
    packed.add_argument("--megabytes", type=int, default=500, help="After so many a shard is full.")
    drawn.add_argument("folder", type=str, help="A new folder.")
    drawn.add_argument("--identities", type=int, default=200, help="People; half of them are for training.")
    drawn.add_argument("--seed", type=int, default=0, help="The same seed draws the same people.")
    kinds_of = {"check": checked, "imagenet-val": sorted_in, "shards": packed, "synthetic-reid": drawn}
    for name, kind in kinds_of.items():
        kinds.add_subcommand(name, kind, help=(kind.description or "").splitlines()[0])


def run_prepare(options: Namespace) -> int:
    """Puts in order what `add_kinds` has read; returns the exit status."""
    what = options.subcommand
    run = {
        "check": _check_folder,
        "imagenet-val": _sort_imagenet_val,
        "shards": _pack_shards,
        "synthetic-reid": _draw_reid,
    }
    return run[what](options[what])


def _check_folder(options: Namespace) -> int:
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("images", total=None)
        found = prepare.check_folder(Path(options.folder), lambda: progress.advance(task))
    for name, counts in found.counts.items():
        sizes = sorted(counts.values())
        spread = f"{sizes[0]:,} to {sizes[-1]:,} a class"
        print(f"{name}: {sum(sizes):,} images of {len(sizes):,} classes, {spread}")
    for path in found.unreadable:
        print(f"no image: {path}")
    for label_ in found.differing:
        has = "train" if label_ in found.counts["train"] else "val"
        print(f"only in {has}: {label_}")
    print("nothing is wrong" if found.is_good else f"{len(found.unreadable) + len(found.differing)} things are wrong")
    return 0 if found.is_good else 1


def _sort_imagenet_val(options: Namespace) -> int:
    folder = Path(options.folder)
    labels = prepare.read_imagenet_labels(options.labels, options.devkit)
    moves = prepare.imagenet_val_moves(folder, labels)
    print(f"{len(labels):,} labels: {len(moves.to_do):,} images to move, {moves.done:,} in place", end="")
    print(f", {len(moves.missing):,} missing, such as {moves.missing[0]}" if moves.missing else "")
    if options.dry_run:
        print("nothing was moved (--dry-run)")
        return 0
    prepare.move(moves)
    left = prepare.imagenet_val_moves(folder, labels)
    print(f"{left.done:,} images in {len(set(labels.values())):,} classes under '{folder}'")
    return 1 if left.missing or left.to_do else 0


def _pack_shards(options: Namespace) -> int:
    if options.megabytes < 1:
        raise UserError(f"--megabytes is {options.megabytes}; it must be at least 1")
    target = Path(options.output)
    if (target / "index.json").exists():
        raise UserError(f"'{target}' holds shards already; give another folder")
    train_split, val_split = read_images(options.root)
    splits = {"train": train_split, "val": val_split}
    counts = write_shards(splits, target, options.megabytes)
    for name, split in splits.items():
        print(f"{name}: {len(split):,} images of {len(split.classes):,} classes in {counts[name]:,} shards")
    print(f"train on them: sidebranch train RECIPE --data.root {target}")
    return 0


def _draw_reid(options: Namespace) -> int:
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("images", total=None)
        counts = prepare.write_synthetic_reid(
            Path(options.folder),
            options.identities,
            options.seed,
            lambda at, of: progress.update(task, completed=at, total=of),
        )
    for name, count in counts.items():
        print(f"{name}: {count:,} images")
    print(f"train on them: sidebranch train market1501/mobilenet --data.root {options.folder}")
    return 0
