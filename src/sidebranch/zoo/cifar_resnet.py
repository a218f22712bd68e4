"""CIFAR ResNets of depth 6n + 2 (He et al. 2016, section 4.2) and the papers' side branches (DHM supplement, Table 1).

Post-activation basic blocks in three stages of 16, 32 and 64 channels. A shortcut that changes shape has no parameters:
2x2 average pooling, then zero channels. Module names are those of the papers' public checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from sidebranch.branches import Tail
from sidebranch.zoo.network import Network, Plan, config_of, fresh_tail, stage_after

if TYPE_CHECKING:
    from jaxtyping import Float

STAGES = ("layer1", "layer2", "layer3")
WIDTHS = (16, 32, 64)
DEPTHS = (8, 14, 20, 32, 44, 56, 110, 1202)

# timm looks for this name in the module of a registered model.
default_cfgs = generate_default_cfgs({f"cifar_resnet{depth}": config_of("conv1") for depth in DEPTHS})


class BasicBlock(nn.Module):
    """conv3x3-BN-ReLU-conv3x3-BN, plus the shortcut, then ReLU: [N, C, H, W] to [N, C', H / stride, W / stride]."""

    def __init__(self, in_channels: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride = stride

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h2 w2"]:
        residual = F.relu(self.bn1(self.conv1(x)))
        residual = self.bn2(self.conv2(residual))
        shortcut = F.avg_pool2d(x, self.stride, ceil_mode=True) if self.stride > 1 else x
        if shortcut.shape[1] < residual.shape[1]:
            shortcut = F.pad(shortcut, (0, 0, 0, 0, 0, residual.shape[1] - shortcut.shape[1]))
        return F.relu(residual + shortcut)


def stage(blocks: int, in_channels: int, channels: int, stride: int) -> nn.Sequential:
    """Blocks of one width; the first changes width and resolution."""
    first = BasicBlock(in_channels, channels, stride)
    return nn.Sequential(first, *(BasicBlock(channels, channels) for _ in range(blocks - 1)))


class CifarResNet(Network):
    """ResNet for 32x32 images (any size that three stages can halve twice).

    Args:
        blocks: n, per stage; the depth is 6n + 2.
        num_classes: K.
        in_chans: channels of the images.
    """

    def __init__(self, blocks: int, num_classes: int = 10, in_chans: int = 3) -> None:
        first, second, third = WIDTHS
        stages = {
            "conv1": nn.Conv2d(in_chans, first, 3, 1, 1, bias=False),
            "bn1": nn.BatchNorm2d(first),
            "relu": nn.ReLU(),
            "layer1": stage(blocks, first, first, 1),
            "layer2": stage(blocks, first, second, 2),
            "layer3": stage(blocks, second, third, 2),
        }
        super().__init__(stages, third, num_classes, forks=dict(zip(STAGES, WIDTHS, strict=True)))
        self.blocks = blocks


def blocks_after(backbone: CifarResNet, at: str) -> tuple[int, ...]:
    """Main's blocks in each stage after a fork."""
    return (backbone.blocks,) * (3 - stage_after(at, STAGES))


def tail_after(backbone: CifarResNet, at: str, width: float, blocks: Sequence[int]) -> Tail:
    """Stages of main's kind after a fork, `width` times as wide, with these numbers of blocks."""
    start = stage_after(at, STAGES)
    stages, channels = {}, WIDTHS[start - 1]
    for name, planes, count in zip(STAGES[start:], WIDTHS[start:], blocks, strict=True):
        stages[name] = stage(count, channels, int(planes * width), 2)
        channels = int(planes * width)
    return fresh_tail(stages, channels, backbone.num_classes)


def layout(backbone: CifarResNet) -> list[Plan]:
    """b1 after stage 2, twice as wide; b2 after stage 1, thinned in depth.

    Published for depths 32, 110 and 1202. The others follow ResNet-32: the first stage of b2 at full depth, the last at
    half, rounded up.
    """
    n = backbone.blocks
    far = (n // 2 if n >= 18 else n, (n + 1) // 2)
    return [Plan("layer2", 2, (n,)), Plan("layer1", 1, far)]


def _create(depth: int, pretrained: bool, **options: Any) -> CifarResNet:
    return build_model_with_cfg(CifarResNet, f"cifar_resnet{depth}", pretrained, blocks=(depth - 2) // 6, **options)


@register_model
def cifar_resnet8(pretrained: bool = False, **options: Any) -> CifarResNet:
    return _create(8, pretrained, **options)


@register_model
def cifar_resnet14(pretrained: bool = False, **options: Any) -> CifarResNet:
    return _create(14, pretrained, **options)


@register_model
def cifar_resnet20(pretrained: bool = False, **options: Any) -> CifarResNet:
    return _create(20, pretrained, **options)


@register_model
def cifar_resnet32(pretrained: bool = False, **options: Any) -> CifarResNet:
    return _create(32, pretrained, **options)


@register_model
def cifar_resnet44(pretrained: bool = False, **options: Any) -> CifarResNet:
    return _create(44, pretrained, **options)


@register_model
def cifar_resnet56(pretrained: bool = False, **options: Any) -> CifarResNet:
    return _create(56, pretrained, **options)


@register_model
def cifar_resnet110(pretrained: bool = False, **options: Any) -> CifarResNet:
    return _create(110, pretrained, **options)


@register_model
def cifar_resnet1202(pretrained: bool = False, **options: Any) -> CifarResNet:
    return _create(1202, pretrained, **options)
