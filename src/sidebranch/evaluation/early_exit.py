"""Early exit, chosen from data: when images leave, at which mean cost and error.

In: what all classifiers say about images that the network was not trained on (`Scores`), and what each costs. Out: the
policies that are best for their cost there, and their error and cost on other images.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sidebranch.branches.early_exit import in_order_of_cost, step_costs
from sidebranch.core.exits import ExitPolicy, Measure
from sidebranch.errors import UserError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

Costs = Mapping[str, tuple[int, int]]  # of `EarlyExit.costs`
LEVELS = 60  # wanted accuracies that are tried for each set of exits
FEWEST = 200  # images to choose on


@dataclass(frozen=True, eq=False)
class Scores:
    """What all classifiers say about some images.

    Attributes:
        names: of the classifiers.
        logits: [C, N, K], float32.
        labels: [N].
    """

    names: tuple[str, ...]
    logits: Float[Tensor, "c n k"]
    labels: Int[Tensor, " n"]

    def of(self, exits: Sequence[str]) -> Float[Tensor, "e n k"]:
        """The logits of some classifiers, in their order."""
        return self.logits[[self.names.index(name) for name in exits]]


@dataclass(frozen=True)
class Outcome:
    """What a policy gives on some images.

    Attributes:
        error: top-1, in percent.
        macs: mean multiply-adds of an image.
        shares: exit to the share of the images that took it.
    """

    error: float
    macs: float
    shares: dict[str, float]


@dataclass(frozen=True)
class Choice:
    """A policy, and what it gave on the images that it was chosen on."""

    policy: ExitPolicy
    held_out: Outcome


@torch.no_grad()
def collect(network: nn.Module, names: Sequence[str], batches: Iterable[tuple[Tensor, Tensor]]) -> Scores:
    """What the classifiers say about all images; float32, on the CPU.

    Args:
        network: images to `Outputs`, in evaluation mode.
        names: of its classifiers.
        batches: images and labels.
    """
    logits, labels = [], []
    for images, targets in batches:
        if not len(targets):  # none of a batch could be read
            continue
        logits.append(torch.stack([each.float().cpu() for each in network(images).logits]))
        labels.append(targets.cpu())
    return Scores(tuple(names), torch.cat(logits, 1), torch.cat(labels))


def temperatures(scores: Scores) -> dict[str, float]:
    """Each classifier's temperature: that of the lowest cross-entropy on these images (Guo et al. 2017, sec. 4.2)."""
    return {
        name: round(_temperature(each, scores.labels), 4)
        for name, each in zip(scores.names, scores.logits, strict=True)
    }


def _temperature(logits: Tensor, labels: Tensor) -> float:
    """By golden section on its logarithm; the cross-entropy is convex in the inverse temperature."""
    low, high, ratio = -3.0, 3.0, (5**0.5 - 1) / 2
    while high - low > 1e-4:
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if _loss(logits, labels, left) < _loss(logits, labels, right):
            high = right
        else:
            low = left
    return float(torch.tensor((low + high) / 2).exp())


def _loss(logits: Tensor, labels: Tensor, log_temperature: float) -> float:
    return float(cross_entropy(logits.double() / torch.tensor(log_temperature).double().exp(), labels))


def outcome(policy: ExitPolicy, scores: Scores, costs: Costs) -> Outcome:
    """The error and the mean cost of a policy on these images."""
    found = policy.replay(scores.of(policy.exits))
    return _outcome(policy.exits, found.probabilities.argmax(-1) == scores.labels, found.exits, costs)


def _outcome(exits: Sequence[str], right: Tensor, taken: Tensor, costs: Costs) -> Outcome:
    total = torch.tensor(step_costs(costs, exits), dtype=torch.float64).cumsum(0)
    counts = taken.bincount(minlength=len(exits)).tolist()
    error = 100 * float((~right).double().mean())
    return Outcome(error, float(total[taken].mean()), {n: c / len(taken) for n, c in zip(exits, counts, strict=True)})


def frontier(scores: Scores, costs: Costs, measure: Measure = "confidence") -> list[Choice]:
    """The best policies for their cost on these images, the cheapest first; each has a lower error than all before it.

    Every set of exits is tried, with answers of the last exit or averaged over those so far. At each exit, the share of
    right answers is estimated as a rising function of sureness (isotonic regression), and an image leaves where that is
    as high as wanted; the wanted share is the same at all exits, and runs over its range.

    Args:
        scores: of images that the network was not trained on.
        costs: of all classifiers.
        measure: of sureness.

    Raises:
        UserError: there are too few images.
    """
    if len(scores.labels) < FEWEST:
        raise UserError(f"there are {len(scores.labels)} images to choose exits on; at least {FEWEST} are needed")
    scaled, names = temperatures(scores), in_order_of_cost(costs)
    found = []
    for count in range(1, len(names) + 1):
        for exits in combinations(names, count):
            for averaged in (False, True)[: min(2, count)]:
                policy = ExitPolicy({}, exits, {name: scaled[name] for name in exits}, measure, averaged)
                found += _choices(policy, scores, costs)
    return _best(found)


def _choices(policy: ExitPolicy, scores: Scores, costs: Costs) -> list[Choice]:
    """One set of exits with thresholds for all wanted shares of right answers."""
    exits = policy.exits
    seen = torch.stack([policy.probabilities(n, each) for n, each in zip(exits, scores.of(exits), strict=True)])
    told = [policy.answer(seen[: place + 1]) for place in range(len(exits))]
    right = torch.stack([answers.argmax(-1) == scores.labels for answers, _ in told])
    sure = torch.stack([each for _, each in told])
    curves = [risen(sure[place], right[place]) for place in range(len(exits) - 1)]
    levels = torch.cat([each.values for each in curves]).unique() if curves else torch.ones(1)
    levels = levels[torch.linspace(0, len(levels) - 1, min(LEVELS, len(levels))).long()]
    choices = []
    for level in levels.tolist():
        thresholds = {name: each.from_share(level) for name, each in zip(exits, curves, strict=False)}
        leaves = torch.ones_like(right)
        for place, name in enumerate(exits[:-1]):
            leaves[place] = sure[place] >= thresholds[name]
        taken = leaves.int().argmax(0)
        is_right = right.gather(0, taken[None])[0]
        choices.append(Choice(replace(policy, thresholds=thresholds), _outcome(exits, is_right, taken, costs)))
    return choices


@dataclass(frozen=True, eq=False)
class Risen:
    """The share of right answers as a rising step function of sureness.

    Attributes:
        starts: [s], ascending: the sureness at which each step begins, midway to the next lower one; first 0.
        values: [s], ascending: the share there.
    """

    starts: Float[Tensor, " s"]
    values: Float[Tensor, " s"]

    def from_share(self, wanted: float) -> float:
        """The sureness from which the share is as high as wanted; 1, if it never is."""
        enough = self.values >= wanted
        return float(self.starts[enough.int().argmax()]) if bool(enough.any()) else 1.0


def risen(sure: Float[Tensor, " n"], right: Bool[Tensor, " n"]) -> Risen:
    """Isotonic regression of right answers on sureness."""
    from sklearn.isotonic import IsotonicRegression

    order = sure.sort(stable=True)
    shares = IsotonicRegression().fit_transform(order.values.double().numpy(), right[order.indices].double().numpy())
    values = torch.from_numpy(shares)
    begins = torch.ones(len(values), dtype=torch.bool)
    begins[1:] = values[1:] > values[:-1]
    middles = order.values.clone()
    middles[0], middles[1:] = 0, (order.values[1:] + order.values[:-1]) / 2
    return Risen(middles[begins], values[begins])


def _best(choices: Sequence[Choice]) -> list[Choice]:
    """Those whose error is below that of all cheaper ones."""
    kept: list[Choice] = []
    for each in sorted(choices, key=lambda each: (each.held_out.macs, each.held_out.error)):
        if not kept or each.held_out.error < kept[-1].held_out.error:
            kept.append(each)
    return kept


def chosen(choices: Sequence[Choice], error: float | None = None, macs: float | None = None) -> Choice:
    """The cheapest policy with at most an error, or the most accurate one within a mean cost, as held-out images say.

    Args:
        choices: of `frontier`.
        error: in percent; if given, the cost is free.
        macs: mean multiply-adds of an image.

    Raises:
        UserError: there is none.
    """
    if error is not None:
        fits = [each for each in choices if each.held_out.error <= error]
        if not fits:
            least = choices[-1].held_out.error
            raise UserError(
                f"no exits reach an error of {error:.2f} % on the images they are chosen on; the lowest is {least:.2f}"
            )
        return fits[0]
    assert macs is not None
    fits = [each for each in choices if each.held_out.macs <= macs]
    if not fits:
        least = choices[0].held_out.macs
        raise UserError(
            f"no exits are as cheap as {macs / 1e6:,.1f} M multiply-adds; the cheapest are {least / 1e6:,.1f} M, "
            f"{least / macs:.2f} times as many"
        )
    return fits[-1]
