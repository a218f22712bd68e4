"""Early exit of a run. In: its folder. Out: a curve of policies with errors, costs and times, kept in the folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sidebranch.branches.early_exit import EarlyExit
from sidebranch.branches.extract import extract
from sidebranch.core.ensemble import Ensemble
from sidebranch.core.exits import ExitPolicy, Measure
from sidebranch.core.model import BranchedModel
from sidebranch.data.datasets import Dataset
from sidebranch.errors import UserError
from sidebranch.evaluation.early_exit import FEWEST, Choice, Costs, Scores, chosen, collect, frontier, outcome
from sidebranch.evaluation.of_run import network_of_run
from sidebranch.runs.folder import RunFolder

HELD_OUT = 5000  # images at most that exits are chosen on
TIMED = 12  # policies whose time is measured
IMAGES, REPEATS = 50, 3  # in a measurement, one at a time


def early_exits(
    folder: RunFolder,
    which: Literal["last", "best"],
    data_root: str = "",
    *,
    measure: Measure = "confidence",
    error: float | None = None,
    cost: float | None = None,
    say: Callable[[str], object] = lambda line: None,
) -> dict[str, Any]:
    """Plain values for JSON: policies and single classifiers with error, multiply-adds and milliseconds an image.

    They are chosen on training images that the run did not train on, if its `data.limit` left some; else on every
    second validation image. They are reported on the validation images, or on the other half of them.

    Args:
        folder: of the run.
        which: checkpoint.
        data_root: where the data are, if they have moved.
        measure: of sureness.
        error: take the cheapest policy with at most this top-1 error, in percent, on the held-out images.
        cost: take the most accurate policy within this multiple of main's multiply-adds. With neither: the cheapest
            policy that is as accurate as main on the held-out images.
        say: called with a line before every part that takes long.

    Raises:
        UserError: there is no such run or checkpoint, it has no side branches, or no policy is as wanted.
    """
    net, dataset, _ = network_of_run(folder, folder.last if which == "last" else folder.best, data_root)
    net = net.eval()
    if dataset.reid is not None:
        raise UserError(f"'{folder.root}' re-identifies; early exit is for classification")
    if len(net.names) == 1:
        raise UserError(f"'{folder.root}' has no side branches, so there is nothing to exit from")
    held_out, reported, where = _parts(dataset)
    if len(held_out.val) < FEWEST:
        raise UserError(f"exits are chosen on {where}, and there are only {len(held_out.val)}; {_remedy(dataset)}")
    size = dataset.eval_shape
    costs = EarlyExit(net, input_size=size).costs
    say(f"the answers of all classifiers to {len(held_out.val):,} images to choose on, and to {len(reported.val):,}")
    seen, shown = (collect(net, net.names, _batches(each)) for each in (held_out, reported))
    say("choosing exits")
    choices = frontier(seen, costs, measure)
    wanted = {name: value for name, value in (("error", error), ("cost", cost)) if value is not None}
    if not wanted:
        error = outcome(ExitPolicy({}, ("main",)), seen, costs).error
    taken = chosen(choices, error, None if cost is None else cost * sum(costs["main"]))
    images = next(iter(_batches(reported)))[0][:IMAGES]
    places = {round(each) for each in torch.linspace(0, len(choices) - 1, min(TIMED, len(choices))).tolist()}
    timed = sorted(places | {choices.index(taken)})
    say(f"the time of {len(timed)} choices, image by image")
    points = [_point(choices[place], net, shown, costs, images, size) for place in timed]
    return {
        "checkpoint": which,
        "chosen_on": where,
        "wanted": wanted,
        "held_out": len(seen.labels),
        "images": len(shown.labels),
        "measure": measure,
        "threads": torch.get_num_threads(),
        "classifiers": _alone(net, seen, shown, costs, images, size),
        "points": points,
        "chosen": points[timed.index(choices.index(taken))],
    }


def _parts(dataset: Dataset) -> tuple[Dataset, Dataset, str]:
    """The images to choose on, those to report on, and where the first are from."""
    if dataset.held_out is not None and len(dataset.held_out):
        split = dataset.held_out
        some = torch.linspace(0, len(split) - 1, min(HELD_OUT, len(split))).round().long()
        return replace(dataset, val=split.take(some)), dataset, "training images that the run did not train on"
    halves = (dataset.val.take(torch.arange(start, len(dataset.val), 2)) for start in (0, 1))
    first, second = (replace(dataset, val=half) for half in halves)
    return first, second, "every second validation image (the errors are of the others)"


def _remedy(dataset: Dataset) -> str:
    if dataset.held_out is None or not len(dataset.held_out):
        return f"at least {2 * FEWEST} validation images are needed, or a run with --data.limit"
    least = len(dataset.train) + len(dataset.held_out) - FEWEST
    if least < 1:
        return f"at least {FEWEST} are needed; train without --data.limit, so that they come from the validation images"
    return f"at least {FEWEST} are needed, so train with --data.limit {least} or less"


def _batches(dataset: Dataset) -> Iterator[tuple[Tensor, Tensor]]:
    return iter(dataset.val_loader(torch.device("cpu")).batches())


def _alone(
    net: BranchedModel, seen: Scores, shown: Scores, costs: Costs, images: Tensor, size: Sequence[int]
) -> list[dict[str, Any]]:
    """Every classifier alone, and the ensemble; of the former also the error on the images that exits are chosen on."""
    rows = []
    for name in net.names:
        found, before = (outcome(ExitPolicy({}, (name,)), each, costs) for each in (shown, seen))
        ms = _milliseconds(extract(net, name, size), images)
        rows.append({"name": name, "error": found.error, "macs": found.macs, "ms": ms, "held_out_error": before.error})
    answers = shown.logits.softmax(-1).mean(0).argmax(-1)
    error = 100 * float((answers != shown.labels).double().mean())
    macs = max(trunk for trunk, _ in costs.values()) + sum(own for _, own in costs.values())
    return [*rows, {"name": "ensemble", "error": error, "macs": macs, "ms": _milliseconds(Ensemble(net), images)}]


def _point(
    choice: Choice, net: BranchedModel, shown: Scores, costs: Costs, images: Tensor, size: Sequence[int]
) -> dict[str, Any]:
    found = outcome(choice.policy, shown, costs)
    module = EarlyExit(net, choice.policy, input_size=size)
    policy = asdict(choice.policy) | {"exits": list(choice.policy.exits)}
    ms = _milliseconds(module, images)
    return {**asdict(found), "ms": ms, "held_out": asdict(choice.held_out), "policy": policy}


@torch.inference_mode()
def _milliseconds(module: nn.Module | Callable[[Tensor], Any], images: Tensor) -> float:
    """Mean time of an image, one at a time; the quickest of some passes."""
    passes = []
    for _ in range(REPEATS + 1):
        started = time.perf_counter()
        for image in images:
            module(image[None])
        passes.append(time.perf_counter() - started)
    return round(1000 * min(passes[1:]) / len(images), 4)


def told_wish(kept: Mapping[str, Any]) -> str:
    """What `early_exits` was asked for."""
    wanted = kept.get("wanted") or {}
    if "cost" in wanted:
        return f"the most accurate within {wanted['cost']:g} of main's multiply-adds"
    return f"the cheapest with at most {wanted['error']:g} % error" if wanted else "the cheapest as accurate as main"


def policy_of(kept: Mapping[str, Any]) -> ExitPolicy:
    """The chosen policy in what `early_exits` gave."""
    values = dict(kept["chosen"]["policy"])
    return ExitPolicy(**{**values, "exits": tuple(values["exits"])})
