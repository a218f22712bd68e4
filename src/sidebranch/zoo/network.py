"""Base of the papers' own networks: a `Tail` that starts at the images, with timm's interface."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from sidebranch.branches import Tail, conv_weights_by_fan_out
from sidebranch.errors import UserError, nearest


@dataclass(frozen=True)
class Plan:
    """A branch that is not built yet.

    Attributes:
        at: the module that it forks at.
        width: of its stages, as a multiple of main's.
        blocks: in each of them.
    """

    at: str
    width: float
    blocks: tuple[int, ...]


class Network(Tail):
    """A network of named stages, initialised as the papers' CIFAR networks are.

    Args:
        stages: images [N, C, H, W] to features, in order.
        channels: of the last stage's output.
        num_classes: K.
        norm: batch normalisation and ReLU before the pool.
        forks: the modules where the resolution is about to drop, and the last stage: path to channels.
    """

    def __init__(
        self,
        stages: Mapping[str, nn.Module],
        channels: int,
        num_classes: int,
        *,
        forks: Mapping[str, int],
        norm: bool = False,
    ) -> None:
        super().__init__(stages, channels, num_classes, norm)
        self.num_classes = num_classes
        self.num_features = channels
        self.feature_info = [
            {"num_chs": width, "reduction": 2**place, "module": name}
            for place, (name, width) in enumerate(forks.items())
        ]
        conv_weights_by_fan_out(self)

    def get_classifier(self) -> nn.Module:
        return self.fc

    def reset_classifier(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.fc = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()


def fresh_tail(stages: Mapping[str, nn.Module], channels: int, num_classes: int, norm: bool = False) -> Tail:
    """A branch's body made of a network's kind of stages, initialised as the network is."""
    body = Tail(stages, channels, num_classes, norm)
    conv_weights_by_fan_out(body)
    return body


def stage_after(at: str, forks: Sequence[str]) -> int:
    """The index, from 0, of the first stage after a fork."""
    if at not in forks[:-1]:
        raise UserError(f"'{at}' is no fork of this network; {nearest(at, forks[:-1])}")
    return list(forks).index(at) + 1


def config_of(first_conv: str, num_classes: int = 10, size: int = 32, **more: Any) -> dict[str, Any]:
    """timm's default config of a registered network."""
    return {
        "num_classes": num_classes,
        "input_size": (3, size, size),
        "first_conv": first_conv,
        "classifier": "fc",
        **more,
    }
