"""Metrics summed over batches on the device; only reading them waits for the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sidebranch.metrics import top_k_hits

# Rows of the table of sums.
COUNT, LOSS, HITS_1, HITS_5 = range(4)


class Meter:
    """Loss and top-1 / top-5 hits of each column (a classifier, or the ensemble).

    Args:
        columns: their names.
        device: of the sums.
        num_classes: K; with 5 or fewer, top-5 says nothing and is left out.

    Attributes:
        sums: [4, columns].
    """

    def __init__(self, columns: Sequence[str], device: torch.device, num_classes: int) -> None:
        self.columns, self.num_classes = tuple(columns), num_classes
        precise = torch.float32 if device.type == "mps" else torch.float64
        self.sums = torch.zeros(4, len(self.columns), dtype=precise, device=device)

    @torch.no_grad()
    def add(self, names: Sequence[str], scores: Sequence[Tensor] | Tensor, labels: Tensor, losses: Tensor) -> None:
        """Adds one batch of the named columns.

        Args:
            names: C of the columns, in their order.
            scores: C of [N, K] logits or probabilities; some may have the first n images only.
            labels: [N] class indices.
            losses: [C] means over each column's images.
        """
        counts = [len(each) for each in scores]
        if len(set(counts)) == 1:
            hits = top_k_hits(torch.stack(tuple(scores)), labels, (1, 5))
        else:
            hits = torch.cat([top_k_hits(each[None], labels[: len(each)], (1, 5)) for each in scores], 1)
        seen = torch.stack([torch.full_like(losses[0], count) for count in counts])
        rows = torch.cat([seen[None], (losses * seen)[None], hits])
        if tuple(names) == self.columns:
            self.sums += rows
        else:
            for position, name in enumerate(names):
                self.sums[:, self.columns.index(name)] += rows[:, position]

    def read(self) -> dict[str, dict[str, float]]:
        """Column to loss in nats and errors in percent, without columns that have no images. Waits for the device."""
        readings: dict[str, dict[str, float]] = {}
        for name, row in zip(self.columns, self.sums.T.tolist(), strict=True):
            if row[COUNT]:
                readings[name] = {"loss": row[LOSS] / row[COUNT], "top1": 100 * (1 - row[HITS_1] / row[COUNT])}
                if self.num_classes > 5:
                    readings[name]["top5"] = 100 * (1 - row[HITS_5] / row[COUNT])
        return readings


class Mean:
    """A running mean over images, on the device.

    Attributes:
        sums: [2], the number of images and the sum.
    """

    def __init__(self, device: torch.device) -> None:
        precise = torch.float32 if device.type == "mps" else torch.float64
        self.sums = torch.zeros(2, dtype=precise, device=device)

    @torch.no_grad()
    def add(self, mean: Tensor, count: int) -> None:
        """Adds the mean, a scalar, over `count` images."""
        self.sums[0] += count
        self.sums[1] += mean * count

    def read(self) -> float:
        """The mean; not a number before the first image. Waits for the device."""
        count, total = self.sums.tolist()
        return total / count if count else float("nan")
