"""The papers' networks, registered with timm, and the side branches published for them."""

from __future__ import annotations

from timm.models.resnet import ResNet
from torch import nn

from sidebranch.model import SideBranch
from sidebranch.zoo import cifar_resnet, densenet, imagenet_resnet, mobilenet, wide_resnet
from sidebranch.zoo.reference import load_reference

__all__ = ["load_reference", "published"]

FAMILIES = {
    cifar_resnet.CifarResNet: cifar_resnet.side_branches,
    wide_resnet.WideResNet: wide_resnet.side_branches,
    densenet.CifarDenseNet: densenet.side_branches,
    mobilenet.MobileNet: mobilenet.side_branches,
    ResNet: imagenet_resnet.side_branches,
}


def published(backbone: nn.Module) -> list[SideBranch] | None:
    """Freshly initialised branches as published for this network, b1 first; None where none were published."""
    for family, side_branches in FAMILIES.items():
        if isinstance(backbone, family):
            return side_branches(backbone)
    return None
