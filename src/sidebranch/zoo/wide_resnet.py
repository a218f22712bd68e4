"""Wide residual networks (Zagoruyko & Komodakis 2016) and the papers' side branches (DHM supplement, Table 3).

Pre-activation blocks in three stages of 16k, 32k and 64k channels after a stem of 16 channels without batch
normalisation. Module names are those of the papers' public checkpoints.
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

STEM = 16
STAGES = ("layer1", "layer2", "layer3")
SIZES = {"wrn_16_2": (2, 2), "wrn_16_8": (2, 8), "wrn_28_4": (4, 4), "wrn_28_10": (4, 10)}

# timm looks for this name in the module of a registered model.
default_cfgs = generate_default_cfgs({name: config_of("conv") for name in SIZES})


class WideBlock(nn.Module):
    """BN-ReLU-conv3x3-BN-ReLU-dropout-conv3x3, plus the shortcut: [N, C, H, W] to [N, C', H / stride, W / stride].

    Where the width changes, BN-ReLU precedes the 1x1 shortcut as well.
    """

    def __init__(self, in_channels: int, channels: int, stride: int = 1, drop_rate: float = 0.0) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.dropout = nn.Dropout(drop_rate)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        changes = in_channels != channels or stride != 1
        self.shortcut = nn.Conv2d(in_channels, channels, 1, stride, bias=False) if changes else None

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h2 w2"]:
        active = F.relu(self.bn1(x))
        residual = self.conv2(self.dropout(F.relu(self.bn2(self.conv1(active)))))
        return residual + (x if self.shortcut is None else self.shortcut(active))


def stage(blocks: int, in_channels: int, channels: int, stride: int, drop_rate: float) -> nn.Sequential:
    """Blocks of one width; the first changes width and resolution."""
    first = WideBlock(in_channels, channels, stride, drop_rate)
    return nn.Sequential(first, *(WideBlock(channels, channels, 1, drop_rate) for _ in range(blocks - 1)))


class WideResNet(Network):
    """WRN-(6n + 4)-k for 32x32 images.

    Args:
        blocks: n, per stage.
        widen: k.
        num_classes: K.
        in_chans: channels of the images.
        drop_rate: of the dropout between a block's convolutions; 0.3 in the papers' runs with dropout.
    """

    def __init__(
        self, blocks: int, widen: int, num_classes: int = 10, in_chans: int = 3, drop_rate: float = 0.0
    ) -> None:
        first, second, third = (STEM * widen, 2 * STEM * widen, 4 * STEM * widen)
        stages = {
            "conv": nn.Conv2d(in_chans, STEM, 3, 1, 1, bias=False),
            "layer1": stage(blocks, STEM, first, 1, drop_rate),
            "layer2": stage(blocks, first, second, 2, drop_rate),
            "layer3": stage(blocks, second, third, 2, drop_rate),
        }
        forks = {"layer1": first, "layer2": second, "layer3": third}
        super().__init__(stages, third, num_classes, forks=forks, norm=True)
        self.blocks, self.widths, self.drop_rate = blocks, (first, second, third), drop_rate


def blocks_after(backbone: WideResNet, at: str) -> tuple[int, ...]:
    """Main's blocks in each stage after a fork."""
    return (backbone.blocks,) * (3 - stage_after(at, STAGES))


def tail_after(backbone: WideResNet, at: str, width: float, blocks: Sequence[int]) -> Tail:
    """Stages of main's kind after a fork, `width` times as wide, with these numbers of blocks; dropout as in main."""
    start = stage_after(at, STAGES)
    stages, channels = {}, backbone.widths[start - 1]
    for name, planes, count in zip(STAGES[start:], backbone.widths[start:], blocks, strict=True):
        stages[name] = stage(count, channels, int(planes * width), 2, backbone.drop_rate)
        channels = int(planes * width)
    return fresh_tail(stages, channels, backbone.num_classes, norm=True)


def layout(backbone: WideResNet) -> list[Plan]:
    """b1 after stage 2, twice as wide; b2 after stage 1, its last stage half as deep."""
    n = backbone.blocks
    return [Plan("layer2", 2, (n,)), Plan("layer1", 1, (n, n // 2))]


def _create(name: str, pretrained: bool, **options: Any) -> WideResNet:
    blocks, widen = SIZES[name]
    return build_model_with_cfg(WideResNet, name, pretrained, blocks=blocks, widen=widen, **options)


@register_model
def wrn_16_2(pretrained: bool = False, **options: Any) -> WideResNet:
    return _create("wrn_16_2", pretrained, **options)


@register_model
def wrn_16_8(pretrained: bool = False, **options: Any) -> WideResNet:
    return _create("wrn_16_8", pretrained, **options)


@register_model
def wrn_28_4(pretrained: bool = False, **options: Any) -> WideResNet:
    return _create("wrn_28_4", pretrained, **options)


@register_model
def wrn_28_10(pretrained: bool = False, **options: Any) -> WideResNet:
    return _create("wrn_28_10", pretrained, **options)
