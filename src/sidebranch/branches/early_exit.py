"""A network that answers as soon as one of its classifiers is sure."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sidebranch.branches.grow import module_of, trace_own
from sidebranch.branches.trace import Trace, meta_copy, trace
from sidebranch.core.model import BranchedModel
from sidebranch.errors import UserError, nearest

if TYPE_CHECKING:
    from jaxtyping import Float, Int

MAIN, START = "main", "images"


class Answers(NamedTuple):
    """What an `EarlyExit` says.

    Attributes:
        probabilities: [N, K], of the exit that each image took.
        exits: [N], the exits' places in `EarlyExit.exits`.
    """

    probabilities: Float[Tensor, "n k"]
    exits: Int[Tensor, " n"]


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
    """Classifiers in the order of their cost; an image leaves at the first one whose confidence reaches its threshold.

    The stem is computed once. Each further part is computed for the images that go on, and for no other. For inference.

    Args:
        net: is left as it is; its weights are copied.
        thresholds: exit to the confidence, its highest probability, from which its answer is taken; the last exit needs
            none. Those of exits that are left out are 1: nothing leaves there.
        exits: names of classifiers; all, if left out. They are put in the order of their cost.
        input_size: of an image: channels, height, width; a size that timm knows for the model if left out.

    Attributes:
        exits: the classifiers' names, the cheapest first.
        steps: what each needs beyond those before it.

    Raises:
        UserError: there is no such classifier, a threshold is none, or the backbone's forward pass cannot be followed.
    """

    def __init__(
        self,
        net: BranchedModel,
        thresholds: Mapping[str, float],
        exits: Sequence[str] | None = None,
        input_size: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        for name in (*thresholds, *(exits or ())):
            if name not in net.names:
                raise UserError(f"no classifier '{name}'; {nearest(name, net.names)}")
        alone = copy.deepcopy(net).eval()
        forks, backbone = dict(net.forks), alone.release()
        traced = trace_own(backbone) if input_size is None else trace(backbone, input_size)
        wanted = [name for name in net.names if exits is None or name in exits]
        at = {name: forks[name] for name in wanted if name != MAIN}
        places = _in_order(traced, set(at.values()))
        self.trunks = nn.ModuleDict()
        nodes = {place: traced.fork(place) for place in places}
        for before, place in zip((START, *places), places, strict=False):
            graph = traced.stem(nodes[place]) if before == START else traced.tail(nodes[before], nodes[place])[0]
            self.trunks[_key(before, place)] = module_of(backbone, graph, "Trunk")
        last = places[-1] if places else START
        self.heads = nn.ModuleDict({name: alone.branches[name] for name in at})
        if MAIN in wanted:
            self.heads[MAIN] = backbone if last == START else module_of(backbone, traced.tail(nodes[last])[0], "Tail")
            at[MAIN] = last
        self.steps = self._ordered(at, places, traced.images.shape[1:])
        self.exits = tuple(step.name for step in self.steps)
        self.thresholds = {name: thresholds.get(name, 1.0) for name in self.exits[:-1]}
        for name, value in self.thresholds.items():
            if not 0 <= value <= 1:
                raise UserError(f"the threshold of {name} is {value}; a confidence is between 0 and 1")
        self.eval()

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "n channels h w"]) -> Answers:
        going = torch.arange(len(images), device=images.device)
        known, found, exits = {START: images}, None, torch.zeros_like(going)
        for place, step in enumerate(self.steps):
            for before, after in step.trunks:
                known[after] = self.trunks[_key(before, after)](known[before])
            answers = self.heads[step.name](known[step.at]).float().softmax(-1)
            found = answers.new_zeros(len(images), answers.shape[-1]) if found is None else found
            is_last = place == len(self.steps) - 1
            leaves = torch.ones_like(going, dtype=torch.bool) if is_last else self._is_sure(step.name, answers)
            found[going[leaves]], exits[going[leaves]] = answers[leaves], place
            going = going[~leaves]
            if not len(going):
                break
            still = {each for later in self.steps[place + 1 :] for each in (later.at, *sum(later.trunks, ()))}
            known = {each: features[~leaves] for each, features in known.items() if each in still}
        assert found is not None
        return Answers(found, exits)

    def macs(self, answers: Answers) -> float:
        """Mean multiply-adds of an image for these answers."""
        totals = torch.tensor([step.macs for step in self.steps], dtype=torch.float64).cumsum(0)
        return float(totals[answers.exits.cpu()].mean())

    def _is_sure(self, name: str, answers: Tensor) -> Tensor:
        return answers.max(-1).values >= self.thresholds[name]

    def _ordered(self, at: Mapping[str, str], places: Sequence[str], size: Sequence[int]) -> tuple[Step, ...]:
        """The exits by what they cost alone, with what each adds to those before it."""
        like = next(self.parameters())
        costs, shapes = {}, {START: torch.empty(1, *size, device="meta", dtype=like.dtype)}
        for before, place in zip((START, *places), places, strict=False):
            costs[place], shapes[place] = _macs(self.trunks[_key(before, place)], shapes[before])
        pairs = list(zip((START, *places), places, strict=False))
        path = {START: [], **{place: pairs[: number + 1] for number, place in enumerate(places)}}
        own = {name: _macs(self.heads[name], shapes[place])[0] for name, place in at.items()}
        alone = {name: own[name] + sum(costs[b] for _, b in path[place]) for name, place in at.items()}
        steps, done = [], set()
        for name in sorted(at, key=lambda each: alone[each]):
            trunks = tuple(each for each in path[at[name]] if each not in done)
            done |= set(trunks)
            steps.append(Step(name, trunks, at[name], own[name] + sum(costs[b] for _, b in trunks)))
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
