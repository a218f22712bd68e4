"""The papers' side branches for ImageNet ResNets (DHM supplement, Table 4). The networks are timm's own modules."""

from __future__ import annotations

from typing import cast

from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

from sidebranch.branches import Tail
from sidebranch.model import SideBranch

Block = BasicBlock | Bottleneck

# (block, blocks a stage) to the blocks a stage of b1, b2 and, where published, b3.
LAYOUTS: dict[tuple[type[Block], tuple[int, ...]], tuple[tuple[int, ...], ...]] = {
    (BasicBlock, (2, 2, 2, 2)): ((2,), (1, 2), (1, 1, 2)),  # ResNet-18
    (BasicBlock, (3, 4, 6, 3)): ((3,), (3, 2)),  # ResNet-34
    (Bottleneck, (3, 4, 6, 3)): ((3,), (3, 2)),  # ResNet-50
    (Bottleneck, (3, 4, 23, 3)): ((3,), (12, 2)),  # ResNet-101
    (Bottleneck, (3, 8, 36, 3)): ((3,), (18, 2)),  # ResNet-152
}
PLANES = (64, 128, 256, 512)


def side_branches(backbone: ResNet) -> list[SideBranch] | None:
    """b1 after stage 3, twice as wide; b2 after stage 2 and b3 after stage 1, thinned in depth.

    Initialised as timm initialises its ResNets. None for a ResNet that is not one of the papers'.
    """
    stages = [cast(nn.Sequential, backbone.get_submodule(f"layer{i}")) for i in range(1, 5)]
    block = cast("type[Block]", type(stages[0][0]))
    layouts = LAYOUTS.get((block, tuple(map(len, stages))))
    if layouts is None or not _is_plain(backbone, block):
        return None
    branches = []
    for place, blocks in enumerate(layouts, 1):
        first = 4 - len(blocks)  # index of the branch's first stage
        planes: list[int] = list(PLANES[first:])
        if place == 1:
            planes[-1] *= 2
        channels = PLANES[first - 1] * block.expansion
        tail = {}
        for number, (count, width) in enumerate(zip(blocks, planes, strict=True), first + 1):
            tail[f"layer{number}"] = _stage(block, count, channels, width)
            channels = width * block.expansion
        body = Tail(tail, channels, backbone.num_classes)
        _initialise(body)
        branches.append(SideBranch(f"b{place}", f"layer{first}", body))
    return branches


def _is_plain(backbone: ResNet, block: type[Block]) -> bool:
    """Whether the blocks have the widths and parts of the papers' networks: no groups, no attention."""
    like = _stage(block, 1, PLANES[2] * block.expansion, PLANES[3])
    own = {name: each.shape for name, each in backbone.get_submodule("layer4.0").state_dict().items()}
    return own == {name: each.shape for name, each in like[0].state_dict().items()}


def _stage(block: type[Block], count: int, in_channels: int, planes: int) -> nn.Sequential:
    """Blocks of one width; the first halves the resolution, its shortcut a strided 1x1 convolution and BN."""
    channels = planes * block.expansion
    shortcut = nn.Sequential(nn.Conv2d(in_channels, channels, 1, 2, bias=False), nn.BatchNorm2d(channels))
    first = block(in_channels, planes, stride=2, downsample=shortcut)
    return nn.Sequential(first, *(block(channels, planes) for _ in range(count - 1)))


def _initialise(body: nn.Module) -> None:
    for each in body.modules():
        if isinstance(each, nn.Conv2d):
            nn.init.kaiming_normal_(each.weight, mode="fan_out", nonlinearity="relu")
    for each in body.modules():
        if isinstance(each, (BasicBlock, Bottleneck)):
            each.zero_init_last()
