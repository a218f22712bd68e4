"""Evaluation of re-identification: rank the gallery for every query by the distance of their features.

In: a network that returns features, and the test images: queries, then gallery. Out: mAP and CMC of every classifier's
features, and of their concatenation.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sidebranch.config.data import EvalConfig
from sidebranch.data.datasets import Loader
from sidebranch.data.sources.reid import ReIDSet
from sidebranch.device import FullBatches
from sidebranch.errors import UserError
from sidebranch.metrics import People, Ranker, Ranking, distances_between

RANKS = (1, 5, 10, 20)
CURVE = 50  # ranks of a CMC curve
NEAREST = 10  # gallery images kept for each query


@dataclass(frozen=True, eq=False)
class Retrieval:
    """The rankings of the gallery.

    Attributes:
        rankings: by each column: the classifiers, and `concat`, the concatenation of their features.
        nearest: [q, up to `near`], numbers in the test split of the gallery images nearest to each query by main's
            features, without those of the same person and camera; -1 where there are no more.
        queries: [q], numbers in the test split of the queries that could be read.
    """

    rankings: dict[str, Ranking]
    nearest: Tensor
    queries: Tensor

    @property
    def values(self) -> dict[str, dict[str, float]]:
        """Column to mAP and CMC at 1, 5, 10 and 20, in percent."""
        found = {}
        for name, ranking in self.rankings.items():
            curve = ranking.cmc(max(RANKS))
            found[name] = {"mAP": ranking.mean_average_precision, **{f"rank{at}": curve[at - 1] for at in RANKS}}
        return found


def retrieval_columns(names: Sequence[str]) -> tuple[str, ...]:
    """The classifiers, and their concatenation if there is more than one."""
    return (*names, "concat") if len(names) > 1 else tuple(names)


def retrieve(
    network: nn.Module,
    names: Sequence[str],
    loader: Loader,
    device: torch.device,
    reduce: Callable[[Tensor], Tensor] | None = None,
    *,
    people: ReIDSet,
    config: EvalConfig,
    near: int = 0,
) -> Retrieval:
    """Ranks the gallery for every query, by each classifier's features and by their concatenation.

    With the cosine distance, unit features are concatenated: their distance is the mean of the classifiers' distances.

    Args:
        network: images to `Outputs` with features.
        names: of its classifiers.
        loader: of the test images, each once over all ranks; the labels are the images' numbers.
        device: of the loader's batches.
        reduce: sums a tensor over the ranks.
        people: person identities and cameras of the test images.
        config: distance and flip.
        near: gallery images to return for each query.

    Raises:
        UserError: no query or no gallery image could be read, or a feature is not finite.
    """
    features = _features(network, names, loader, device, len(people.test), config.flip)
    if reduce is not None:
        widths = [features[name].shape[1] if name in features else 0 for name in names]
        known, *summed = reduce(torch.tensor([any(widths), *widths], device=device)).tolist()
        for name, width in zip(names, summed, strict=True):  # a rank without images does not know the width
            features.setdefault(name, torch.zeros(len(people.test), width // max(1, known), device=device))
        features = {name: reduce(features[name]) for name in ("", *names)}
    if device.type == "mps":  # no float64 there
        device, features = torch.device("cpu"), {name: table.cpu() for name, table in features.items()}
    read = features.pop("")[:, 0] > 0
    number = torch.arange(len(read), device=device)
    queries, gallery = number[read & (number < people.queries)], number[read & (number >= people.queries)]
    if not len(queries) or not len(gallery):
        raise UserError(f"no {'gallery image' if len(queries) else 'query'} could be read")
    who = People(people.identities.to(device), people.cameras.to(device))
    ranker = Ranker(who[queries], who[gallery])
    with torch.autocast(device.type, enabled=False):  # nearly equal distances differ in their last bits
        tables = [(features[name][queries], features[name][gallery]) for name in names]
        parts: dict[str, list[Ranking]] = {name: [] for name in retrieval_columns(names)}
        nearest, start = [], 0
        for rows in zip(*(distances_between(*each, config.metric, config.chunk) for each in tables), strict=True):
            for name, distances in zip(names, rows, strict=True):
                parts[name].append(ranker(distances, start))
            if len(names) > 1:
                parts["concat"].append(ranker(torch.stack(rows).mean(0), start))
            if near:
                chunk = who[queries[start : start + len(rows[0])]]
                is_excluded = chunk.identities[:, None] == who.identities[gallery]
                is_excluded &= chunk.cameras[:, None] == who.cameras[gallery]
                values, order = (
                    rows[0].masked_fill(is_excluded, math.inf).sort(dim=1, stable=True)
                )  # topk is not stable
                nearest.append(torch.where(values.isinf(), -1, gallery[order])[:, :near])
            start += len(rows[0])
    joined = {name: Ranking.joined(each) for name, each in parts.items()}
    if not joined["main"].matched.any():  # possible if images were unreadable
        raise UserError("no query has a match in the gallery from another camera")
    return Retrieval(joined, torch.cat(nearest) if near else queries.new_empty(len(queries), 0), queries)


@torch.no_grad()
def _features(
    network: nn.Module, names: Sequence[str], loader: Loader, device: torch.device, count: int, flip: bool
) -> dict[str, Tensor]:
    """Classifier to its features, float32 [count, D]; and under "", [count, 1], 1 for the images that could be read.

    Each rank fills the rows of its own images; the other rows are 0.
    """
    was_training = network.training
    network.eval()
    tables: dict[str, Tensor] = {"": torch.zeros(count, 1, device=device)}
    full_batches = FullBatches()
    for images, numbers in loader.batches():
        if not len(numbers):  # this rank has no image of the last batch, or all are unreadable
            continue
        with full_batches(len(numbers)):
            features = _features_of(network, images, flip)
        for name, rows in zip(names, features, strict=True):
            if name not in tables:
                tables[name] = torch.zeros(count, rows.shape[1], device=device)
            tables[name][numbers] = rows
        tables[""][numbers] = 1
    network.train(was_training)
    return tables


def _features_of(network: nn.Module, images: Tensor, flip: bool) -> list[Tensor]:
    """Every classifier's features of a batch, float32 [N, D]."""
    features = [each.float() for each in network(images).features]
    if not flip:
        return features
    features = [each.clone() for each in features]  # CUDA graphs reuse their outputs' memory
    mirrored = network(images.flip(-1)).features
    return [(each + other.float()) / 2 for each, other in zip(features, mirrored, strict=True)]


def notes_on(people: ReIDSet) -> tuple[str, ...]:
    """Lines about a data set's images and about queries without a match, which do not count.

    Raises:
        UserError: no query has a match.
    """
    who = People(people.identities, people.cameras)
    number = torch.arange(len(people.test))
    unmatched = Ranker(who[number[: people.queries]], who[number[people.queries :]]).without_match()
    if unmatched == people.queries:
        raise UserError(f"none of the {unmatched:,} queries has a match in the gallery from another camera")
    text = f"{unmatched:,} of {people.queries:,} queries have no match from another camera; they do not count"
    return (*people.notes, text if unmatched else "every query has a match from another camera")


def as_table(found: Retrieval, people: ReIDSet, root: str, config: EvalConfig) -> dict[str, Any]:
    """Plain values for JSON: CMC curves of every column, and the images nearest to every query by main's features.

    Args:
        found: the rankings.
        people: person identities and cameras.
        root: of the data, as in the config; file names are relative to it.
        config: distance and flip.
    """
    test, main = people.test, found.rankings["main"]
    base = Path(root) if Path(root).is_dir() else Path(root).parent
    files = [os.path.relpath(test.name(number), base) for number in range(len(test))]
    return {
        "metric": config.metric,
        "flip": config.flip,
        "cmc": {name: [round(each, 4) for each in ranking.cmc(CURVE)] for name, ranking in found.rankings.items()},
        "root": str(base.resolve()),
        "files": files,
        "identities": people.identities.tolist(),
        "cameras": people.cameras.tolist(),
        "queries": found.queries.tolist(),
        "average_precision": [round(each, 6) for each in main.average_precision.nan_to_num(-1).tolist()],
        "nearest": found.nearest.tolist(),
    }
