"""The images of each batch: functions of (seed, epoch, step), split evenly over the ranks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sidebranch.seeding import generator

WINDOW = 16  # shards whose images are shuffled together


@dataclass(frozen=True)
class Rank:
    """This process's place among those that train together.

    Attributes:
        index: from 0.
        world_size: number of processes.
        local_size: number of processes on this machine, which share its cores.
    """

    index: int = 0
    world_size: int = 1
    local_size: int = 1


def batches_of(
    count: int,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    shuffle: bool,
    drop_last: bool,
    rank: Rank,
    groups: Tensor | None = None,
    repeats: int = 1,
) -> list[Tensor]:
    """This rank's indices, batch by batch.

    Args:
        count: images in the split.
        batch_size: images per step over all ranks.
        shuffle: draw a new order every epoch; else the order on disk.
        drop_last: leave out a last batch that is not full.
        rank: of this process.
        groups: [count], ascending: the shard that each image is in. The order of the shards is shuffled, then the
            images within each window of shards, so that shards are read one after another.
        repeats: repeated augmentation: each image comes so many times in a row, in an epoch of unchanged length; repeat
            k has index + k * count.

    Returns:
        One int64 tensor per step. The images of a global batch go to the ranks in turn, so that any number of ranks
        sees the same global batches; a rank may have no image of a small last batch.
    """
    order = _shuffled(count, groups, generator("order", seed, epoch)) if shuffle else torch.arange(count)
    if shuffle and repeats > 1:
        kept = order[: -(-count // repeats)]
        order = (kept[:, None] + count * torch.arange(repeats)).flatten()[:count]
    steps = steps_of(count, batch_size, shuffle=shuffle, drop_last=drop_last)
    return [batch[rank.index :: rank.world_size] for batch in order.split(batch_size)[:steps]]


def _shuffled(count: int, groups: Tensor | None, draws: torch.Generator) -> Tensor:
    if groups is None:
        return torch.randperm(count, generator=draws)
    sizes = torch.bincount(groups).tolist()
    parts = torch.arange(count).split(sizes)
    turns = torch.randperm(len(parts), generator=draws).tolist()
    windows = [torch.cat([parts[turn] for turn in turns[at : at + WINDOW]]) for at in range(0, len(turns), WINDOW)]
    return torch.cat([window[torch.randperm(len(window), generator=draws)] for window in windows])


def steps_of(count: int, batch_size: int, *, shuffle: bool, drop_last: bool) -> int:
    """Batches per epoch, for any number of ranks; a last training batch of one image is dropped, as norms need two."""
    full, rest = divmod(count, batch_size)
    least = batch_size if drop_last else min(batch_size, 2) if shuffle else 1
    return full + (rest >= least)


def class_batches(
    labels: Tensor, batch_size: int, instances: int, *, seed: int, epoch: int, rank: Rank
) -> list[Tensor]:
    """This rank's indices, batch by batch, with `instances` images of every class in a batch ("PK sampling").

    In every epoch, the images of a class are shuffled and split into groups of `instances`; the last group is filled
    with further draws from the class. The shuffled groups fill the batches; groups that do not fill one are left out.
    Each group goes to one rank.

    Args:
        labels: [n], of all images.
        batch_size: images per step over all ranks, a multiple of `instances` times the number of ranks.
        instances: images of a class in a batch.
        rank: of this process.
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
    return [batch[rank.index :: rank.world_size].flatten() for batch in batches]


def class_steps(labels: Tensor, batch_size: int, instances: int) -> int:
    """Batches per epoch of `class_batches`."""
    groups = sum(-(-len(members) // instances) for members in _by_class(labels))
    return groups // (batch_size // instances)


def _by_class(labels: Tensor) -> tuple[Tensor, ...]:
    """The indices of each class's images."""
    counts = labels.bincount()
    return labels.argsort(stable=True).split(counts[counts > 0].tolist())
