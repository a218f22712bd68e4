"""The batch-hard triplet loss (Hermans et al. 2017) on the features of every classifier."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sidebranch.core.model import Outputs
from sidebranch.errors import UserError

Gather = Callable[[Tensor], Tensor]


class TripletLoss(nn.Module):
    """`loss(outputs, labels)`: the sum over the classifiers of their features' batch-hard triplet loss.

    Mining and loss are pytorch-metric-learning's: for every image the farthest of its class and the nearest of another.

    Args:
        margin: by how much the images of other classes must be farther away.
        gather: [n, ...] of one process to [n of all, ...] of all processes, with a gradient; if left out, triplets are
            mined among this process's images.

    Raises:
        UserError: pytorch-metric-learning is not installed.
    """

    def __init__(self, margin: float = 0.3, gather: Gather | None = None) -> None:
        super().__init__()
        try:
            from pytorch_metric_learning.losses import TripletMarginLoss
            from pytorch_metric_learning.miners import BatchHardMiner
        except ImportError as error:
            raise UserError("the triplet loss needs pytorch-metric-learning: pip install 'sidebranch[reid]'") from error
        self.miner: nn.Module = BatchHardMiner()
        self.loss: nn.Module = TripletMarginLoss(margin=margin)
        self.gather: Gather | None = gather

    def forward(self, outputs: Outputs, labels: Tensor) -> Tensor:
        """A scalar.

        Args:
            outputs: with features ([N, D], or [n, D] of the first n images); see `BranchedModel.watch_features`.
            labels: [N].
        """
        if not outputs.features:
            raise UserError("the triplet loss needs features: call net.watch_features() before training")
        terms = []
        for each in outputs.features:
            features, known = each.float(), labels[: len(each)]
            if (gather := self.gather) is not None:
                features, known = gather(features), gather(known)
            terms.append(self.loss(features, known, self.miner(features.detach(), known)))
        return torch.stack(terms).sum()
