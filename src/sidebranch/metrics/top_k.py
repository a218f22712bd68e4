"""Top-k accuracy, counted on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float, Int


def top_k_hits(scores: Float[Tensor, "c n k"], labels: Int[Tensor, " n"], ks: Sequence[int]) -> Int[Tensor, "ks c"]:
    """Number of images whose label is among each classifier's k highest scores, for every k (at most K)."""
    best = scores.topk(min(max(ks), scores.shape[2]), dim=2).indices
    right = best == labels.view(1, -1, 1)
    return torch.stack([right[:, :, :k].any(2).sum(1) for k in ks])
