"""`attach`: from a backbone and a choice of branches to a backbone with side branches."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal

from torch import nn

from sidebranch.branches import Growth, Kind, check_branches, grow
from sidebranch.branches.grow import own_sizes
from sidebranch.core.model import BranchedModel, SideBranch
from sidebranch.errors import UserError
from sidebranch.zoo import published, published_names


def attach(
    backbone: nn.Module,
    branches: Literal["paper", "auto"] | Sequence[SideBranch] | None = None,
    *,
    count: int = 2,
    use: Sequence[str] = (),
    kind: Kind = "blocks",
    at: Sequence[str] = (),
    growth: Growth = Growth(),
    input_size: Sequence[int] | None = None,
) -> BranchedModel:
    """A model that trains the backbone with side branches.

    Args:
        backbone: images to logits [N, K]; it stays the same module.
        branches: "paper", those published for this network; "auto", grown from the backbone's own tail; or your own,
            from the nearest to the top to the furthest. If left out: "auto" with `at` or another `growth`; else "paper"
            if branches were published, otherwise "auto".
        count: number of branches: 2 in the papers' main experiments, 3 where a third was published (ResNet-18).
        use: names of the branches to make, such as ["b1", "b3"]; then `count` is ignored. What is left out is not made.
        kind: "blocks" of the backbone; "narrow", "shallow" or "shallow_wide" ones, see `block_branch`; or "ap_2fc" or
            "ap_conv_2fc", see `pooled_head` (Sun et al. 2019, Table 3).
        at: for "auto": paths of the modules to fork at, instead of `count`.
        growth: for "auto": how the branches differ from the backbone's tail. A warning names what cannot be done.
        input_size: of an image: channels, height, width. Backbones with constant sizes (many transformers) grow
            branches for this size. Your own branches are compared with the papers' three rules at this size (timm
            models know theirs); a warning names the rules that are broken.

    Raises:
        UserError: nothing was published for this network, it has no forks, or a branch does not fit it.
    """
    if isinstance(backbone, BranchedModel):
        raise UserError("this network has side branches; attach to its backbone, or release() it first")
    if not isinstance(backbone, nn.Module):
        raise UserError(f"a backbone is a module, such as timm.create_model('resnet18'), not {backbone!r}")
    if isinstance(backbone, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise UserError(f"attach to the plain network first; then wrap what comes back in {type(backbone).__name__}")
    if getattr(backbone, "num_classes", None) == 0:
        raise UserError("this backbone has no classifier (num_classes is 0); create it with your number of classes")
    if branches is not None and not isinstance(branches, str):
        if not isinstance(branches, Sequence) or not all(isinstance(each, SideBranch) for each in branches):
            raise UserError("your own branches are a list: branches=[sb.SideBranch('b1', at='layer3', body=...)]")
        if use or kind != "blocks":
            raise UserError("your own branches are all made as they are: `use` and `kind` are for 'paper' and 'auto'")
        net = BranchedModel(backbone, branches)
        if branches:
            _warn_of_broken_rules(net, input_size)
        return net
    if branches not in (None, "paper", "auto"):
        raise UserError(f"branches='{branches}' is unknown; give 'paper', 'auto' or a list of sb.SideBranch")
    is_custom = bool(at) or growth != Growth()
    if branches == "paper" and is_custom:
        raise UserError("published branches cannot be modified; `at` and `growth` need branches='auto'")
    if isinstance(use, str):
        raise UserError(f"use is '{use}'; give a list of names, such as ['{use}']")
    names = published_names(backbone) if branches != "auto" and not is_custom else ()
    if not names and branches == "paper":
        raise UserError(
            f"no side branches were published for {type(backbone).__name__}; branches='auto' grows some, or give "
            f"your own: branches=[sb.SideBranch('b1', at='layer3', body=...)]"
        )
    if not names:
        grown = grow(backbone, at, count=count, use=use, kind=kind, growth=growth, input_size=input_size)
        for note in (note for each in grown for note in each.notes):
            warnings.warn(note, stacklevel=2)
        return BranchedModel(backbone, [each.branch for each in grown])
    if not use and not 1 <= count <= len(names):
        raise UserError(f"count is {count}; for this network 1 to {len(names)} side branches were published")
    layout = published(backbone, use or names[:count], kind)
    assert layout is not None
    like = next(backbone.parameters())
    for branch in layout:
        branch.body.to(like.device, like.dtype)
    return BranchedModel(backbone, layout)


def _warn_of_broken_rules(net: BranchedModel, input_size: Sequence[int] | None) -> None:
    """The rules are about convolutional tails; branches that they do not apply to get no advice."""
    try:
        size = input_size or (own_sizes(net.backbone)[0] if _is_timm_model(net.backbone) else None)
        broken = [rule for check in check_branches(net, size) for rule in check.broken] if size else []
    except Exception:  # the network's own code ran, on a blank image
        return
    if broken:
        text = "it trains, but the papers' rules of a branch (DHM supplement A) are broken"
        warnings.warn(f"{text}: {'; '.join(broken)}", stacklevel=3)


def _is_timm_model(backbone: nn.Module) -> bool:
    return isinstance(getattr(backbone, "pretrained_cfg", None), dict)
