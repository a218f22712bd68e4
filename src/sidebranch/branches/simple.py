"""Kinds of branches, and the simple heads that DKS compares its branches with (Sun et al. 2019, Table 3).

They are cheap and, in that table, help little or harm. Differs: the sizes of the fully connected heads are not in the
paper; they are GoogLeNet's (Szegedy et al. 2015), whose auxiliary classifiers these are.
"""

from __future__ import annotations

from typing import Literal, get_args

from torch import nn

from sidebranch.core.model import SideBranch
from sidebranch.errors import UserError

Kind = Literal["blocks", "narrow", "shallow", "shallow_wide", "ap_2fc", "ap_conv_2fc"]
# Kind to the width, as a multiple of main's, and whether a stage has one block only.
THINNED: dict[str, tuple[float, bool]] = {"narrow": (0.5, False), "shallow": (1, True), "shallow_wide": (2, True)}


def check_kind(kind: str) -> None:
    """Raises UserError if there are no branches of this kind."""
    if kind not in get_args(Kind):
        raise UserError(f"the kind of branches is '{kind}'; choose from: {', '.join(get_args(Kind))}")


def pooled_head(
    name: str,
    at: str,
    channels: int,
    num_classes: int,
    *,
    convolution: bool = False,
    pooled_size: int = 4,
    conv_channels: int = 128,
    hidden: int = 1024,
) -> SideBranch:
    """AP+2FC, or with `convolution` AP+1Conv+2FC: average pooling, a 1x1 convolution if asked, two linear layers.

    Args:
        name: of the branch.
        at: the path of the module where it forks, feature maps [N, C, H, W].
        channels: C.
        num_classes: K.
        convolution: BN and ReLU follow it.
        pooled_size: side to which the features are pooled.
        conv_channels: of the convolution.
        hidden: features between the linear layers.
    """
    if min(channels, num_classes, pooled_size, conv_channels, hidden) < 1:
        raise UserError(f"'{name}': channels, num_classes, pooled_size, conv_channels and hidden must be at least 1")
    reduce: list[nn.Module] = []
    width = channels
    if convolution:
        width = conv_channels
        reduce = [nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    body = nn.Sequential(
        nn.AdaptiveAvgPool2d(pooled_size),
        *reduce,
        nn.Flatten(),
        nn.Linear(width * pooled_size**2, hidden),
        nn.ReLU(),
        nn.Linear(hidden, num_classes),
    )
    return SideBranch(name, at, body)
