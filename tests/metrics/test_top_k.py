import pytest
import torch

from sidebranch.metrics import top_k_hits


def test_equals_counting_by_hand():
    scores = torch.randn(3, 50, 20)
    labels = torch.randint(0, 20, (50,))
    hits = top_k_hits(scores, labels, (1, 5))
    for row, k in enumerate((1, 5)):
        for c in range(3):
            ranks = [
                sorted(range(20), key=lambda j: -one[j]).index(label)
                for one, label in zip(scores[c].tolist(), labels, strict=True)
            ]
            assert hits[row, c] == sum(rank < k for rank in ranks)


@pytest.mark.parametrize("classes", [1, 2, 4])
def test_k_beyond_the_classes_counts_everything(classes):
    labels = torch.zeros(6, dtype=torch.int64)
    assert top_k_hits(torch.randn(1, 6, classes), labels, (1, 5))[1].item() == 6
