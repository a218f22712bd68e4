"""Teachers beyond the classifiers: rows of the mimicry array whose logits the loop gives."""

import pytest
import torch
import torch.nn.functional as F
from test_objective import INDEX, NAMES, ONES, outputs_of, random_logits
from torch import nn

import sidebranch as sb


def with_teachers(logits, targets, mimicry, teachers, temperature):
    """Further teachers, each a list of logits whose probabilities are averaged, by torch's own functions."""
    total = sum(F.cross_entropy(each, targets) for each in logits)
    soft = [each.div(temperature).softmax(-1).detach() for each in logits]
    soft += [torch.stack([each.div(temperature).softmax(-1) for each in group]).mean(0) for group in teachers]
    for p, teacher in enumerate(soft):
        for q, student in enumerate(logits):
            if p != q:
                entropy = -(teacher * student.div(temperature).log_softmax(-1)).sum(-1).mean()
                total = total + temperature**2 * mimicry[p][q] * entropy
    return total


def test_further_teachers_are_further_rows():
    logits, (one, two, three) = random_logits(), [each.detach() for each in random_logits()]
    mimicry = [[0, 1, 2], [3, 0, 1], [1, 1, 0], [0.5, 2, 1], [1, 0, 4]]
    objective = sb.Objective(ONES, mimicry, temperature=3.0, teachers=("one", "both"))
    loss = objective(outputs_of(logits), INDEX, taught={"one": one, "both": (two, three)})
    loss.total.backward()
    found = [each.grad.clone() for each in logits]
    for each in logits:
        each.grad = None
    wanted = with_teachers(logits, INDEX, mimicry, [[one], [two, three]], 3.0)
    wanted.backward()
    assert loss.total.item() == pytest.approx(wanted.item(), rel=1e-9)
    assert loss.mimicry.shape == (5, 3)
    for mine, each in zip(found, logits, strict=True):
        torch.testing.assert_close(mine, each.grad)


def test_the_mean_of_all_probabilities_teaches_as_dhm_does():
    """The mimicry term is linear in the teacher, and that of oneself has no gradient at T = 1."""
    logits = random_logits()
    sb.mean_teacher(weight=3.0, teacher="ensemble")(
        outputs_of(logits), INDEX, taught={"ensemble": logits}
    ).total.backward()
    found = [each.grad.clone() for each in logits]
    for each in logits:
        each.grad = None
    sb.dhm()(outputs_of(logits), INDEX).total.backward()
    for mine, each in zip(found, logits, strict=True):
        torch.testing.assert_close(mine, each.grad)


def test_names_and_sizes_of_further_teachers():
    logits = random_logits()
    objective = sb.dhm(teachers=["average"])
    assert objective.arrays(NAMES)[1][3] == (1.0, 1.0, 1.0)
    named = sb.Objective(ONES, {"average->b1": 2.0}, teachers=["average"])
    assert named.arrays(NAMES)[1] == ((0.0,) * 3, (0.0,) * 3, (0.0,) * 3, (0.0, 2.0, 0.0))
    with pytest.raises(sb.UserError, match="two teachers are called 'b1'"):
        sb.dhm(teachers=["b1"]).arrays(NAMES)
    with pytest.raises(sb.UserError, match="learns from 'average': call it with taught="):
        objective(outputs_of(logits), INDEX)
    with pytest.raises(
        sb.UserError, match=r"the teacher 'average' has logits of shape \[\[5, 6\]\]; main has \[5, 7\]"
    ):
        objective(outputs_of(logits), INDEX, taught={"average": torch.zeros(5, 6)})


@pytest.mark.parametrize("divergence", ["kl", "reverse", "decoupled", "standardised"])
def test_outside_networks_are_rows_of_their_own_behind_the_further_teachers(divergence):
    """As much as the same logits given by the loop; one that is silent leaves the others their rows."""
    logits, images = random_logits(), torch.randn(5, 4, dtype=torch.double)
    first, second = nn.Linear(4, 7).double(), nn.Linear(4, 7).double()
    past = torch.randn(5, 7, dtype=torch.double)
    pairs = {"main->b1": 0.3, "past->main": 0.7, "teacher1->main": 0.5, "teacher2->b2": 2.0}
    both = sb.Objective(ONES, pairs, 2.0, [first, second], ["past"], divergence=divergence)
    assert both.rows(NAMES) == (*NAMES, "past", "teacher1", "teacher2")
    given = sb.Objective(ONES, pairs, 2.0, teachers=["past", "teacher1", "teacher2"], divergence=divergence)
    said = {"teacher1": first(images), "teacher2": second(images)}
    for at_hand in (past, None):
        loss = both(outputs_of(logits), INDEX, images=images, taught={"past": at_hand})
        wanted = given(outputs_of(logits), INDEX, taught={"past": at_hand, **said})
        torch.testing.assert_close(loss.total, wanted.total)
        torch.testing.assert_close(loss.mimicry, wanted.mimicry)
    with pytest.raises(sb.UserError, match="names no pair 'teacher->main'.* or 'teacher1->main'"):
        sb.Objective(ONES, {"teacher->main": 1.0}, 1.0, [first, second]).arrays(NAMES)
    for wrong in ([], None, iter([first])):
        with pytest.raises(sb.UserError, match="kd needs a teacher"):
            sb.kd(wrong)
    with pytest.raises(sb.UserError, match="two teachers are called 'teacher1'"):
        sb.Objective([1, 1], {"teacher1->main": 1.0}, 1.0, [first, second]).arrays(("main", "teacher1"))
