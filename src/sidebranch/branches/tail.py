"""Stages, global average pooling and one linear layer: the form of the papers' branches and networks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from jaxtyping import Float


class Tail(nn.Module):
    """Named stages, then global average pooling and one linear layer.

    The stages keep their names, so a branch's state dict reads like the backbone's own tail ("layer3.0.conv1.weight",
    "fc.weight").

    Args:
        stages: run in order, features [N, C, H, W] to features.
        channels: of the last stage's output.
        num_classes: K.
        norm: batch normalisation and ReLU before the pool, as pre-activation networks end.
    """

    def __init__(self, stages: Mapping[str, nn.Module], channels: int, num_classes: int, norm: bool = False) -> None:
        super().__init__()
        self.stage_names: tuple[str, ...] = tuple(stages)
        for name, stage in stages.items():
            self.add_module(name, stage)
        self.bn: nn.Module | None = nn.BatchNorm2d(channels) if norm else None
        self.fc: nn.Module = nn.Linear(channels, num_classes)

    def forward_features(self, features: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h2 w2"]:
        for name in self.stage_names:
            features = getattr(self, name)(features)
        return features if self.bn is None else self.bn(features).relu()

    def forward_head(self, features: Float[Tensor, "n d h w"], pre_logits: bool = False) -> Tensor:
        """The logits [N, K]; or with `pre_logits`, the pooled features [N, D]."""
        pooled = features.mean((2, 3))
        return pooled if pre_logits else self.fc(pooled)

    def forward(self, features: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        return self.forward_head(self.forward_features(features))


def conv_weights_by_fan_out(module: nn.Module) -> None:
    """Initialise as the papers' CIFAR networks do: conv ~ N(0, sqrt(2 / (k k out_channels))), batch norm 1 and 0."""
    for each in module.modules():
        if isinstance(each, nn.Conv2d):
            height, width = each.kernel_size
            nn.init.normal_(each.weight, 0.0, math.sqrt(2 / (height * width * each.out_channels)))
        elif isinstance(each, nn.BatchNorm2d):
            nn.init.ones_(each.weight)
            nn.init.zeros_(each.bias)
