"""Losses, gradients and weights that are not finite."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def first_not_finite(named: Iterable[tuple[str, Tensor]]) -> str:
    """The name of the first tensor with a value that is not finite, or "". Waits for the device."""
    names, tensors = zip(*named, strict=True)
    finite = torch.stack(torch._foreach_norm(list(tensors))).isfinite()  # pyright: ignore[reportPrivateImportUsage]
    return "" if finite.all() else names[int(finite.int().argmin())]


class Finiteness:
    """The first step whose loss was not finite, and its terms, without waiting for the device at every step.

    Args:
        names: of all the network's classifiers.
        device: of the loss.
        outside: names of teachers outside the network, whose rows follow in the mimicry.
    """

    def __init__(self, names: Sequence[str], device: torch.device, outside: Sequence[str] = ()) -> None:
        self.names, self.teachers = tuple(names), (*names, *outside)
        self.step = torch.full((), -1, dtype=torch.int64, device=device)
        self.supervision = torch.zeros(len(names), device=device)
        self.mimicry = torch.zeros(len(self.teachers), len(names), device=device)

    @torch.no_grad()
    def watch(self, step: int, total: Tensor, live: Sequence[str], supervision: Tensor, mimicry: Tensor) -> None:
        """Notes one step's loss and its terms, those of the live classifiers."""
        first = (self.step < 0) & ~total.isfinite()
        self.step = torch.where(first, step, self.step)
        if tuple(live) != self.names:
            at = [self.names.index(name) for name in live]
            labels, pairs = torch.zeros_like(self.supervision), torch.zeros_like(self.mimicry)
            for row, p in enumerate([*at, *range(len(self.names), len(self.teachers))]):
                for column, q in enumerate(at):  # one by one: a list of places would be copied to the device
                    pairs[p, q] = mimicry[row, column]
            for row, p in enumerate(at):
                labels[p] = supervision[row]
            supervision, mimicry = labels, pairs
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
            for p, teacher in enumerate(self.teachers)
            for q, student in enumerate(self.names)
            if p != q and not pairs[p][q]
        ]
        return step, labels + mimicry
