"""`attach`: a backbone and a word, to a backbone with side branches."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal

from torch import nn

from sidebranch.branches import check_branches
from sidebranch.errors import UserError
from sidebranch.model import BranchedModel, SideBranch
from sidebranch.zoo import published


def attach(
    backbone: nn.Module,
    branches: Literal["paper"] | Sequence[SideBranch] = "paper",
    *,
    depth: int = 2,
    input_size: Sequence[int] | None = None,
) -> BranchedModel:
    """A model that trains the backbone with side branches.

    Args:
        backbone: images to logits [N, K]; it stays the module it is.
        branches: "paper", those published for this network; or your own, from the one nearest the top to the furthest.
        depth: how many of the published branches: 2 in the papers' main experiments, 3 where a third was published
            (ResNet-18).
        input_size: of an image: channels, height, width; a timm model knows its own. With it, branches of your own are
            checked against the papers' three rules, and a warning says which are broken.

    Raises:
        UserError: nothing was published for this network, or a branch does not fit it.
    """
    if not isinstance(branches, str):
        net = BranchedModel(backbone, branches)
        size = input_size or _own_size(backbone)
        if branches and size:
            _warn_of_broken_rules(net, size)
        return net
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


def _own_size(backbone: nn.Module) -> Sequence[int] | None:
    """The input size that timm gave the model, with the channels that its first convolution takes."""
    config = getattr(backbone, "pretrained_cfg", None)
    first = next((each for each in backbone.modules() if isinstance(each, nn.Conv2d)), None)
    if not isinstance(config, dict) or "input_size" not in config or first is None:
        return None
    return (first.in_channels, *config["input_size"][1:])


def _warn_of_broken_rules(net: BranchedModel, input_size: Sequence[int]) -> None:
    broken = [rule for check in check_branches(net, input_size) for rule in check.broken]
    if broken:
        warnings.warn(f"the papers' rules of a branch (DHM supplement A) are broken: {'; '.join(broken)}", stacklevel=3)
