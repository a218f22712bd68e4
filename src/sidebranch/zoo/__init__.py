"""The papers' networks, registered with timm, and the side branches published for them."""

from __future__ import annotations

from torch import nn

from sidebranch.model import SideBranch
from sidebranch.zoo import cifar_resnet

__all__ = ["cifar_resnet", "published"]


def published(backbone: nn.Module) -> list[SideBranch] | None:
    """Freshly initialised branches in the layout published for this network; None where none was published."""
    if isinstance(backbone, cifar_resnet.CifarResNet):
        return cifar_resnet.side_branches(backbone)
    return None
