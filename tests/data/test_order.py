import pytest
import torch

from sidebranch.data.loaders.order import Rank, batches_of, steps_of


def indices(rank=Rank(), epoch=0, seed=0, shuffle=True, drop_last=False):
    return batches_of(103, 10, seed=seed, epoch=epoch, shuffle=shuffle, drop_last=drop_last, rank=rank)


def test_every_image_once_an_epoch():
    assert sorted(torch.cat(indices()).tolist()) == list(range(103))
    assert len(indices()) == 11
    assert len(indices(drop_last=True)) == 10


@pytest.mark.parametrize(
    ("count", "shuffle", "world_size", "steps"),
    [(101, True, 1, 10), (102, True, 1, 11), (102, True, 4, 11), (101, False, 4, 11), (3, True, 1, 1)],
)
def test_a_training_batch_too_small_for_batch_norm_is_left_out(count, shuffle, world_size, steps):
    options = {"shuffle": shuffle, "drop_last": False}
    assert steps_of(count, 10, **options) == steps
    rank = Rank(world_size - 1, world_size)
    assert len(batches_of(count, 10, seed=0, epoch=0, **options, rank=rank)) == steps


def test_the_order_is_a_function_of_seed_and_epoch():
    assert torch.equal(torch.cat(indices()), torch.cat(indices()))
    assert not torch.equal(torch.cat(indices()), torch.cat(indices(epoch=1)))
    assert not torch.equal(torch.cat(indices()), torch.cat(indices(seed=1)))
    assert torch.cat(indices(shuffle=False)).tolist() == list(range(103))


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_ranks_share_each_global_batch(world_size):
    shares = [indices(Rank(rank, world_size)) for rank in range(world_size)]
    assert len({len(share) for share in shares}) == 1
    for step, whole in enumerate(indices()[: len(shares[0])]):
        together = torch.cat([share[step] for share in shares])
        assert sorted(together.tolist()) == sorted(whole.tolist())


def test_shards_are_read_one_window_after_another(monkeypatch):
    monkeypatch.setattr("sidebranch.data.loaders.order.WINDOW", 2)
    groups = torch.arange(10).repeat_interleave(10)
    order = torch.cat(batches_of(100, 10, seed=0, epoch=0, shuffle=True, drop_last=False, rank=Rank(), groups=groups))
    assert sorted(order.tolist()) == list(range(100))
    for window in groups[order].split(20):
        assert len(window.unique()) == 2
    assert groups[order].tolist() != sorted(groups[order].tolist())


def test_repeats_come_together_in_an_epoch_of_the_same_length():
    options = {"seed": 0, "epoch": 0, "shuffle": True, "drop_last": False, "rank": Rank()}
    order = torch.cat(batches_of(10, 4, **options, repeats=3))
    assert len(order) == 10
    assert len((order % 10).unique()) == 4
    assert (order % 10)[:9].view(3, 3).eq((order % 10)[:9:3, None]).all()
    assert (order // 10)[:9].tolist() == [0, 1, 2] * 3
