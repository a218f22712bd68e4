"""The inputs of the classifiers: the features that retrieval compares, and the necks in front of the classifiers.

A neck (BNNeck, Luo et al. 2019) is a batch norm between a feature and its classifier; the triplet loss and retrieval
use the feature before it. When the backbone ships, the neck is folded into the classifier: the file is the plain
backbone, with the same logits. Differs: in that paper, retrieval uses the feature after the neck, which a plain
backbone does not have, and the classifier has no bias.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sidebranch.errors import UserError


class Head:
    """Hook before one classifier: records the classifier's input in one forward pass, and applies the neck to it.

    A plain object: deepcopy and torch.compile follow its bound methods.

    Args:
        name: of the classifier ("main", "b1", ...).
        neck: between feature [N, D] and classifier, or None.
    """

    def __init__(self, name: str, neck: nn.Module | None) -> None:
        self.name: str = name
        self.neck: nn.Module | None = neck
        self.is_open: bool = False
        self.features: Tensor | None = None

    def record(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor] | None:
        features = inputs[0]
        if self.is_open:
            self.features = features
        return None if self.neck is None else (self.neck(features),)

    def open(self) -> None:
        """Starts to record."""
        self.is_open = True
        self.features = None

    def read(self) -> Tensor:
        """What was recorded, [N, D].

        Raises:
            UserError: the classifier did not run, or its input is no matrix.
        """
        if self.features is None or self.features.ndim != 2:
            wrong = "does not run" if self.features is None else f"takes {self.features.ndim} dimensions, not [N, D]"
            raise UserError(f"no features of {self.name}: its classifier {wrong}")
        return self.features

    def close(self) -> None:
        """Stops recording and forgets the features."""
        self.features = None
        self.is_open = False


def find_classifiers(backbone: nn.Module, branches: nn.ModuleDict) -> dict[str, str]:
    """Each classifier's last linear layer: name to its path in a `BranchedModel`.

    In the backbone it is timm's classifier, else the last linear layer with one output per class. In a branch it is
    the last linear layer with one output per class.

    Raises:
        UserError: a part has no such layer.
    """
    parts = {"main": ("backbone", backbone), **{name: (f"branches.{name}", each) for name, each in branches.items()}}
    main = _last_linear(backbone, "backbone", getattr(backbone, "num_classes", None))
    num_classes = _linear(backbone, main).out_features
    layers = {name: (part, _last_linear(module, part, num_classes)) for name, (part, module) in parts.items()}
    return {name: ".".join(filter(None, path)) for name, path in layers.items()}


def _last_linear(module: nn.Module, part: str, num_classes: int | None) -> str:
    layers = list(module.named_modules())
    if hasattr(module, "get_classifier"):  # the layer that timm's reset_classifier replaces
        layers = [(name, each) for name, each in layers if each is module.get_classifier()]  # pyright: ignore[reportCallIssue]
    found = [
        name
        for name, each in layers
        if isinstance(each, nn.Linear) and (num_classes is None or each.out_features == num_classes)
    ]
    if not found:
        raise UserError(
            f"'{part}' does not end in one linear classifier, so its features are unknown; take another backbone, or "
            f"name the layers: net.watch_features({{'main': 'backbone.fc', 'b1': 'branches.b1.fc'}})"
        )
    return found[-1]


def batch_norm_necks(model: nn.Module, classifiers: Mapping[str, str]) -> dict[str, nn.Module]:
    """A batch norm in front of each classifier (BNNeck, Luo et al. 2019), where the classifier is.

    Raises:
        UserError: a classifier has no bias, which a neck's shift is folded into when it ships.
    """
    layers = {name: _linear(model, path) for name, path in classifiers.items()}
    for name, layer in layers.items():
        if layer.bias is None:
            raise UserError(f"a neck's shift is folded into the classifier's bias, and that of '{name}' has none")
    return {name: nn.BatchNorm1d(each.in_features, device=each.weight.device) for name, each in layers.items()}


def fold_neck(state: Mapping[str, Tensor], neck: Any, path: str) -> dict[str, Tensor]:
    """A backbone's state dict with a neck folded into its classifier: W (s x + t) + b = (W s) x + (W t + b).

    Args:
        state: of the backbone.
        neck: a batch norm in front of the classifier.
        path: of the classifier in the backbone.
    """
    folded = dict(state)
    with torch.no_grad():
        scale = neck.weight / (neck.running_var + neck.eps).sqrt()
        weight = folded[f"{path}.weight"]
        folded[f"{path}.weight"] = weight * scale
        folded[f"{path}.bias"] = folded[f"{path}.bias"] + weight @ (neck.bias - neck.running_mean * scale)
    return folded


def _linear(model: nn.Module, path: str) -> nn.Linear:
    layer = model.get_submodule(path)
    assert isinstance(layer, nn.Linear)
    return layer
