import pytest
import torch

from sidebranch.data.order import Shard, batches_of, steps_of


def indices(shard=Shard(), epoch=0, seed=0, shuffle=True, drop_last=False):
    return batches_of(103, 10, seed=seed, epoch=epoch, shuffle=shuffle, drop_last=drop_last, shard=shard)


def test_every_image_once_an_epoch():
    assert sorted(torch.cat(indices()).tolist()) == list(range(103))
    assert len(indices()) == steps_of(103, 10, False) == 11
    assert len(indices(drop_last=True)) == steps_of(103, 10, True) == 10


def test_the_order_is_a_function_of_seed_and_epoch():
    assert torch.equal(torch.cat(indices()), torch.cat(indices()))
    assert not torch.equal(torch.cat(indices()), torch.cat(indices(epoch=1)))
    assert not torch.equal(torch.cat(indices()), torch.cat(indices(seed=1)))
    assert torch.cat(indices(shuffle=False)).tolist() == list(range(103))


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_ranks_share_each_global_batch(world_size):
    shares = [indices(Shard(rank, world_size)) for rank in range(world_size)]
    for step, whole in enumerate(indices()):
        together = torch.cat([share[step] for share in shares])
        assert sorted(together.tolist()) == sorted(whole.tolist())
