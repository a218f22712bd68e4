"""Top-k accuracy, counted on the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor


def top_k_hits(scores: Float[Tensor, "c n k"], labels: Int[Tensor, " n"], ks: Sequence[int]) -> Int[Tensor, "ks c"]:
    """How many images each classifier has among its k best guesses, for every k; k is cut to the number of classes."""
    best = scores.topk(min(max(ks), scores.shape[2]), dim=2).indices
    right = best == labels.view(1, -1, 1)
    return torch.stack([right[:, :, :k].any(2).sum(1) for k in ks])
