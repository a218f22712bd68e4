"""A network that answers as soon as one of its classifiers is sure."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sidebranch.branches.grow import module_of, trace_own
from sidebranch.branches.trace import Trace, meta_copy, trace
from sidebranch.core.exits import Answers, ExitPolicy
from sidebranch.core.model import BranchedModel
from sidebranch.errors import UserError, nearest

if TYPE_CHECKING:
    from jaxtyping import Float

MAIN, START = "main", "images"


@dataclass(frozen=True)
class Step:
    """What is computed for one exit, if the exits before it were.

    Attributes:
        name: of the classifier.
        trunks: (from, to): parts of the backbone that run first, in order.
        at: where the exit's own part begins.
        macs: multiply-adds of one image for this step alone.
    """

    name: str
    trunks: tuple[tuple[str, str], ...]
    at: str
    macs: int


class EarlyExit(nn.Module):
    """Classifiers in the order of their cost; an image leaves at the first one that is sure.

    The stem is computed once. Each further part is computed for the images that go on, and for no other. For inference.

    Args:
        net: is left as it is; its weights are copied.
        policy: when an image leaves, or just its thresholds: exit to the highest probability from which its answer is
            taken. Without any, all images go to the last exit.
        exits: names of classifiers; the policy's, or all, if left out. They are put in the order of their cost.
        input_size: of an image: channels, height, width; a size that timm knows for the model if left out.
        max_cost: multiply-adds that no image may exceed: exits that cost more are left out.

    Attributes:
        policy: with all exits and thresholds.
        exits: the classifiers' names, the cheapest first.
        steps: what each needs beyond those before it.
        costs: classifier to the multiply-adds of the backbone up to its fork, and of its own part after it.

    Raises:
        UserError: there is no such classifier, none is cheap enough, or the backbone's forward pass cannot be followed.
    """

    def __init__(
        self,
        net: BranchedModel,
        policy: ExitPolicy | Mapping[str, float] | None = None,
        exits: Sequence[str] | None = None,
        input_size: Sequence[int] | None = None,
        max_cost: float | None = None,
    ) -> None:
        super().__init__()
        policy = policy if isinstance(policy, ExitPolicy) else ExitPolicy(policy or {})
        for name in (*policy.thresholds, *policy.temperatures, *policy.exits, *(exits or ())):
            if name not in net.names:
                raise UserError(f"no classifier '{name}'; {nearest(name, net.names)}")
        alone = copy.deepcopy(net).eval()
        forks, backbone = dict(net.forks), alone.release()
        traced = trace_own(backbone) if input_size is None else trace(backbone, input_size)
        wanted = exits or policy.exits or net.names
        at = {name: forks[name] for name in net.names if name in wanted and name != MAIN}
        places = _in_order(traced, set(at.values()))
        self.trunks: nn.ModuleDict = nn.ModuleDict()
        nodes = {place: traced.fork(place) for place in places}
        for before, place in zip((START, *places), places, strict=False):
            graph = traced.stem(nodes[place]) if before == START else traced.tail(nodes[before], nodes[place])[0]
            self.trunks[_key(before, place)] = module_of(backbone, graph, "Trunk")
        last = places[-1] if places else START
        self.heads: nn.ModuleDict = nn.ModuleDict({name: alone.branches[name] for name in at})
        if MAIN in wanted:
            self.heads[MAIN] = backbone if last == START else module_of(backbone, traced.tail(nodes[last])[0], "Tail")
            at[MAIN] = last
        self.costs: dict[str, tuple[int, int]] = self._costs(at, places, traced.images.shape[1:])
        self.steps: tuple[Step, ...] = _steps(self.costs, at, places, max_cost)
        self.exits: tuple[str, ...] = tuple(step.name for step in self.steps)
        used = {_key(*pair) for step in self.steps for pair in step.trunks}
        for parts, kept in ((self.heads, set(self.exits)), (self.trunks, used)):
            for name in set(parts) - kept:
                del parts[name]
        thresholds = {name: policy.thresholds.get(name, 1.0) for name in self.exits[:-1]}
        self.policy: ExitPolicy = replace(policy, exits=self.exits, thresholds=thresholds)
        self.eval()

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "n channels h w"]) -> Answers:
        going = torch.arange(len(images), device=images.device)
        known, seen = {START: images}, images.new_empty(0, dtype=torch.float32)
        found, exits = seen, torch.zeros_like(going)
        for place, step in enumerate(self.steps):
            known, logits = self.take(place, known)
            own = self.policy.probabilities(step.name, logits)[None]
            seen = torch.cat([seen, own]) if place else own
            answers, sure = self.policy.answer(seen)
            if place == len(self.steps) - 1:
                leaves = torch.ones_like(going, dtype=torch.bool)
            else:
                leaves = sure >= self.policy.thresholds[step.name]
            found = found if place else answers.new_zeros(len(images), answers.shape[-1])
            found[going[leaves]], exits[going[leaves]] = answers[leaves], place
            going, seen = going[~leaves], seen[:, ~leaves]
            if not len(going):
                break
            known = {each: features[~leaves] for each, features in known.items()}
        return Answers(found, exits)

    def take(self, place: int, known: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """One exit: what later exits need of the features, and the logits.

        Args:
            place: of the exit.
            known: place in the backbone to the features there, as the exit before left them; first {"images": ...}.
        """
        step, known = self.steps[place], dict(known)
        for before, after in step.trunks:
            known[after] = self.trunk((before, after))(known[before])
        logits = self.heads[step.name](known[step.at])
        return {each: known[each] for each in self.needed(place + 1) if each in known}, logits

    def trunk(self, pair: tuple[str, str]) -> nn.Module:
        """A part of the backbone, from one place to the next: an item of `Step.trunks`."""
        return self.trunks[_key(*pair)]

    def needed(self, place: int) -> tuple[str, ...]:
        """The features that an exit and those after it take from the exits before, as places in the backbone."""
        made: set[str] = set()
        found: dict[str, None] = {}
        for step in self.steps[place:]:
            for each in [pair[0] for pair in step.trunks] + [step.at]:
                found |= {} if each in made else {each: None}
                made |= {pair[1] for pair in step.trunks}
        made_before = {pair[1] for step in self.steps[:place] for pair in step.trunks} | {START}
        return tuple(each for each in found if each in made_before)

    def macs(self, answers: Answers) -> float:
        """Mean multiply-adds of an image for these answers."""
        totals = torch.tensor([step.macs for step in self.steps], dtype=torch.float64).cumsum(0)
        return float(totals[answers.exits.cpu()].mean())

    def _costs(self, at: Mapping[str, str], places: Sequence[str], size: Sequence[int]) -> dict[str, tuple[int, int]]:
        like = next(self.parameters())
        trunk, shapes = {START: 0}, {START: torch.empty(1, *size, device="meta", dtype=like.dtype)}
        for before, place in zip((START, *places), places, strict=False):
            macs, shapes[place] = _macs(self.trunks[_key(before, place)], shapes[before])
            trunk[place] = trunk[before] + macs
        return {name: (trunk[place], _macs(self.heads[name], shapes[place])[0]) for name, place in at.items()}


def in_order_of_cost(costs: Mapping[str, tuple[int, int]]) -> tuple[str, ...]:
    """Classifiers by what each costs alone, the cheapest first."""
    return tuple(sorted(costs, key=lambda name: sum(costs[name])))


def step_costs(costs: Mapping[str, tuple[int, int]], exits: Sequence[str]) -> list[int]:
    """Multiply-adds of an image at each exit, beyond those before it: its own part, and the trunk's rest up to it.

    Args:
        costs: `EarlyExit.costs`.
        exits: in order.
    """
    found, deepest = [], 0
    for name in exits:
        trunk, own = costs[name]
        found.append(own + max(0, trunk - deepest))
        deepest = max(deepest, trunk)
    return found


def _steps(
    costs: Mapping[str, tuple[int, int]], at: Mapping[str, str], places: Sequence[str], most: float | None
) -> tuple[Step, ...]:
    """The exits in the order of their cost, as long as one image may cost as much."""
    names = in_order_of_cost(costs)
    added = step_costs(costs, names)
    total = list(accumulate(added))
    if most is not None:
        if total[0] > most:
            raise UserError(f"max_cost is {most:,.0f} multiply-adds; the cheapest exit, {names[0]}, needs {total[0]:,}")
        names = tuple(name for name, sum_ in zip(names, total, strict=True) if sum_ <= most)
    steps, done = [], 0
    for name, macs in zip(names, added, strict=False):
        depth = places.index(at[name]) + 1 if at[name] in places else 0
        trunks = tuple(zip((START, *places)[done:depth], places[done:depth], strict=False))
        done = max(done, depth)
        steps.append(Step(name, trunks, at[name], macs))
    return tuple(steps)


def _in_order(traced: Trace, places: set[str]) -> list[str]:
    order = list(traced.graph.nodes)
    return sorted(places, key=lambda place: order.index(traced.fork(place)))


def _key(before: str, after: str) -> str:
    return f"{before} to {after}".replace(".", "/")


def _macs(module: nn.Module, features: Tensor) -> tuple[int, Tensor]:
    """Multiply-adds of a part for one image, and what comes out, on the meta device."""
    module = meta_copy(module).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        out = module(features)
    return counter.get_total_flops() // 2, out
