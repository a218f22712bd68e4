"""Which classifiers are computed and which mimic one another, at (seed, epoch, step).

In: the classifiers' names, main first, and (seed, epoch, step). Out: a `Draw`. Samplers are pure functions: no state to
save, the same on every rank and after a resume. Main always takes part (Li & Chen 2020, section 3.2: the set Phi~
includes it).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch

from sidebranch.errors import UserError, nearest
from sidebranch.seeding import generator

Drops = Literal["mimicry", "branch"]
Per = Literal["epoch", "step"]


@dataclass(frozen=True)
class Draw:
    """One draw.

    Attributes:
        live: the classifiers to compute; the others cost nothing in this step.
        mimics: the live classifiers that teach and learn from one another; the rest still learn from the labels.
    """

    live: tuple[str, ...]
    mimics: tuple[str, ...]


class Sampler(Protocol):
    """Names, main first, and (seed, epoch, step), to a draw.

    Attributes:
        computes_all: every draw computes all classifiers, so that no parameter is ever without a gradient.
    """

    @property
    def computes_all(self) -> bool: ...

    def __call__(self, names: Sequence[str], *, seed: int, epoch: int, step: int) -> Draw: ...


@dataclass(frozen=True)
class Fixed:
    """All classifiers in every step: the papers' main experiments."""

    computes_all: bool = True

    def __call__(self, names: Sequence[str], *, seed: int, epoch: int, step: int) -> Draw:
        return Draw(tuple(names), tuple(names))


@dataclass(frozen=True)
class Bernoulli:
    """Each branch is kept with probability `p`, one independent bit a branch (Li & Chen 2020, supplement D).

    Args:
        p: in [0, 1]; 0.5 in the supplement.
        drops: "mimicry", a branch that is out still learns from the labels (the supplement's experiment); "branch", it
            is not computed at all.
        per: draw once an epoch (the supplement) or at every step.
    """

    p: float = 0.5
    drops: Drops = "mimicry"
    per: Per = "epoch"

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise UserError(f"the Bernoulli probability is {self.p}; it must lie in [0, 1]")
        _check_modes(self.drops, self.per)

    @property
    def computes_all(self) -> bool:
        return self.drops == "mimicry"

    def __call__(self, names: Sequence[str], *, seed: int, epoch: int, step: int) -> Draw:
        random = generator("bernoulli", seed, epoch, step if self.per == "step" else "all")
        kept = torch.rand(len(names) - 1, generator=random, dtype=torch.float64) < self.p
        chosen = tuple(name for name, keep in zip(names[1:], kept.tolist(), strict=True) if keep)
        return _draw(names, chosen, self.drops)


@dataclass(frozen=True)
class Categorical:
    """One of several sets of branches, from a given discrete distribution (Li & Chen 2020, section 3.2).

    Args:
        sets: what may be drawn, to its probability; a set is branch names joined by "+", or "none":
            `{"b1": 0.25, "b2": 0.25, "b1+b2": 0.5}`.
        drops: as in `Bernoulli`.
        per: as in `Bernoulli`.
    """

    sets: Mapping[str, float]
    drops: Drops = "mimicry"
    per: Per = "epoch"

    def __post_init__(self) -> None:
        _check_modes(self.drops, self.per)
        if not self.sets or not min(self.sets.values()) >= 0 or not abs(sum(self.sets.values()) - 1) <= 1e-6:
            raise UserError(f"the probabilities {dict(self.sets)} must be at least 0 and sum to 1")

    @property
    def computes_all(self) -> bool:
        return self.drops == "mimicry"

    def __call__(self, names: Sequence[str], *, seed: int, epoch: int, step: int) -> Draw:
        chosen = {each: _members(each, names) for each in self.sets}
        random = generator("categorical", seed, epoch, step if self.per == "step" else "all")
        weights = torch.tensor(list(self.sets.values()), dtype=torch.float64)
        drawn = list(self.sets)[int(torch.multinomial(weights, 1, generator=random))]
        return _draw(names, chosen[drawn], self.drops)


@dataclass(frozen=True)
class MovingRoots:
    """Which of its places each branch emerges from (Li & Chen 2020, section 3.2).

    Args:
        probabilities: name of a branch to one number a place of it, summing to 1; a branch that is not named draws from
            its places evenly.
        per: draw once an epoch or at every step.
    """

    probabilities: Mapping[str, Sequence[float]] = field(default_factory=dict)
    per: Per = "epoch"

    def __post_init__(self) -> None:
        _check_modes("branch", self.per)
        for name, shares in self.probabilities.items():
            if not shares or not min(shares) >= 0 or not abs(sum(shares) - 1) <= 1e-6:
                raise UserError(f"the probabilities {list(shares)} of {name}'s roots must be at least 0 and sum to 1")

    def __call__(self, places: Mapping[str, Sequence[str]], *, seed: int, epoch: int, step: int) -> dict[str, str]:
        """Name to place, from `BranchedModel.places`, for `BranchedModel.forward`; only of branches that can move."""
        for name in self.probabilities:
            if name not in places:
                raise UserError(f"the probabilities of roots name no branch '{name}'; {nearest(name, places)}")
        drawn = {}
        for name, at in places.items():
            shares = self.probabilities.get(name, [1 / len(at)] * len(at))
            if len(shares) != len(at):
                raise UserError(f"{name} has {len(at)} places to emerge from and {len(shares)} probabilities for them")
            if len(at) > 1:
                random = generator("root", name, seed, epoch, step if self.per == "step" else "all")
                weights = torch.tensor(shares, dtype=torch.float64)
                drawn[name] = at[int(torch.multinomial(weights, 1, generator=random))]
        return drawn


def _members(joined: str, names: Sequence[str]) -> tuple[str, ...]:
    """The branches of a set such as "b1+b2"."""
    members = () if joined == "none" else tuple(part.strip() for part in joined.split("+"))
    for name in members:
        if name not in names[1:]:
            raise UserError(f"the set '{joined}' names no branch '{name}'; {nearest(name, names[1:])}")
    return members


def _draw(names: Sequence[str], chosen: Sequence[str], drops: Drops) -> Draw:
    inside = tuple(name for name in names if name == names[0] or name in chosen)
    return Draw(inside if drops == "branch" else tuple(names), inside)


def _check_modes(drops: str, per: str) -> None:
    if drops not in ("mimicry", "branch"):
        raise UserError(f"sampling drops '{drops}'; choose from: mimicry, branch")
    if per not in ("epoch", "step"):
        raise UserError(f"sampling draws per '{per}'; choose from: epoch, step")
