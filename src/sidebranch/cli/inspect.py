"""`sidebranch inspect`: the papers' figures, of runs, and the numbers behind them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from sidebranch.cli.parsing import parse, plain_parser
from sidebranch.cli.texts import INSPECT_HELP
from sidebranch.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sidebranch.inspect.record import Record

    Found = tuple[Figure, Any]  # a figure and its numbers, as JSON


def parser() -> ArgumentParser:
    made = plain_parser("inspect", INSPECT_HELP)
    made.add_argument("runs", type=str, nargs="+", help="Run folders.")
    made.add_argument("--what", choices=list(KINDS), required=True, help="The figure.")
    made.add_argument("--output", type=str, default="", help="The file, .svg or .png. Default: WHAT.svg.")
    made.add_argument("--pair", type=str, nargs=2, default=["main", "b2"], help="kernels, noise: two classifiers.")
    made.add_argument("--images", type=int, default=128, help="gradients, noise: validation images to take.")
    made.add_argument("--samples", type=int, default=200, help="noise: pairs of draws.")
    made.add_argument("--sigmas", type=float, nargs="+", default=[0.3, 0.1, 0.03, 0.01], help="noise: its deviations.")
    made.add_argument("--solid", choices=["train", "val"], default="train", help="curves: drawn solid; DKS draws val.")
    made.add_argument("--accuracy", action="store_true", help="curves: accuracy instead of error.")
    made.add_argument("--data.root", type=str, default="", help="Where the data are, if they have moved.")
    return made


def run(arguments: Sequence[str]) -> int:
    options = parse(parser(), arguments)
    path = Path(options.output or f"{options.what}.svg")
    if path.suffix not in (".svg", ".png"):
        raise UserError(f"--output is '{path}'; the figure is .svg or .png")
    if min(options.images, options.samples) < 1 or min(options.sigmas) <= 0:
        raise UserError("--images and --samples must be at least 1, and --sigmas above 0")
    from sidebranch.inspect.record import read_record
    from sidebranch.runs.atomic_files import write_atomically, write_text
    from sidebranch.runs.folder import RunFolder

    records = [read_record(RunFolder(Path(each))) for each in options.runs]
    figure, numbers = KINDS[options.what](records, options)
    beside = path.with_suffix(".json")
    dated = {"Date": None} if path.suffix == ".svg" else None  # the same runs give the same file

    def save(temporary: Path) -> None:
        figure.savefig(temporary, format=path.suffix[1:], dpi=150, metadata=dated)

    write_atomically(path, save)
    write_text(beside, json.dumps(numbers, indent=1) + "\n")
    print(f"{path}\n{beside}")
    return 0


def _curves(records: Sequence[Record], options: Namespace) -> Found:
    from sidebranch.inspect.figures import seed_curves
    from sidebranch.inspect.record import by_kind

    keys = ("epoch", "train/top1/main", "val/top1/main")
    numbers = {
        kind: {str(each.config.seed): [[row.get(key) for key in keys] for row in each.rows] for each in group}
        for kind, group in by_kind(records).items()
    }
    return seed_curves(records, options.solid, options.accuracy), {"columns": keys, "runs": numbers}


def _disagreement(records: Sequence[Record], options: Namespace) -> Found:
    from sidebranch.inspect.figures import disagreement_curves
    from sidebranch.inspect.record import by_kind

    wanted = ("epoch", "val/kl/", "val/differ/")
    numbers = {
        kind: {
            str(each.config.seed): [
                {key: value for key, value in row.items() if key.startswith(wanted)} for row in each.rows
            ]
            for each in group
        }
        for kind, group in by_kind(records).items()
    }
    return disagreement_curves(records), numbers


def _kernels(records: Sequence[Record], options: Namespace) -> Found:
    from sidebranch.evaluation.of_run import network_of_run
    from sidebranch.inspect.figures import correlation_maps
    from sidebranch.inspect.kernels import kernel_correlation
    from sidebranch.inspect.record import by_kind

    found, numbers = {}, {}
    for kind, group in by_kind(records).items():
        seeds = [
            kernel_correlation(network_of_run(each.folder, data_root=options["data.root"])[0], *options.pair)
            for each in group
        ]
        found[kind] = seeds[0]
        numbers[kind] = {
            str(record.config.seed): {"mean": each.mean, "layers": each.correlations}
            for record, each in zip(group, seeds, strict=True)
        }
    return correlation_maps(found), numbers


def _gradients(records: Sequence[Record], options: Namespace) -> Found:
    from sidebranch.evaluation.of_run import network_of_run
    from sidebranch.inspect.figures import alignment_curves
    from sidebranch.inspect.gradients import gradient_alignment
    from sidebranch.inspect.record import by_kind

    found: dict[str, dict[int, list[Any]]] = {}
    for kind, group in by_kind(records).items():
        for record in group:
            if len(record.columns) == 1:
                raise UserError(f"'{record.folder.root}' has no branches, whose gradients could be compared")
            last = {int(record.rows[-1]["epoch"]): record.folder.last}
            for epoch, path in (record.folder.all_kept() | last).items():
                net, dataset, _ = network_of_run(record.folder, path, options["data.root"])
                if dataset.reid is not None:
                    raise UserError(f"'{record.folder.root}' re-identifies; --what gradients is for classification")
                images, labels = _batch(dataset, options.images)
                found.setdefault(kind, {}).setdefault(epoch, []).append(gradient_alignment(net.eval(), images, labels))
    numbers = {
        kind: {str(at): [asdict(each) for each in seeds] for at, seeds in epochs.items()}
        for kind, epochs in found.items()
    }
    return alignment_curves(found), numbers


def _noise(records: Sequence[Record], options: Namespace) -> Found:
    import torch

    from sidebranch.evaluation.of_run import network_of_run
    from sidebranch.inspect.figures import expansion_curves
    from sidebranch.inspect.gradients import expansion, heads_at_fork

    if len(records) > 1:
        raise UserError("--what noise looks at one run")
    net, dataset, _ = network_of_run(records[0].folder, data_root=options["data.root"])
    images, _ = _batch(dataset, options.images)
    torch.manual_seed(0)
    first, second, features = heads_at_fork(net.double().eval(), images.double(), *options.pair)
    found = expansion(first, second, features, options.sigmas, options.samples)
    return expansion_curves(found), [asdict(each) for each in found]


def _batch(dataset: Any, count: int) -> tuple[Any, Any]:
    """The first validation images and their labels."""
    import torch

    images, labels = [], []
    for some, known in dataset.val_loader(torch.device("cpu")).batches():
        if len(known):  # some of them could be read
            images.append(some)
            labels.append(known)
        if sum(map(len, labels)) >= count:
            break
    return torch.cat(images)[:count], torch.cat(labels)[:count]


KINDS: dict[str, Callable[[Sequence[Record], Namespace], Found]] = {
    "curves": _curves,
    "disagreement": _disagreement,
    "kernels": _kernels,
    "gradients": _gradients,
    "noise": _noise,
}
