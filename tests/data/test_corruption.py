import pytest
import torch

import sidebranch as sb
from sidebranch.data.corruption import corrupt_labels

LABELS = torch.arange(10_000) % 10


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.5, 1.0])
def test_wrong_labels_are_exactly_the_rate(rate):
    corrupted = corrupt_labels(LABELS, 10, rate, "wrong", seed=0)
    assert (corrupted != LABELS).sum() == round(rate * len(LABELS))
    assert corrupted.min() >= 0
    assert corrupted.max() <= 9


def test_random_labels_are_right_one_time_in_k():
    corrupted = corrupt_labels(LABELS, 10, 0.5, "random", seed=0)
    assert (corrupted != LABELS).float().mean().item() == pytest.approx(0.45, abs=0.01)


@pytest.mark.parametrize("mode", ["random", "wrong"])
def test_new_labels_are_spread_evenly(mode):
    corrupted = corrupt_labels(torch.zeros(90_000, dtype=torch.int64), 10, 1.0, mode, seed=1)
    counts = torch.bincount(corrupted, minlength=10)[1:]
    assert (counts - counts.float().mean()).abs().max() < 0.05 * counts.float().mean()


def test_the_same_seed_corrupts_the_same_and_leaves_the_original():
    before = LABELS.clone()
    first = corrupt_labels(LABELS, 10, 0.5, "wrong", seed=4)
    assert torch.equal(LABELS, before)
    assert torch.equal(first, corrupt_labels(LABELS, 10, 0.5, "wrong", seed=4))
    assert not torch.equal(first, corrupt_labels(LABELS, 10, 0.5, "wrong", seed=5))


def test_bad_input():
    with pytest.raises(sb.UserError, match=r"rate is 1.2"):
        corrupt_labels(LABELS, 10, 1.2, "wrong", 0)
    with pytest.raises(sb.UserError, match="at least 2 classes"):
        corrupt_labels(LABELS, 1, 0.2, "wrong", 0)
