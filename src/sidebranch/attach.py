"""`attach`: a backbone and a word, to a backbone with side branches."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal

from torch import nn

from sidebranch.branches import Growth, check_branches, grow
from sidebranch.branches.grow import own_sizes
from sidebranch.errors import UserError
from sidebranch.model import BranchedModel, SideBranch
from sidebranch.zoo import published


def attach(
    backbone: nn.Module,
    branches: Literal["paper", "auto"] | Sequence[SideBranch] | None = None,
    *,
    depth: int = 2,
    at: Sequence[str] = (),
    growth: Growth = Growth(),
    input_size: Sequence[int] | None = None,
) -> BranchedModel:
    """A model that trains the backbone with side branches.

    Args:
        backbone: images to logits [N, K]; it stays the module it is.
        branches: "paper", those published for this network; "auto", grown from the backbone's own tail; or your own,
            from the one nearest the top to the furthest. If left out, "paper" where there are any, else "auto", and
            "auto" with `at` or another `growth`.
        depth: how many: 2 in the papers' main experiments, 3 where a third was published (ResNet-18).
        at: for "auto": the paths of the modules to fork at, instead of `depth`.
        growth: for "auto": how the branches differ from the backbone's tail. What cannot be done is warned of.
        input_size: of an image: channels, height, width. Backbones whose sizes are constants (many transformers) grow
            branches for this size; branches of your own are checked against the papers' three rules at it (a timm model
            knows its own), and a warning says which are broken.

    Raises:
        UserError: nothing was published for this network, it has no forks, or a branch does not fit it; it says why.
    """
    if branches is not None and not isinstance(branches, str):
        net = BranchedModel(backbone, branches)
        size = input_size or _timm_size(backbone)
        if branches and size:
            _warn_of_broken_rules(net, size)
        return net
    if branches not in (None, "paper", "auto"):
        raise UserError(f"branches='{branches}' is unknown; give 'paper', 'auto' or a list of sb.SideBranch")
    wishes = bool(at) or growth != Growth()
    if branches == "paper" and wishes:
        raise UserError("the published branches are what they are; `at` and `growth` go with branches='auto'")
    layout = published(backbone) if branches != "auto" and not wishes else None
    if layout is None and branches == "paper":
        raise UserError(
            f"no side branches were published for {type(backbone).__name__}; branches='auto' grows some, or give "
            f"your own: branches=[sb.SideBranch('b1', at='layer3', body=...)]"
        )
    if layout is None:
        grown = grow(backbone, at, count=depth, growth=growth, input_size=input_size)
        for note in (note for each in grown for note in each.notes):
            warnings.warn(note, stacklevel=2)
        return BranchedModel(backbone, [each.branch for each in grown])
    if not 1 <= depth <= len(layout):
        raise UserError(f"depth is {depth}; for this network 1 to {len(layout)} side branches were published")
    like = next(backbone.parameters())
    for branch in layout[:depth]:
        branch.body.to(like.device, like.dtype)
    return BranchedModel(backbone, layout[:depth])


def _timm_size(backbone: nn.Module) -> Sequence[int] | None:
    """The input size that timm gave the model, with the channels that its first convolution takes."""
    return own_sizes(backbone)[0] if isinstance(getattr(backbone, "pretrained_cfg", None), dict) else None


def _warn_of_broken_rules(net: BranchedModel, input_size: Sequence[int]) -> None:
    broken = [rule for check in check_branches(net, input_size) for rule in check.broken]
    if broken:
        warnings.warn(f"the papers' rules of a branch (DHM supplement A) are broken: {'; '.join(broken)}", stacklevel=3)
