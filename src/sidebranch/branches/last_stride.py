"""A backbone whose last stage keeps the resolution: twice as fine features, as re-identification likes them."""

from __future__ import annotations

from typing import Any

from torch import nn

from sidebranch.errors import UserError

STRIDED = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)


def last_stride_one(backbone: nn.Module) -> nn.Module:
    """Sets the strides of a backbone's last stage to 1 (Sun et al. 2018; Luo et al. 2019), and gives it back.

    Weights stay as they are, pretrained ones too. What ships then loads into `last_stride_one(timm.create_model(...))`.

    Args:
        backbone: changed in place, before branches are attached.

    Raises:
        UserError: timm does not say which stage is its last, or that has no stride to take away.
    """
    stage = last_stage(backbone)
    kind = type(backbone).__name__
    strided = _strided(backbone.get_submodule(stage)) if stage else []
    if not strided:
        raise UserError(f"last stride: {kind} has no strided convolution in a last stage; leave model.last_stride at 0")
    if any(_size(each) > 1 and _size(each) <= _stride(each) for each in strided):
        raise UserError(f"last stride: {kind}'s last stage cuts its input into patches; leave model.last_stride at 0")
    keep_resolution(backbone.get_submodule(stage))
    return backbone


def last_stage(backbone: nn.Module) -> str:
    """The path of the stage that runs last, or nothing where timm does not say."""
    stages = getattr(backbone, "feature_info", None)
    name = stages[-1]["module"] if isinstance(stages, list) and stages else ""
    return name if name in dict(backbone.named_modules()) else ""


def keep_resolution(stage: nn.Module) -> None:
    """Sets all strides of a stage to 1."""
    for each in _strided(stage):
        each.stride = 1 if isinstance(each, nn.AvgPool2d) else (1, 1)


def _strided(stage: nn.Module) -> list[Any]:
    return [each for each in stage.modules() if isinstance(each, STRIDED) and _stride(each) > 1]


def _stride(layer: Any) -> int:
    return _largest(layer.stride)


def _size(layer: Any) -> int:
    return _largest(layer.kernel_size)


def _largest(size: object) -> int:
    return max(size) if isinstance(size, tuple) else int(str(size))
