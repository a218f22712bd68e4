"""All classifiers of a network as one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sidebranch.core.model import BranchedModel

if TYPE_CHECKING:
    from jaxtyping import Float


class Ensemble(nn.Module):
    """Images to the mean of all classifiers' probabilities, [N, K], in float32.

    Args:
        net: a network with side branches; shared, not copied.
    """

    def __init__(self, net: BranchedModel) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Float[Tensor, "n channels h w"]) -> Float[Tensor, "n k"]:
        logits = self.net(images, live=self.net.names).logits
        return torch.stack([each.float() for each in logits]).softmax(-1).mean(0)
