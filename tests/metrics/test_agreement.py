import pytest
import torch

from sidebranch.metrics.agreement import Agreement


def test_pairs_are_compared_as_a_naive_loop_does():
    names, agreement = ("main", "b1", "b2"), Agreement(("main", "b1", "b2"), torch.device("cpu"))
    assert agreement.read() == {}
    batches = [torch.randn(3, count, 4).log_softmax(-1) for count in (5, 2)]
    for scores in batches:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            agreement.add(scores)
    scores, found = torch.cat(batches, 1), agreement.read()
    for p, one in enumerate(names):
        for q, other in enumerate(names):
            if p == q:
                continue
            divergence = sum(
                float(scores[p, n, k].exp() * (scores[p, n, k] - scores[q, n, k])) for n in range(7) for k in range(4)
            )
            assert found[f"kl/{one}->{other}"] == pytest.approx(divergence / 7, abs=1e-6)
            if p < q:
                differ = sum(int(scores[p, n].argmax() != scores[q, n].argmax()) for n in range(7))
                assert found[f"differ/{one}-{other}"] == pytest.approx(100 * differ / 7)
    assert len(found) == 9


def test_one_classifier_has_no_pairs():
    agreement = Agreement(("main",), torch.device("cpu"))
    agreement.add(torch.randn(1, 3, 4).log_softmax(-1))
    assert agreement.read() == {}
