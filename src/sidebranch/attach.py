"""`attach`: a backbone and a word, to a backbone with side branches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import nn

from sidebranch.errors import UserError
from sidebranch.model import BranchedModel, SideBranch
from sidebranch.zoo import published


def attach(
    backbone: nn.Module, branches: Literal["paper"] | Sequence[SideBranch] = "paper", *, depth: int = 2
) -> BranchedModel:
    """A model that trains the backbone with side branches.

    Args:
        backbone: images to logits [N, K]; it stays the module it is.
        branches: "paper", those published for this network; or your own, from the one nearest the top to the furthest.
        depth: how many of the published branches: 2 in the papers' main experiments, 3 where a third was published
            (ResNet-18).

    Raises:
        UserError: nothing was published for this network, or a branch does not fit it.
    """
    if not isinstance(branches, str):
        return BranchedModel(backbone, branches)
    if branches != "paper":
        raise UserError(f"branches='{branches}' is unknown; give 'paper' or a list of sb.SideBranch")
    layout = published(backbone)
    if layout is None:
        raise UserError(
            f"no side branches were published for {type(backbone).__name__}; "
            f"give your own: branches=[sb.SideBranch('b1', at='layer3', body=...)]"
        )
    if not 1 <= depth <= len(layout):
        raise UserError(f"depth is {depth}; for this network 1 to {len(layout)} side branches were published")
    like = next(backbone.parameters())
    for branch in layout[:depth]:
        branch.body.to(like.device, like.dtype)
    return BranchedModel(backbone, layout[:depth])
