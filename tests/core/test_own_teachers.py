"""Teachers made of the classifiers themselves, and the methods of the field that are values of the two arrays."""

import pytest
import torch
import torch.nn.functional as F
from test_objective import BOTH, INDEX, NAMES, ONES, naive_loss, outputs_of, random_logits

import sidebranch as sb

ROW = [[0, 0, 0], [0, 0, 0], [0, 0, 0], [1, 2, 3]]


def test_the_ensemble_is_the_mean_of_logits():
    logits = random_logits()
    found = sb.Objective(ONES, ROW, 3.0, teachers=["ensemble"])(outputs_of(logits), INDEX).total
    mean = torch.stack([each.detach() for each in logits]).mean(0)
    assert found.item() == pytest.approx(naive_loss(logits, INDEX, ONES, ROW, 3.0, outside=mean), rel=1e-9)


@pytest.mark.parametrize("winner", [0, 1, 2])
def test_the_best_is_the_classifier_with_the_lowest_loss(winner):
    logits = random_logits()
    with torch.no_grad():
        logits[winner][torch.arange(5), INDEX] += 20.0
    found = sb.Objective(ONES, ROW, teachers=["best"])(outputs_of(logits), INDEX).total
    wanted = naive_loss(logits, INDEX, ONES, ROW, outside=logits[winner].detach())
    assert found.item() == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("teacher", ["ensemble", "best"])
def test_no_gradient_reaches_what_it_is_made_of(teacher):
    logits = random_logits()
    sb.Objective([0, 0, 0], {f"{teacher}->b1": 1.0}, teachers=[teacher])(outputs_of(logits), INDEX).total.backward()
    assert logits[0].grad.abs().sum() == logits[2].grad.abs().sum() == 0
    assert logits[1].grad is not None


def test_classifiers_that_do_not_take_part_are_not_in_it():
    logits = random_logits()
    objective = sb.Objective([0, 0, 0], {"ensemble->main": 1.0}, teachers=["ensemble"])
    found = objective(outputs_of(logits), INDEX, mimics=["main", "b1"]).total
    mean = (logits[0] + logits[1]).detach() / 2
    assert found.item() == pytest.approx(
        naive_loss(logits, INDEX, [0, 0, 0], [[0] * 3] * 3 + [[1, 0, 0]], outside=mean)
    )


def test_images_that_only_main_saw_are_not_taught():
    logits = random_logits()
    fewer = [logits[0], logits[1][:3], logits[2][:3]]
    objective = sb.Objective([0, 0, 0], ROW, teachers=["ensemble"])
    found = objective(outputs_of(fewer), INDEX).total
    wanted = objective(outputs_of([each[:3] for each in logits]), INDEX[:3]).total
    assert found.item() == pytest.approx(wanted.item())


def test_a_silent_teacher_does_not_teach():
    logits, other = random_logits(), torch.randn(5, 7, dtype=torch.float64)
    objective = sb.dhm(teachers=["average", "past"])
    found = objective(outputs_of(logits), INDEX, taught={"average": other, "past": None})
    wanted = sb.dhm(teachers=["average"])(outputs_of(logits), INDEX, taught={"average": other})
    assert found.total.item() == pytest.approx(wanted.total.item(), rel=1e-9)
    assert found.mimicry.shape == (5, 3)


def test_where_nobody_teaches_the_terms_keep_their_shape():
    logits, other = random_logits(), torch.randn(5, 7, dtype=torch.float64)
    for objective in (sb.Objective(ONES, [[0] * 3] * 4, teachers=["average"]), sb.dhm(weight=0, teachers=["average"])):
        found = objective(outputs_of(logits), INDEX, taught={"average": other})
        assert found.mimicry.shape == (4, 3)
        assert found.mimicry.abs().sum() == 0


def test_nobody_takes_part():
    logits = random_logits()
    found = sb.one()(outputs_of(logits), INDEX, mimics=())
    assert found.total.item() == pytest.approx(sb.dsl()(outputs_of(logits), INDEX).total.item())
    with pytest.raises(sb.UserError, match="mimics names no classifier 'b4'"):
        sb.one()(outputs_of(logits), INDEX, mimics=["b4"])


def test_byot_is_main_that_teaches_the_branches():
    supervision, mimicry = sb.byot(weight=0.3).arrays(NAMES)
    assert supervision == pytest.approx((1.0, 0.7, 0.7))
    assert mimicry == ((0.0, 0.3, 0.3), (0.0,) * 3, (0.0,) * 3)
    assert sb.byot().temperature == 3.0


def test_the_best_of_the_batch_teaches_alone_and_has_nothing_to_learn():
    logits = random_logits()
    losses = [torch.nn.functional.cross_entropy(each, INDEX) for each in logits]
    winner = min(range(3), key=lambda place: losses[place].item())
    loss = sb.best_teacher(weight=2.0)(outputs_of(logits), INDEX)
    mimicry = [[0] * 3] * 3 + [[2, 2, 2]]
    wanted = naive_loss(logits, INDEX, ONES, mimicry, 3.0, outside=logits[winner].detach())
    assert loss.total.item() == pytest.approx(wanted, rel=1e-9)
    given = torch.autograd.grad(loss.total, logits, retain_graph=True)
    alone = torch.autograd.grad(losses[winner], logits[winner])[0]
    torch.testing.assert_close(given[winner], alone, rtol=1e-9, atol=1e-12)


def test_one_learns_from_the_ensemble_of_logits():
    logits = random_logits()
    found = sb.one(weight=2.0)(outputs_of(logits), INDEX).total
    mean = torch.stack([each.detach() for each in logits]).mean(0)
    mimicry = [[0] * 3] * 3 + [[2, 2, 2]]
    assert found.item() == pytest.approx(naive_loss(logits, INDEX, ONES, mimicry, 3.0, outside=mean), rel=1e-9)


def test_pcl_learns_from_the_ensemble_and_the_averages():
    """The mean of probabilities has the gradient of DHM's array divided by C: that of oneself is 0."""
    logits, averages = random_logits(), [each.detach() for each in random_logits()]
    sb.pcl(weight=2.0)(outputs_of(logits), INDEX, taught={"average": averages}).total.backward()
    soft = [each.detach().div(3).softmax(-1) for each in logits], [each.div(3).softmax(-1) for each in averages]
    for each in logits:
        found, each.grad = each.grad, None
        total = F.cross_entropy(each, INDEX)
        for teachers in soft:
            mean = torch.stack(teachers).mean(0)
            total = total - 9 * 2.0 * (mean * each.div(3).log_softmax(-1)).sum(-1).mean()
        total.backward()
        torch.testing.assert_close(found, each.grad)


def test_dhm_keeps_its_pairs_beside_a_further_teacher():
    assert [list(map(int, row)) for row in sb.dhm(teachers=["ensemble"]).arrays(NAMES)[1]] == [*BOTH, [1, 1, 1]]
