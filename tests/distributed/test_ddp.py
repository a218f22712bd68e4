"""Another loop's DistributedDataParallel around a BranchedModel whose branches are sampled."""

import torch
from torch.nn.parallel import DistributedDataParallel

import sidebranch as sb
from forked import run_ranks
from networks import Little, little_branches

SAMPLER = sb.Bernoulli(0.5, "branch", "step")
STEPS = 6


def _train_one_of_two(folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    torch.manual_seed(0)
    net = sb.attach(Little(), little_branches()).eval()  # frozen batch norm: shares of a batch then add up
    wrapped = DistributedDataParallel(net, find_unused_parameters=True)
    torch.save(_train(wrapped, rank, 2), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def _train(net, rank, world_size):
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    images = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(1))[rank::world_size]
    labels = torch.arange(8)[rank::world_size]
    for moment in range(STEPS):
        draw = SAMPLER(("main", "b1", "b2"), seed=0, epoch=0, step=moment)
        optimizer.zero_grad(set_to_none=True)
        sb.dhm()(net(images, live=draw.live), labels, mimics=draw.mimics).total.backward()
        optimizer.step()
    return torch.cat([each.detach().flatten() for each in net.parameters()])


def test_two_gloo_processes_with_sampling_train_what_one_does(tmp_path):
    drawn = {SAMPLER(("main", "b1", "b2"), seed=0, epoch=0, step=moment).live for moment in range(STEPS)}
    assert len(drawn) > 2
    torch.manual_seed(0)
    alone = _train(sb.attach(Little(), little_branches()).eval(), 0, 1)
    statuses, messages = run_ranks(2, tmp_path, _train_one_of_two, tmp_path)
    assert statuses == [0, 0], messages
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert torch.equal(*results)
    torch.testing.assert_close(results[0], alone, rtol=1e-5, atol=1e-6)
