"""Which images make up a batch: a function of (seed, epoch, step), cut into equal shares for the ranks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sidebranch.seeding import generator

WINDOW = 16  # shards whose images are mixed


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
    count: int,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    shuffle: bool,
    drop_last: bool,
    shard: Shard,
    groups: Tensor | None = None,
    repeats: int = 1,
) -> list[Tensor]:
    """This rank's indices, batch by batch.

    Args:
        count: images in the split.
        batch_size: images a step over all ranks together.
        shuffle: draw a new order every epoch; else the order on disk.
        drop_last: leave out a last batch that is not full.
        groups: [count], ascending: the shard that each image lies in. Whole shards are put in a new order, and the
            images of a window of them, so that shards are read one after another.
        repeats: how often an image comes, one after another, in a shuffled epoch of so many images all the same; its
            second and further times are count, 2 count, ... above its index (repeated augmentation).

    Returns:
        One int64 tensor a step. A global batch is dealt out to the ranks in turn, so that whichever number of ranks
        trains sees the same global batches; of a small last one, a rank may have no share.
    """
    order = _shuffled(count, groups, generator("order", seed, epoch)) if shuffle else torch.arange(count)
    if shuffle and repeats > 1:
        kept = order[: -(-count // repeats)]
        order = (kept[:, None] + count * torch.arange(repeats)).flatten()[:count]
    steps = steps_of(count, batch_size, shuffle=shuffle, drop_last=drop_last)
    return [batch[shard.rank :: shard.world_size] for batch in order.split(batch_size)[:steps]]


def _shuffled(count: int, groups: Tensor | None, draws: torch.Generator) -> Tensor:
    if groups is None:
        return torch.randperm(count, generator=draws)
    sizes = torch.bincount(groups).tolist()
    parts = torch.arange(count).split(sizes)
    turns = torch.randperm(len(parts), generator=draws).tolist()
    windows = [torch.cat([parts[turn] for turn in turns[at : at + WINDOW]]) for at in range(0, len(turns), WINDOW)]
    return torch.cat([window[torch.randperm(len(window), generator=draws)] for window in windows])


def steps_of(count: int, batch_size: int, *, shuffle: bool, drop_last: bool) -> int:
    """Batches an epoch, whichever number of ranks trains. A last one too small for batch norm is not trained on."""
    whole, rest = divmod(count, batch_size)
    least = batch_size if drop_last else min(batch_size, 2) if shuffle else 1
    return whole + (rest >= least)


def class_batches(
    labels: Tensor, batch_size: int, instances: int, *, seed: int, epoch: int, shard: Shard
) -> list[Tensor]:
    """This rank's indices, batch by batch: of every class that a batch has, `instances` images ("PK sampling").

    A class's images are put in a new order every epoch and cut into groups of so many; its last group is filled up
    with images drawn anew from all of its own. The groups, in a new order, fill the batches; what does not fill one is
    left out. Groups are dealt out to the ranks whole.

    Args:
        labels: [n], of all images.
        batch_size: images a step over all ranks together, a multiple of `instances` and of the ranks' number.
        instances: images of a class.
    """
    draws = generator("order", seed, epoch)
    groups = []
    for members in _by_class(labels):
        shuffled = members[torch.randperm(len(members), generator=draws)]
        lacking = -len(members) % instances
        more = members[torch.randint(len(members), (lacking,), generator=draws)]
        groups.append(torch.cat([shuffled, more]).view(-1, instances))
    every = torch.cat(groups)
    mixed = every[torch.randperm(len(every), generator=draws)]
    steps = class_steps(labels, batch_size, instances)
    batches = mixed[: steps * (batch_size // instances)].view(steps, -1, instances)
    return [batch[shard.rank :: shard.world_size].flatten() for batch in batches]


def class_steps(labels: Tensor, batch_size: int, instances: int) -> int:
    """Batches an epoch of `class_batches`."""
    groups = sum(-(-len(members) // instances) for members in _by_class(labels))
    return groups // (batch_size // instances)


def _by_class(labels: Tensor) -> tuple[Tensor, ...]:
    """The indices of each class's images."""
    counts = labels.bincount()
    return labels.argsort(stable=True).split(counts[counts > 0].tolist())
