"""Ranking of a gallery: mean average precision (mAP) and the cumulative matching characteristic (CMC).

The protocol is Market-1501's (Zheng et al. 2015), single query. For each query, gallery images of its own identity and
camera are left out; junk is left out for all queries. The others are sorted by distance, equal distances in the
gallery's order; those of the query's identity are its matches. With r_1 < ... < r_M their ranks, from 1,

    AP = 1/M sum_k k / r_k,    CMC(n) = [r_1 <= n],

averaged over the queries that have a match. Differs: the data set's original MATLAB evaluation sums trapezoids under
the precision-recall curve; this is the plain mean of the precisions, as in all later evaluations.

The gallery is not sorted for its order: the rank of a match is the number of nearer images, found by binary search in
the sorted distances, minus those that are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sidebranch.errors import UserError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

JUNK = -1
PAIRS = 256  # compared with their rows at once


@dataclass(frozen=True, eq=False)
class People:
    """Person identity and camera of each image.

    Attributes:
        identities: [n]; -1 for junk, which is never ranked.
        cameras: [n].
    """

    identities: Int[Tensor, " n"]
    cameras: Int[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.identities)

    def __getitem__(self, chosen: Tensor) -> People:
        return People(self.identities[chosen], self.cameras[chosen])


@dataclass(frozen=True, eq=False)
class Ranking:
    """The result of each query.

    Attributes:
        average_precision: [q], 0 to 1; NaN if the query has no match.
        first: [q], the rank of the first match, from 1; 0 if there is none.
    """

    average_precision: Float[Tensor, " q"]
    first: Int[Tensor, " q"]

    @classmethod
    def joined(cls, parts: Sequence[Ranking]) -> Ranking:
        """Concatenates the results of several parts of the queries."""
        if not parts:
            return cls(torch.zeros(0, dtype=torch.float64), torch.zeros(0, dtype=torch.int64))
        return cls(torch.cat([each.average_precision for each in parts]), torch.cat([each.first for each in parts]))

    @property
    def matched(self) -> Bool[Tensor, " q"]:
        """[q], whether a query has a match; the others do not count."""
        return self.first > 0

    @property
    def mean_average_precision(self) -> float:
        """In percent; NaN if no query has a match."""
        return 100 * float(self.average_precision[self.matched].mean())

    def cmc(self, count: int) -> list[float]:
        """The share of queries, in percent, with a match among the first 1, 2, ..., `count`."""
        first = self.first[self.matched]
        found = torch.bincount(first.clamp(max=count + 1), minlength=count + 2)[1 : count + 1]
        return (100 * found.double().cumsum(0) / len(first)).tolist()


class Ranker:
    """`ranker(distances, start)` ranks the gallery for a chunk of the queries that begins with number `start`.

    Args:
        queries: person identities and cameras of the queries.
        gallery: the same of the gallery, junk included.

    Attributes:
        kept: numbers of the gallery's images that are not junk; the distances are to these.
    """

    def __init__(self, queries: People, gallery: People) -> None:
        self.kept = (gallery.identities != JUNK).nonzero()[:, 0]
        self.queries, self.gallery = queries, gallery[self.kept]
        # Sorted by identity; images of one identity in the gallery's order.
        identities, self.order = self.gallery.identities.sort(stable=True)
        self.begin = torch.searchsorted(identities, queries.identities)
        self.end = torch.searchsorted(identities, queries.identities, right=True)

    def without_match(self) -> int:
        """Number of queries that have no match in the gallery; they do not count."""
        chunks = torch.arange(len(self.queries), device=self.begin.device).split(1024)
        return sum(int((~self._matches(chunk)[1].any(1)).sum()) for chunk in chunks)

    def __call__(self, distances: Float[Tensor, "c g"], start: int = 0) -> Ranking:
        """
        Args:
            distances: from c queries to the gallery's kept images, or any increasing function of them.
            start: number of the first of these queries.

        Raises:
            UserError: a distance is NaN.
        """
        if distances.isnan().any():
            raise UserError("a distance is not a number: the features are not finite")
        chunk = torch.arange(start, start + len(distances), device=distances.device)
        images, is_match, is_alike = self._matches(chunk)
        if not images.shape[1]:
            nothing = torch.zeros(len(chunk), device=distances.device)
            return Ranking(nothing.double() / 0, nothing.long())
        far = distances.gather(1, images).masked_fill(~is_alike, torch.inf)
        far, nearest_first = far.sort(dim=1, stable=True)
        images, is_match, is_alike = (each.gather(1, nearest_first) for each in (images, is_match, is_alike))
        every = _sorted(distances)
        nearer = torch.searchsorted(every, far)
        as_near = torch.searchsorted(every, far, right=True) - nearer
        nearer = nearer + self._equal_before(distances, far, images, is_match & (as_near > 1))
        left_out = (is_alike & ~is_match).cumsum(1)  # images of the query's own camera, up to this one
        ranks = nearer - left_out + 1
        place = is_match.cumsum(1)
        precision = torch.where(is_match, place.double() / ranks, 0.0)
        first = torch.where(is_match, ranks, distances.shape[1] + 1).amin(1)
        return Ranking(precision.sum(1) / place[:, -1], torch.where(is_match.any(1), first, 0))

    def _matches(self, chunk: Int[Tensor, " c"]) -> tuple[Tensor, Tensor, Tensor]:
        """[c, m]: images of the queries' identities; whether each is a match; whether it is not padding."""
        begin, end = self.begin[chunk], self.end[chunk]
        most = int((end - begin).amax()) if len(chunk) else 0
        at = begin[:, None] + torch.arange(most, device=chunk.device)
        is_alike = at < end[:, None]
        images = self.order[at.clamp(max=max(0, len(self.order) - 1))] if most else at
        other_camera = self.gallery.cameras[images] != self.queries.cameras[chunk][:, None] if most else is_alike
        return images, is_alike & other_camera, is_alike

    @staticmethod
    def _equal_before(distances: Tensor, far: Tensor, images: Tensor, tied: Tensor) -> Tensor:
        """[c, m]: number of images with the distance of a tied match that come before it in the gallery."""
        counts = torch.zeros_like(images)
        number = torch.arange(distances.shape[1], device=distances.device)
        for pairs in tied.nonzero().split(PAIRS):
            row, column = pairs.unbind(1)
            equal = distances[row] == far[row, column][:, None]
            counts[row, column] = (equal & (number < images[row, column][:, None])).sum(1)
        return counts


def rank(distances: Float[Tensor, "q g"], queries: People, gallery: People, chunk: int = 128) -> Ranking:
    """Ranks the gallery for every query.

    Args:
        distances: from every query to every gallery image, junk included.
        queries: person identities and cameras of the queries.
        gallery: the same of the gallery.
        chunk: queries at a time, whose distances are copied and sorted at once.
    """
    ranker = Ranker(queries, gallery)
    has_junk = len(ranker.kept) < len(gallery)
    parts = []
    for start in range(0, len(queries), chunk):
        rows = distances[start : start + chunk]
        parts.append(ranker(rows[:, ranker.kept] if has_junk else rows, start))
    return Ranking.joined(parts)


def distances_between(
    queries: Float[Tensor, "q d"], gallery: Float[Tensor, "g d"], metric: str, chunk: int
) -> Iterator[Float[Tensor, "c g"]]:
    """Cosine or squared Euclidean distances, a chunk of the queries at a time."""
    if metric == "cosine":
        queries, gallery = (torch.nn.functional.normalize(each) for each in (queries, gallery))
        for rows in queries.split(chunk):
            yield torch.addmm(rows.new_ones(1), rows, gallery.T, alpha=-1)
        return
    squares = gallery.square().sum(1)
    for rows in queries.split(chunk):
        yield torch.addmm(squares + rows.square().sum(1, keepdim=True), rows, gallery.T, alpha=-2)


def _sorted(distances: Float[Tensor, "c g"]) -> Float[Tensor, "c g"]:
    """Sorted rows; on a CPU NumPy is ten times as fast as torch, which also computes the order."""
    if distances.device.type != "cpu":
        return distances.sort(1).values
    return torch.from_numpy(np.sort(distances.numpy(), axis=1))
