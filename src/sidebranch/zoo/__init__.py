"""The papers' networks, registered with timm, and the side branches published for them."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

from timm.models.resnet import ResNet
from torch import nn

from sidebranch.branches import THINNED, Kind, check_kind, pooled_head
from sidebranch.core.model import SideBranch
from sidebranch.errors import UserError, nearest
from sidebranch.zoo import cifar_resnet, densenet, imagenet_resnet, mobilenet, wide_resnet
from sidebranch.zoo.network import Plan
from sidebranch.zoo.reference import load_reference

__all__ = ["block_branch", "load_reference", "published", "published_names"]

# A family's module has `layout`, `blocks_after` and `tail_after`.
FAMILIES: dict[type[nn.Module], ModuleType] = {
    cifar_resnet.CifarResNet: cifar_resnet,
    wide_resnet.WideResNet: wide_resnet,
    densenet.CifarDenseNet: densenet,
    mobilenet.MobileNet: mobilenet,
    ResNet: imagenet_resnet,
}


def published_names(backbone: nn.Module) -> tuple[str, ...]:
    """("b1", "b2", ...), the branches published for this network; empty if none were."""
    return tuple(_plans(backbone))


def published(backbone: nn.Module, names: Sequence[str] = (), kind: Kind = "blocks") -> list[SideBranch] | None:
    """Newly initialised branches at the forks published for this network, b1 first; None if none were published.

    Args:
        backbone: any network.
        names: of the branches to build; all if empty.
        kind: "blocks", as published; or another, as `block_branch` and `pooled_head` make them.

    Raises:
        UserError: no such branch was published, or there is no such kind.
    """
    check_kind(kind)
    plans = _plans(backbone)
    if not plans:
        return None
    for name in names:
        if name not in plans:
            raise UserError(f"no branch '{name}' was published for this network; {nearest(name, plans)}")
    return [_built(backbone, name, plan, kind) for name, plan in plans.items() if not names or name in names]


def block_branch(backbone: nn.Module, name: str, at: str, kind: Kind) -> SideBranch:
    """A branch of the network's own blocks, thinned: "narrow blocks" and "shallow blocks" of DKS's Table 3.

    Differs: the paper does not say how narrow or shallow. Here narrow is main's tail at half its width, shallow is one
    block a stage, and shallow_wide one block a stage at twice main's width.

    Args:
        backbone: one of the papers' networks.
        name: of the branch.
        at: any of the network's stages but the last (a transition, in DenseNets).
        kind: "narrow", "shallow" or "shallow_wide".
    """
    family = _family(backbone)
    if family is None or not _plans(backbone):
        raise UserError(f"block_branch builds on the papers' networks; {type(backbone).__name__} is none of them")
    if kind not in THINNED:
        raise UserError(f"the kind is '{kind}'; choose from: {', '.join(THINNED)}")
    width, is_shallow = THINNED[kind]
    blocks = family.blocks_after(backbone, at)
    return SideBranch(name, at, family.tail_after(backbone, at, width, (1,) * len(blocks) if is_shallow else blocks))


def _built(backbone: nn.Module, name: str, plan: Plan, kind: Kind) -> SideBranch:
    family = _family(backbone)
    assert family is not None
    if kind == "blocks":
        return SideBranch(name, plan.at, family.tail_after(backbone, plan.at, plan.width, plan.blocks))
    if kind in THINNED:
        return block_branch(backbone, name, plan.at, kind)
    channels = {stage["module"]: stage["num_chs"] for stage in backbone.feature_info}  # pyright: ignore[reportGeneralTypeIssues]
    return pooled_head(name, plan.at, channels[plan.at], backbone.num_classes, convolution=kind == "ap_conv_2fc")  # pyright: ignore[reportArgumentType]


def _plans(backbone: nn.Module) -> dict[str, Plan]:
    family = _family(backbone)
    plans = None if family is None else family.layout(backbone)
    return {f"b{place}": plan for place, plan in enumerate(plans or (), 1)}


def _family(backbone: nn.Module) -> ModuleType | None:
    return next((module for family, module in FAMILIES.items() if isinstance(backbone, family)), None)
