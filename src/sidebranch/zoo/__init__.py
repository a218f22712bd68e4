"""The papers' networks, registered with timm, and the side branches published for them."""

from __future__ import annotations

from types import ModuleType
from typing import Literal

from timm.models.resnet import ResNet
from torch import nn

from sidebranch.core.model import SideBranch
from sidebranch.errors import UserError
from sidebranch.zoo import cifar_resnet, densenet, imagenet_resnet, mobilenet, wide_resnet
from sidebranch.zoo.reference import load_reference

__all__ = ["block_branch", "load_reference", "published"]

# A family's module has `side_branches`, `blocks_after` and `tail_after`.
FAMILIES: dict[type[nn.Module], ModuleType] = {
    cifar_resnet.CifarResNet: cifar_resnet,
    wide_resnet.WideResNet: wide_resnet,
    densenet.CifarDenseNet: densenet,
    mobilenet.MobileNet: mobilenet,
    ResNet: imagenet_resnet,
}


def published(backbone: nn.Module) -> list[SideBranch] | None:
    """Newly initialised branches as published for this network, b1 first; None if none were published."""
    family = _family(backbone)
    return None if family is None else family.side_branches(backbone)


def block_branch(backbone: nn.Module, name: str, at: str, kind: Literal["narrow", "shallow"]) -> SideBranch:
    """A branch of the network's own blocks, thinned: "narrow blocks" and "shallow blocks" of DKS's Table 3.

    Differs: the paper does not say how narrow or shallow. Here narrow is main's tail at half its width, shallow is one
    block a stage.

    Args:
        backbone: one of the papers' networks.
        name: of the branch.
        at: any of the network's stages but the last (a transition, in DenseNets).
        kind: "narrow" or "shallow".
    """
    family = _family(backbone)
    if family is None or family.side_branches(backbone) is None:
        raise UserError(f"block_branch builds on the papers' networks; {type(backbone).__name__} is none of them")
    if kind not in ("narrow", "shallow"):
        raise UserError(f"the kind is '{kind}'; choose from: narrow, shallow")
    blocks = family.blocks_after(backbone, at)
    width, blocks = (0.5, blocks) if kind == "narrow" else (1, (1,) * len(blocks))
    return SideBranch(name, at, family.tail_after(backbone, at, width, blocks))


def _family(backbone: nn.Module) -> ModuleType | None:
    return next((module for family, module in FAMILIES.items() if isinstance(backbone, family)), None)
