"""Teachers made of a network's own classifiers, one more row each. In: their logits. Out: logits that teach.

The mean of the classifiers' probabilities is no such row: as the mimicry is linear in its teacher, it is DHM's array
divided by C. A mean of logits is not, nor is a choice among the classifiers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

Made = Callable[[Sequence[Tensor], Tensor], Tensor]  # logits [n, K] each and targets, to logits [n, K]


def ensemble(logits: Sequence[Tensor], targets: Tensor) -> Tensor:
    """The mean of the classifiers' logits [n, K]: ONE's gated sum (Lan et al. 2018) with even gates."""
    return torch.stack([each.detach() for each in logits]).mean(0)


def best(logits: Sequence[Tensor], targets: Tensor) -> Tensor:
    """The logits [n, K] of the classifier with the lowest cross-entropy to the labels of this batch."""
    stacked = torch.stack([each.detach() for each in logits])
    losses = torch.stack([functional.cross_entropy(each.float(), targets) for each in stacked])
    return stacked.gather(0, losses.argmin().expand(1, *stacked.shape[1:]))[0]


OWN: dict[str, Made] = {"ensemble": ensemble, "best": best}
