"""Set the strides of a backbone's last stage to 1: features of twice the resolution, for re-identification."""

from __future__ import annotations

from typing import Any

from torch import nn

from sidebranch.errors import UserError

POOLS = (nn.MaxPool2d, nn.AvgPool2d)
STRIDED = (nn.Conv2d, *POOLS)


def last_stride_one(backbone: nn.Module) -> nn.Module:
    """Sets the strides of a backbone's last stage to 1 (Sun et al. 2018; Luo et al. 2019), and returns the backbone.

    Weights stay, pretrained ones too. The shipped weights load into `last_stride_one(timm.create_model(...))`.

    Args:
        backbone: changed in place, before branches are attached.

    Raises:
        UserError: the last stage is unknown, or its strides cannot be changed.
    """
    stage = last_stage(backbone)
    kind = type(backbone).__name__
    strided = _strided(backbone.get_submodule(stage)) if stage else []
    if not strided:
        raise UserError(f"last stride: {kind} has no strided convolution in a last stage; leave model.last_stride at 0")
    stages = backbone.get_submodule(stage).modules()
    if other := [each for each in stages if not isinstance(each, STRIDED) and _is_leaf(each) and _stride(each) > 1]:
        what = type(other[0]).__name__
        raise UserError(f"last stride: {kind}'s last stage has a {what}; leave model.last_stride at 0")
    if any(isinstance(each, nn.Conv2d) and 1 < _size(each) <= _stride(each) for each in strided):
        raise UserError(f"last stride: {kind}'s last stage cuts its input into patches; leave model.last_stride at 0")
    keep_resolution(backbone.get_submodule(stage))
    return backbone


def last_stage(backbone: nn.Module) -> str:
    """The path of the last stage by timm's `feature_info`; empty if unknown."""
    stages = getattr(backbone, "feature_info", None)
    name = stages[-1]["module"] if isinstance(stages, list) and stages else ""
    return name if name in dict(backbone.named_modules()) else ""


def keep_resolution(stage: nn.Module) -> None:
    """Sets all strides of a stage to 1."""
    for each in _strided(stage):
        if isinstance(each, POOLS) and _size(each) <= _stride(each):
            each.kernel_size = 1  # it no longer pools
        each.stride = 1 if isinstance(each, POOLS) else (1, 1)


def _strided(stage: nn.Module) -> list[Any]:
    return [each for each in stage.modules() if isinstance(each, STRIDED) and _stride(each) > 1]


def _stride(layer: Any) -> int:
    return _largest(getattr(layer, "stride", 1))


def _size(layer: Any) -> int:
    return _largest(layer.kernel_size)


def _largest(size: Any) -> int:
    return max(size) if isinstance(size, (tuple, list)) else int(size)


def _is_leaf(layer: nn.Module) -> bool:
    return not any(True for _ in layer.children())
