"""The papers' side branches for ImageNet ResNets (DHM supplement, Table 4). The networks are timm's own modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

from sidebranch.branches import Tail
from sidebranch.zoo.network import Plan, stage_after

Block = BasicBlock | Bottleneck

# (block, blocks a stage) to the blocks a stage of b1, b2 and, where published, b3.
LAYOUTS: dict[tuple[type[Block], tuple[int, ...]], tuple[tuple[int, ...], ...]] = {
    (BasicBlock, (2, 2, 2, 2)): ((2,), (1, 2), (1, 1, 2)),  # ResNet-18
    (BasicBlock, (3, 4, 6, 3)): ((3,), (3, 2)),  # ResNet-34
    (Bottleneck, (3, 4, 6, 3)): ((3,), (3, 2)),  # ResNet-50
    (Bottleneck, (3, 4, 23, 3)): ((3,), (12, 2)),  # ResNet-101
    (Bottleneck, (3, 8, 36, 3)): ((3,), (18, 2)),  # ResNet-152
}
STAGES = ("layer1", "layer2", "layer3", "layer4")
PLANES = (64, 128, 256, 512)


def layout(backbone: ResNet) -> list[Plan] | None:
    """b1 after stage 3, twice as wide; b2 after stage 2 and b3 after stage 1, thinned in depth.

    None for a ResNet that is not one of the papers'.
    """
    block = _block(backbone)
    layouts = LAYOUTS.get((block, _blocks(backbone)))
    if layouts is None or not _is_plain(backbone, block):
        return None
    return [Plan(f"layer{4 - place}", 2 if place == 1 else 1, blocks) for place, blocks in enumerate(layouts, 1)]


def blocks_after(backbone: ResNet, at: str) -> tuple[int, ...]:
    """Main's blocks in each stage after a fork."""
    return _blocks(backbone)[stage_after(at, STAGES) :]


def tail_after(backbone: ResNet, at: str, width: float, blocks: Sequence[int]) -> Tail:
    """Stages of main's kind after a fork, `width` times as wide, with these numbers of blocks.

    Initialised as timm initialises its ResNets, with or without `zero_init_last` as the backbone.
    """
    start, block = stage_after(at, STAGES), _block(backbone)
    stages, channels = {}, PLANES[start - 1] * block.expansion
    for name, planes, count in zip(STAGES[start:], PLANES[start:], blocks, strict=True):
        stages[name] = _stage(block, count, channels, int(planes * width))
        channels = int(planes * width) * block.expansion
    body = Tail(stages, channels, backbone.num_classes)
    _initialise(body, zero_init_last=not _starts_at_one(backbone))
    return body


def _block(backbone: ResNet) -> type[Block]:
    return cast("type[Block]", type(backbone.get_submodule("layer4.0")))


def _blocks(backbone: ResNet) -> tuple[int, ...]:
    return tuple(len(cast(nn.Sequential, backbone.get_submodule(name))) for name in STAGES)


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


def _starts_at_one(backbone: ResNet) -> bool:
    """Whether the last norms of its blocks are 1, as in the papers' code; timm sets them to 0."""
    block = backbone.get_submodule("layer4.0")
    last = cast(nn.BatchNorm2d, block.get_submodule("bn3" if isinstance(block, Bottleneck) else "bn2"))
    return not last.weight.is_meta and bool((last.weight == 1).all())


def _initialise(body: nn.Module, zero_init_last: bool) -> None:
    for each in body.modules():
        if isinstance(each, nn.Conv2d):
            nn.init.kaiming_normal_(each.weight, mode="fan_out", nonlinearity="relu")
    for each in body.modules():
        if zero_init_last and isinstance(each, (BasicBlock, Bottleneck)):
            each.zero_init_last()
