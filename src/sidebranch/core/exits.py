"""When a classifier is sure enough to answer: the rule of early exit, on what the classifiers say.

In: the probabilities that an image's exits have given so far. Out: its answer, and how sure that is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from sidebranch.errors import UserError, nearest

if TYPE_CHECKING:
    from jaxtyping import Float, Int

Measure = Literal["confidence", "margin", "agreement"]
MEASURES: tuple[Measure, ...] = get_args(Measure)


class Answers(NamedTuple):
    """What a network with exits says.

    Attributes:
        probabilities: [N, K], the answers.
        exits: [N], the place of the exit that each image took.
    """

    probabilities: Float[Tensor, "n k"]
    exits: Int[Tensor, " n"]


@dataclass(frozen=True)
class ExitPolicy:
    """Which exits there are, and when an image takes one.

    Args:
        thresholds: exit to the sureness from which its answer is taken. The last exit needs none; that of an exit that
            is left out is 1.
        exits: names of the classifiers, the cheapest first; all of a network's, if empty.
        temperatures: classifier to what its logits are divided by; 1, if left out (Guo et al. 2017).
        measure: what sureness is: `confidence`, the highest probability; `margin`, the highest less the second highest;
            `agreement`, the lowest probability that any exit so far gives to the answer.
        averaged: whether the answer is the mean of the probabilities of all exits so far, instead of the last one's.

    Raises:
        UserError: a threshold, a temperature or the measure is none.
    """

    thresholds: Mapping[str, float] = field(default_factory=dict)
    exits: tuple[str, ...] = ()
    temperatures: Mapping[str, float] = field(default_factory=dict)
    measure: Measure = "confidence"
    averaged: bool = False

    def __post_init__(self) -> None:
        if self.measure not in MEASURES:
            raise UserError(f"no measure '{self.measure}' of sureness; {nearest(self.measure, MEASURES)}")
        for name, value in self.thresholds.items():
            if not 0 <= value <= 1:
                raise UserError(f"the threshold of {name} is {value}; a {self.measure} is between 0 and 1")
        for name, value in self.temperatures.items():
            if not value > 0:
                raise UserError(f"the temperature of {name} is {value}; it must be above 0")

    def probabilities(self, name: str, logits: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        """A classifier's probabilities at its temperature, in float32."""
        return (logits.float() / self.temperatures.get(name, 1.0)).softmax(-1)

    def answer(self, seen: Float[Tensor, "e n k"]) -> tuple[Float[Tensor, "n k"], Float[Tensor, " n"]]:
        """The answers after some exits, and how sure they are.

        Args:
            seen: probabilities of all exits so far.
        """
        answers = seen.mean(0) if self.averaged else seen[-1]
        if self.measure == "confidence":
            return answers, answers.amax(-1)
        if self.measure == "margin":
            first, second = answers.topk(min(2, answers.shape[-1]), dim=-1).values.unbind(-1)
            return answers, first - second
        of_answer = answers.argmax(-1).expand(len(seen), -1).unsqueeze(-1)
        return answers, seen.gather(2, of_answer).squeeze(-1).amin(0)

    def replay(self, logits: Float[Tensor, "e n k"]) -> Answers:
        """What a network with these exits says, from all of their logits, the cheapest exit first."""
        seen = torch.stack([self.probabilities(name, each) for name, each in zip(self.exits, logits, strict=True)])
        found, exits = seen.new_zeros(seen.shape[1:]), torch.full(seen.shape[1:2], -1, device=seen.device)
        for place, name in enumerate(self.exits):
            answers, sure = self.answer(seen[: place + 1])
            leaves = exits < 0
            if place < len(self.exits) - 1:
                leaves &= sure >= self.thresholds.get(name, 1.0)
            found[leaves], exits[leaves] = answers[leaves], place
        return Answers(found, exits)
