"""Triplets over several processes: the loss and the gradients of one process with all images."""

import torch

import sidebranch as sb
from forked import run_ranks
from sidebranch.distributed.processes import gather_rows

COUNTS = (6, 2)  # images of each process: a share may be smaller


def batch():
    torch.manual_seed(0)
    return torch.randn(8, 5, dtype=torch.float64), torch.tensor([0, 0, 1, 1, 2, 2, 0, 1])


def loss_of(features, labels, gather=None):
    outputs = sb.Outputs(("main",), (torch.zeros(len(features), 3),), features=(features,))
    return sb.TripletLoss(0.3, gather)(outputs, labels)


def one_of_two(folder):
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    features, labels = (each.split(COUNTS)[rank] for each in batch())
    features.requires_grad_()
    loss = loss_of(features, labels, gather_rows)
    loss.backward()
    torch.save((loss.detach(), features.grad), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_have_the_triplets_of_one(tmp_path):
    features, labels = batch()
    features.requires_grad_()
    whole = loss_of(features, labels)
    whole.backward()
    statuses, messages = run_ranks(2, tmp_path, one_of_two, tmp_path)
    assert statuses == [0, 0], messages
    losses, gradients = zip(*(torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)), strict=True)
    for loss in losses:
        torch.testing.assert_close(loss, whole.detach())
    torch.testing.assert_close(torch.cat(gradients), features.grad)
    torch.manual_seed(0)
    alone = loss_of(*(each[: COUNTS[0]] for each in batch()))
    assert not torch.isclose(alone, losses[0])  # what one share alone would give
