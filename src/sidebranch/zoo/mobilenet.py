"""MobileNet-v1 (Howard et al. 2017) for CIFAR and for re-identification, and side branches for them.

The re-ID layout and its branches are those of the DHM supplement, Table 5. Differs: the table's strides on the last
1024-channel layer and the 256 channels of b2's first layer are misprints; rule 2 (as many down-samplings as main) and
the layer that follows decide. The CIFAR network (DKS Table 1, after Deep Mutual Learning) has a stride-1 stem; its
branches are unpublished, so the re-ID branches, which follow the three rules, are used for it too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from sidebranch.branches import Tail
from sidebranch.zoo.network import Network, Plan, config_of, fresh_tail, stage_after

STAGES = ("layer1", "layer2", "layer3", "layer4", "layer5")
WIDTHS = (64, 128, 256, 512, 1024)
LAYERS = (1, 2, 2, 6, 2)
STEM_STRIDES = {"cifar_mobilenet": 1, "reid_mobilenet": 2}

# timm looks for this name in the module of a registered model.
default_cfgs = generate_default_cfgs(
    {"cifar_mobilenet": config_of("conv"), "reid_mobilenet": {**config_of("conv"), "input_size": (3, 256, 128)}}
)


def separable(in_channels: int, channels: int, stride: int = 1) -> nn.Sequential:
    """Depthwise 3x3-BN-ReLU, pointwise 1x1-BN-ReLU: [N, C, H, W] to [N, C', H / stride, W / stride]."""
    return nn.Sequential(
        nn.Conv2d(in_channels, in_channels, 3, stride, 1, groups=in_channels, bias=False),
        nn.BatchNorm2d(in_channels),
        nn.ReLU(),
        nn.Conv2d(in_channels, channels, 1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
    )


def stage(layers: int, in_channels: int, channels: int, stride: int = 2) -> nn.Sequential:
    """Separable convolutions of one width; the first changes width and resolution."""
    return nn.Sequential(
        separable(in_channels, channels, stride), *(separable(channels, channels) for _ in range(layers - 1))
    )


class MobileNet(Network):
    """MobileNet-v1 at full width.

    Args:
        stem_stride: 1 for images of 32x32, 2 for photographs.
        num_classes: K.
        in_chans: channels of the images.
    """

    def __init__(self, stem_stride: int, num_classes: int = 10, in_chans: int = 3) -> None:
        stages: dict[str, nn.Module] = {
            "conv": nn.Conv2d(in_chans, 32, 3, stem_stride, 1, bias=False),
            "norm": nn.BatchNorm2d(32),
            "relu": nn.ReLU(),
        }
        channels = 32
        for place, name in enumerate(STAGES):
            stages[name] = stage(LAYERS[place], channels, WIDTHS[place], 1 if place == 0 else 2)
            channels = WIDTHS[place]
        super().__init__(stages, channels, num_classes, forks=dict(zip(STAGES, WIDTHS, strict=True)))


def blocks_after(backbone: MobileNet, at: str) -> tuple[int, ...]:
    """Main's separable convolutions in each stage after a fork."""
    return LAYERS[stage_after(at, STAGES) :]


def tail_after(backbone: MobileNet, at: str, width: float, blocks: Sequence[int]) -> Tail:
    """Stages of main's kind after a fork, `width` times as wide, with these numbers of separable convolutions."""
    start = stage_after(at, STAGES)
    stages, channels = {}, WIDTHS[start - 1]
    for name, planes, count in zip(STAGES[start:], WIDTHS[start:], blocks, strict=True):
        stages[name] = stage(count, channels, int(planes * width))
        channels = int(planes * width)
    return fresh_tail(stages, channels, backbone.num_classes)


def layout(backbone: MobileNet) -> list[Plan]:
    """b1 after the 512-channel layers, twice as wide; b2 after the 256-channel layers, thinned in depth."""
    return [Plan("layer4", 2, (2,)), Plan("layer3", 1, (4, 2))]


def _create(name: str, pretrained: bool, **options: Any) -> MobileNet:
    return build_model_with_cfg(MobileNet, name, pretrained, stem_stride=STEM_STRIDES[name], **options)


@register_model
def cifar_mobilenet(pretrained: bool = False, **options: Any) -> MobileNet:
    return _create("cifar_mobilenet", pretrained, **options)


@register_model
def reid_mobilenet(pretrained: bool = False, **options: Any) -> MobileNet:
    return _create("reid_mobilenet", pretrained, **options)
