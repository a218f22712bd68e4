"""CIFAR DenseNets (Huang et al. 2017) and the papers' side branches (DHM supplement, Table 2).

Three dense blocks of layers that append k channels each, with transitions between them that halve the resolution.
Module names are those of the papers' public checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from sidebranch.branches import Tail
from sidebranch.zoo.network import Network, Plan, config_of, fresh_tail, stage_after

if TYPE_CHECKING:
    from jaxtyping import Float

GROWTH = 12
FORKS = ("transition1", "transition2", "layer3")


@dataclass(frozen=True)
class Layout:
    """Layers of main's three blocks, of b2's two and of b1's one; whether layers have bottlenecks (BC)."""

    main: int
    b2: tuple[int, int]
    b1: int
    bottleneck: bool = False


LAYOUTS = {
    "densenet_40_12": Layout(12, (12, 6), 12),
    "densenet_100_12": Layout(32, (16, 16), 32),
    "densenet_bc_100_12": Layout(16, (16, 16), 32, bottleneck=True),
}

# timm looks for this name in the module of a registered model.
default_cfgs = generate_default_cfgs({name: config_of("conv1") for name in LAYOUTS})


class DenseLayer(nn.Module):
    """BN-ReLU-conv3x3, its k channels appended: [N, C, H, W] to [N, C + k, H, W]."""

    def __init__(self, in_channels: int, growth: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(in_channels)
        self.conv = nn.Conv2d(in_channels, growth, 3, 1, 1, bias=False)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h w"]:
        return torch.cat([x, self.conv(F.relu(self.bn(x)))], 1)


class BottleneckLayer(nn.Module):
    """BN-ReLU-conv1x1(4k)-BN-ReLU-conv3x3(k), its k channels appended: [N, C, H, W] to [N, C + k, H, W]."""

    def __init__(self, in_channels: int, growth: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, 4 * growth, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, 1, 1, bias=False)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h w"]:
        new = self.conv1(F.relu(self.bn1(x)))
        return torch.cat([x, self.conv2(F.relu(self.bn2(new)))], 1)


class Transition(nn.Module):
    """BN-ReLU-conv1x1, then 2x2 average pooling: [N, C, H, W] to [N, C', H / 2, W / 2]."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(in_channels)
        self.conv = nn.Conv2d(in_channels, channels, 1, bias=False)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h2 w2"]:
        return F.avg_pool2d(self.conv(F.relu(self.bn(x))), 2)


class _Chain:
    """Builds dense blocks and transitions in sequence, and counts the channels."""

    def __init__(self, channels: int, growth: int, bottleneck: bool) -> None:
        self.channels, self.growth = channels, growth
        self.layer = BottleneckLayer if bottleneck else DenseLayer
        self.compression = 0.5 if bottleneck else 1.0

    def block(self, layers: int) -> nn.Sequential:
        start = self.channels
        self.channels += layers * self.growth
        return nn.Sequential(*(self.layer(start + i * self.growth, self.growth) for i in range(layers)))

    def transition(self) -> Transition:
        before, self.channels = self.channels, int(self.channels * self.compression)
        return Transition(before, self.channels)


class CifarDenseNet(Network):
    """DenseNet for 32x32 images.

    Args:
        layout: layers per block.
        num_classes: K.
        in_chans: channels of the images.
    """

    def __init__(self, layout: Layout, num_classes: int = 10, in_chans: int = 3) -> None:
        chain = _Chain(2 * GROWTH if layout.bottleneck else 16, GROWTH, layout.bottleneck)
        stages: dict[str, nn.Module] = {"conv1": nn.Conv2d(in_chans, chain.channels, 3, 1, 1, bias=False)}
        forks: dict[str, int] = {}
        for place in (1, 2, 3):
            stages[f"layer{place}"] = chain.block(layout.main)
            forks[f"layer{place}"] = chain.channels
            if place < 3:
                stages[f"transition{place}"] = chain.transition()
        super().__init__(stages, chain.channels, num_classes, forks=forks, norm=True)
        self.layout = layout


def blocks_after(backbone: CifarDenseNet, at: str) -> tuple[int, ...]:
    """Main's layers in each dense block after a fork."""
    return (backbone.layout.main,) * (3 - stage_after(at, FORKS))


def tail_after(backbone: CifarDenseNet, at: str, width: float, blocks: Sequence[int]) -> Tail:
    """Dense blocks of main's kind after a fork, with `width` times the growth and these numbers of layers."""
    place = stage_after(at, FORKS)
    transition = cast(Transition, backbone.get_submodule(at))
    chain = _Chain(transition.conv.out_channels, int(GROWTH * width), backbone.layout.bottleneck)
    stages: dict[str, nn.Module] = {}
    for number, layers in enumerate(blocks, place + 1):
        stages[f"layer{number}"] = chain.block(layers)
        if number < 3:
            stages[f"transition{number}"] = chain.transition()
    return fresh_tail(stages, chain.channels, backbone.num_classes, norm=True)


def layout(backbone: CifarDenseNet) -> list[Plan]:
    """b1 after transition 2, its layers three times as wide; b2 after transition 1, thinned in depth."""
    return [Plan("transition2", 3, (backbone.layout.b1,)), Plan("transition1", 1, backbone.layout.b2)]


def _create(name: str, pretrained: bool, **options: Any) -> CifarDenseNet:
    return build_model_with_cfg(CifarDenseNet, name, pretrained, layout=LAYOUTS[name], **options)


@register_model
def densenet_40_12(pretrained: bool = False, **options: Any) -> CifarDenseNet:
    return _create("densenet_40_12", pretrained, **options)


@register_model
def densenet_100_12(pretrained: bool = False, **options: Any) -> CifarDenseNet:
    return _create("densenet_100_12", pretrained, **options)


@register_model
def densenet_bc_100_12(pretrained: bool = False, **options: Any) -> CifarDenseNet:
    return _create("densenet_bc_100_12", pretrained, **options)
