"""Sums over batches, kept on the device and read seldom: reading waits for the device, adding does not."""

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
        device: where the sums live.

    Attributes:
        sums: [4, columns].
    """

    def __init__(self, columns: Sequence[str], device: torch.device) -> None:
        self.columns = tuple(columns)
        precise = torch.float32 if device.type == "mps" else torch.float64
        self.sums = torch.zeros(4, len(self.columns), dtype=precise, device=device)

    @torch.no_grad()
    def add(self, names: Sequence[str], scores: Sequence[Tensor] | Tensor, labels: Tensor, losses: Tensor) -> None:
        """One batch of the named columns.

        Args:
            names: C of the columns, in their order.
            scores: C of [N, K] logits or probabilities; some may be of the first images only.
            labels: [N] class indices.
            losses: [C] means over the images that each saw.
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
        """Column to loss in nats and errors in percent; columns that saw nothing are left out."""
        table = self.sums.T.tolist()
        return {
            name: {
                "loss": row[LOSS] / row[COUNT],
                "top1": 100 * (1 - row[HITS_1] / row[COUNT]),
                "top5": 100 * (1 - row[HITS_5] / row[COUNT]),
            }
            for name, row in zip(self.columns, table, strict=True)
            if row[COUNT]
        }


class Finiteness:
    """Remembers the first step whose loss was not finite, and its terms, without reading them back at every step.

    Args:
        names: all the network's classifiers.
        device: where the memory lives.
    """

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        self.names = tuple(names)
        self.step = torch.full((), -1, dtype=torch.int64, device=device)
        self.supervision = torch.zeros(len(names), device=device)
        self.mimicry = torch.zeros(len(names), len(names), device=device)

    @torch.no_grad()
    def watch(self, step: int, total: Tensor, live: Sequence[str], supervision: Tensor, mimicry: Tensor) -> None:
        """One step's loss and its terms, those of the live classifiers."""
        first = (self.step < 0) & ~total.isfinite()
        self.step = torch.where(first, step, self.step)
        if tuple(live) != self.names:
            at = [self.names.index(name) for name in live]
            everyone, pairs = torch.zeros_like(self.supervision), torch.zeros_like(self.mimicry)
            for row, p in enumerate(at):
                everyone[p] = supervision[row]
                for column, q in enumerate(at):
                    pairs[p, q] = mimicry[row, column]
            supervision, mimicry = everyone, pairs
        self.supervision = torch.where(first, supervision, self.supervision)
        self.mimicry = torch.where(first, mimicry, self.mimicry)

    def first_bad_step(self) -> tuple[int, list[str]] | None:
        """The step and the names of the terms that were not finite, or None. Waits for the device."""
        step = int(self.step)
        if step < 0:
            return None
        labels = [
            f"supervision of {name}"
            for name, value in zip(self.names, self.supervision.isfinite().tolist(), strict=True)
            if not value
        ]
        pairs = self.mimicry.isfinite().tolist()
        mimicry = [
            f"mimicry of {teacher} by {student}"
            for p, teacher in enumerate(self.names)
            for q, student in enumerate(self.names)
            if p != q and not pairs[p][q]
        ]
        return step, labels + mimicry
