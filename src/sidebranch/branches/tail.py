"""The end of a network: its stages, then what all of the papers end in, global average pooling and one linear layer."""

from __future__ import annotations

import math
from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor, nn


class Tail(nn.Module):
    """Named stages, global average pooling, one linear layer.

    The stages keep their names, so a branch's state dict reads like the backbone's own tail ("layer3.0.conv1.weight",
    "fc.weight").

    Args:
        stages: run in order, features [N, C, H, W] to features.
        channels: of the last stage's output.
        num_classes: K.
    """

    def __init__(self, stages: Mapping[str, nn.Module], channels: int, num_classes: int) -> None:
        super().__init__()
        self.stage_names = tuple(stages)
        for name, stage in stages.items():
            self.add_module(name, stage)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, features: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        for name in self.stage_names:
            features = getattr(self, name)(features)
        return self.fc(features.mean((2, 3)))


def conv_weights_by_fan_out(module: nn.Module) -> None:
    """Initialise as the papers' CIFAR networks do: conv ~ N(0, sqrt(2 / (k k out_channels))), batch norm 1 and 0."""
    for each in module.modules():
        if isinstance(each, nn.Conv2d):
            height, width = each.kernel_size
            nn.init.normal_(each.weight, 0.0, math.sqrt(2 / (height * width * each.out_channels)))
        elif isinstance(each, nn.BatchNorm2d):
            nn.init.ones_(each.weight)
            nn.init.zeros_(each.bias)
