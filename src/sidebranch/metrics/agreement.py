"""How far the classifiers of a network agree, summed over batches on the device."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, permutations
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float


class Agreement:
    """Divergence and different answers of every pair of C classifiers.

    Args:
        names: of the classifiers.
        device: of the sums.

    Attributes:
        sums: [2 C + 1, C]: the Kullback-Leibler divergences of row's probabilities from column's, in nats; the numbers
            of images with different answers; the number of images in the first cell of the last row.
    """

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        self.names = tuple(names)
        precise = torch.float32 if device.type == "mps" else torch.float64
        self.sums = torch.zeros(2 * len(names) + 1, len(names), dtype=precise, device=device)

    @torch.no_grad()
    def add(self, scores: Float[Tensor, "c n k"]) -> None:
        """Adds one batch of log-probabilities."""
        count = len(self.names)
        with torch.autocast(scores.device.type, enabled=False):
            pairs = torch.einsum("pnk,qnk->pq", scores.exp(), scores)
        self.sums[:count] += pairs.diagonal()[:, None] - pairs
        answers = scores.argmax(-1)
        self.sums[count:-1] += (answers[:, None] != answers[None]).sum(-1)
        self.sums[-1, 0] += scores.shape[1]

    def read(self) -> dict[str, float]:
        """ "kl/p->q", mean KL(f_p || f_q) in nats, and "differ/p-q", images with different answers in percent.

        Waits for the device.
        """
        count = len(self.names)
        *rows, (images, *_) = self.sums.tolist()
        if not images or count < 2:
            return {}
        place = {name: number for number, name in enumerate(self.names)}
        found = {f"kl/{p}->{q}": rows[place[p]][place[q]] / images for p, q in permutations(self.names, 2)}
        for p, q in combinations(self.names, 2):
            found[f"differ/{p}-{q}"] = 100 * rows[count + place[p]][place[q]] / images
        return found
