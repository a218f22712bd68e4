"""Which images make up a batch: a function of (seed, epoch, step), cut into equal shares for the ranks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sidebranch.seeding import generator


@dataclass(frozen=True)
class Shard:
    """This process among those that train together.

    Attributes:
        rank: its number, from 0.
        world_size: how many there are.
        neighbours: how many of them share this machine's cores.
    """

    rank: int = 0
    world_size: int = 1
    neighbours: int = 1


def batches_of(
    count: int, batch_size: int, *, seed: int, epoch: int, shuffle: bool, drop_last: bool, shard: Shard
) -> list[Tensor]:
    """This rank's indices, batch by batch.

    Args:
        count: images in the split.
        batch_size: images a step over all ranks together.
        shuffle: draw a new order every epoch; else the order on disk.
        drop_last: leave out a last batch that is not full.

    Returns:
        One int64 tensor a step. A global batch is dealt out to the ranks in turn, so that whichever number of ranks
        trains sees the same global batches; of a small last one, a rank may have no share.
    """
    order = torch.randperm(count, generator=generator("order", seed, epoch)) if shuffle else torch.arange(count)
    steps = steps_of(count, batch_size, shuffle=shuffle, drop_last=drop_last)
    return [batch[shard.rank :: shard.world_size] for batch in order.split(batch_size)[:steps]]


def steps_of(count: int, batch_size: int, *, shuffle: bool, drop_last: bool) -> int:
    """Batches an epoch, whichever number of ranks trains. A last one too small for batch norm is not trained on."""
    whole, rest = divmod(count, batch_size)
    least = batch_size if drop_last else min(batch_size, 2) if shuffle else 1
    return whole + (rest >= least)
