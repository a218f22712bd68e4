"""Batches of a split that is stored on the training device."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from sidebranch.data.augmentation.batched import Augmentation
from sidebranch.data.loaders.order import Rank, batches_of, steps_of
from sidebranch.data.sources.arrays import ArraySplit


class InMemoryLoader:
    """Normalised float32 batches and their labels.

    Args:
        split: moved to `device` once.
        batch_size: over all ranks.
        augmentation: None for validation: images unchanged, in their order.
    """

    def __init__(
        self,
        split: ArraySplit,
        batch_size: int,
        *,
        device: torch.device,
        seed: int = 0,
        augmentation: Augmentation | None = None,
        drop_last: bool = False,
        rank: Rank = Rank(),
    ) -> None:
        images = split.images.to(device)
        self.images = images if augmentation is None else augmentation.padded(images)
        self.labels = split.labels.to(device)
        self.normalisation = split.normalisation
        self.batch_size = batch_size
        self.seed = seed
        self.augmentation = augmentation
        self.drop_last = drop_last
        self.rank = rank
        self.corrupt: set[str] = set()  # there are no files here

    def __len__(self) -> int:
        """Batches per epoch."""
        shuffle = self.augmentation is not None
        return steps_of(len(self.labels), self.batch_size, shuffle=shuffle, drop_last=self.drop_last)

    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Images [N, C, H, W] and labels [N] of this epoch, from batch `start` on."""
        shuffle = self.augmentation is not None
        indices = batches_of(
            len(self.labels),
            self.batch_size,
            seed=self.seed,
            epoch=epoch,
            shuffle=shuffle,
            drop_last=self.drop_last,
            rank=self.rank,
        )
        device = self.labels.device
        draws = self.augmentation and self.augmentation.draws(len(self.labels), self.seed, epoch, device)
        for on_host in indices[start:]:
            index = on_host.to(device, non_blocking=True)
            if self.augmentation is not None and draws is not None:
                words = self.augmentation(self.images, index, draws)
                yield self.normalisation.of_words(words), self.labels[index]
            else:
                yield self.normalisation(self.images[index]), self.labels[index]
