"""What the classifiers take: the features that retrieval compares, the necks before them, the loss on them.

A neck (BNNeck, Luo et al. 2019) is a batch norm between a feature and its classifier; the triplet loss and retrieval
see the feature before it. When the backbone ships, it is folded into the classifier and stays behind, as the branches
do: the file is the plain backbone, with the same logits. Differs: there, retrieval takes the feature after the neck,
which a plain backbone does not have, and the classifier has no bias.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sidebranch.engine.config import ObjectiveConfig
from sidebranch.errors import UserError
from sidebranch.model import BranchedModel, Outputs


def watch(net: BranchedModel, num_classes: int, bnneck: bool) -> None:
    """Has a network give its features, and puts necks before its classifiers if asked to.

    Raises:
        UserError: a classifier is no linear layer.
    """
    parts = {"main": "backbone", **{name: f"branches.{name}" for name in net.branches}}
    classifiers = {name: _classifier(net, part, num_classes) for name, part in parts.items()}
    necks = {name: nn.BatchNorm1d(_linear(net, path).in_features) for name, path in classifiers.items()}
    net.watch_features(classifiers, necks if bnneck else None)


def _classifier(net: BranchedModel, part: str, num_classes: int) -> str:
    """The path of the layer that timm calls the classifier; else of the last linear layer with an output a class."""
    module = net.get_submodule(part)
    layers = list(module.named_modules())
    if hasattr(module, "get_classifier"):  # the user of what ships takes this one away
        layers = [(name, each) for name, each in layers if each is module.get_classifier()]  # pyright: ignore[reportCallIssue]
    found = [name for name, each in layers if isinstance(each, nn.Linear) and each.out_features == num_classes]
    if not found:
        raise UserError(
            f"'{part}' does not end in one linear classifier, so that its features are not known; take another backbone"
        )
    return f"{part}.{found[-1]}"


def _linear(net: BranchedModel, path: str) -> nn.Linear:
    layer = net.get_submodule(path)
    assert isinstance(layer, nn.Linear)
    return layer


def shipped(net: BranchedModel) -> dict[str, Tensor]:
    """The plain backbone's state dict, a neck folded into its classifier: W (s x + t) + b is (W s) x + (W t + b)."""
    state = dict(net.backbone.state_dict())
    if "main" not in net.necks:
        return state
    neck, path = net.necks["main"], net.classifiers["main"].removeprefix("backbone.")
    assert isinstance(neck, (nn.BatchNorm1d, nn.SyncBatchNorm))
    assert neck.running_mean is not None
    assert neck.running_var is not None
    with torch.no_grad():
        scale = neck.weight / (neck.running_var + neck.eps).sqrt()
        weight = state[f"{path}.weight"]
        state[f"{path}.weight"] = weight * scale
        state[f"{path}.bias"] = state[f"{path}.bias"] + weight @ (neck.bias - neck.running_mean * scale)
    return state


def build_triplet(config: ObjectiveConfig) -> Callable[[Outputs, Tensor], Tensor] | None:
    """The batch-hard triplet loss (Hermans et al. 2017) of every classifier's features, weighted; None where it is 0.

    Raises:
        UserError: pytorch-metric-learning is not installed.
    """
    if not config.triplet:
        return None
    try:
        from pytorch_metric_learning.losses import TripletMarginLoss
        from pytorch_metric_learning.miners import BatchHardMiner
    except ImportError as error:
        raise UserError("objective.triplet needs pytorch-metric-learning: pip install 'sidebranch[reid]'") from error
    miner, loss = BatchHardMiner(), TripletMarginLoss(margin=config.triplet_margin)

    def triplet(outputs: Outputs, labels: Tensor) -> Tensor:
        terms = []
        for each in outputs.features:
            features, known = each.float(), labels[: len(each)]
            terms.append(loss(features, known, miner(features.detach(), known)))
        return config.triplet * torch.stack(terms).sum()

    return triplet
