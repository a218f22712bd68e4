"""Reproducible label corruption, as in the papers' tests of robustness to noisy labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from sidebranch.errors import UserError
from sidebranch.seeding import uniform

if TYPE_CHECKING:
    from jaxtyping import Int


def corrupt_labels(
    labels: Int[Tensor, " n"], classes: int, rate: float, mode: Literal["random", "wrong"], seed: int
) -> Int[Tensor, " n"]:
    """A copy in which `round(rate * n)` labels are replaced.

    Args:
        labels: class indices.
        classes: K.
        rate: share of the labels to replace, in [0, 1].
        mode: "random", any of the K labels, including the right one (DHM supplement E); "wrong", one of the K - 1
            others (DKS section 4.3).
        seed: the same seed makes the same replacements.
    """
    if not 0 <= rate <= 1:
        raise UserError(f"the corruption rate is {rate}; it must lie in [0, 1]")
    if mode == "wrong" and classes < 2:
        raise UserError("corrupting to a wrong label needs at least 2 classes")
    index = torch.arange(len(labels))
    chosen = uniform(index, "corrupt which", seed).argsort(stable=True)[: round(rate * len(labels))]
    draw = uniform(chosen, "corrupt to", seed)
    corrupted = labels.clone()
    if mode == "random":
        corrupted[chosen] = (draw * classes).long()
    else:
        corrupted[chosen] = (labels[chosen] + 1 + (draw * (classes - 1)).long()) % classes
    return corrupted
