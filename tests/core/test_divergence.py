"""Other divergences than the fused one: formulas against loops, gradients against finite differences."""

import math
from functools import partial

import pytest
import torch
from test_objective import INDEX, ONES, naive_loss, outputs_of, random_logits, softmax

import sidebranch as sb
from sidebranch.core.divergence import decoupled, reverse, standardised

PAIRS = [[0, 1, 2], [3, 0, 1], [1, 1, 0], [0.5, 2, 1]]


def naive_reverse(logits, outside, mimicry, temperature):
    """sum_pq m_pq T^2 sum_k f_qk log(f_qk / f_pk), one scalar at a time, the mean over the images."""
    soft = [[softmax(row, temperature) for row in each.tolist()] for each in (*logits, outside)]
    total = 0.0
    for p, teacher in enumerate(soft):
        for q, student in enumerate(soft[: len(logits)]):
            if p != q:
                for taught, says in zip(teacher, student, strict=True):
                    terms = [f * math.log(f / wanted) for f, wanted in zip(says, taught, strict=True)]
                    total += temperature**2 * mimicry[p][q] * sum(terms) / len(teacher)
    return total


def plainly_standardised(row):
    mean = sum(row) / len(row)
    spread = math.sqrt(sum((value - mean) ** 2 for value in row) / len(row))
    return [(value - mean) / spread for value in row]


def naive_decoupled(logits, outside, targets, mimicry, temperature, alpha, beta):
    """sum_pq m_pq T^2 (alpha KL(b_p || b_q) + beta KL(g_p || g_q)), one scalar at a time, the mean over the images."""
    soft = [[softmax(row, temperature) for row in each.tolist()] for each in (*logits, outside)]
    total = 0.0
    for p, teacher in enumerate(soft):
        for q, student in enumerate(soft[: len(logits)]):
            if p != q:
                for taught, says, label in zip(teacher, student, targets.tolist(), strict=True):
                    a, b = taught[label], says[label]
                    shares = a * math.log(a / b) + (1 - a) * math.log((1 - a) / (1 - b))
                    others = 0.0
                    for k in set(range(len(says))) - {label}:
                        one, other = taught[k] / (1 - a), says[k] / (1 - b)
                        others += one * math.log(one / other)
                    total += temperature**2 * mimicry[p][q] * (alpha * shares + beta * others) / len(teacher)
    return total


def objective_of(divergence, mimicry=PAIRS, temperature=2.0, supervision=ONES):
    return sb.Objective(supervision, mimicry, temperature, teachers=["average"], divergence=divergence)


def test_reverse_is_the_naive_loop():
    logits, (average, *_) = random_logits(), random_logits()
    found = objective_of("reverse")(outputs_of(logits), INDEX, taught={"average": average.detach()}).total
    labels = naive_loss(logits, INDEX, ONES, [[0.0] * 3] * 3)
    assert found.item() == pytest.approx(labels + naive_reverse(logits, average, PAIRS, 2.0), rel=1e-9)


def test_decoupled_is_the_naive_loop():
    logits, (average, *_) = random_logits(), random_logits()
    objective = objective_of("decoupled")
    objective.decoupled = 2.0, 5.0
    for targets in (INDEX, torch.nn.functional.one_hot(INDEX, 7).double() * 0.8 + 0.2 / 7):
        found = objective(outputs_of(logits), targets, taught={"average": average.detach()})
        mutual = naive_decoupled(logits, average, INDEX, PAIRS, 2.0, 2.0, 5.0)
        assert found.total.item() - found.supervision.sum().item() == pytest.approx(mutual, rel=1e-9)
        assert found.mimicry.diagonal().abs().max() < 1e-12


def test_decoupled_with_kullback_leiblers_weights_is_its_divergence():
    """alpha = 1 and beta = 1 - f_py, of one image."""
    logits = random_logits(2, n=1)
    beta = 1 - float(logits[0].detach().softmax(-1)[0, 3])
    objective = sb.Objective([0, 0], {"main->b1": 1.0}, divergence="decoupled", decoupled=(1.0, beta))
    found = objective(outputs_of(logits, ("main", "b1")), torch.tensor([3])).total.item()
    p, q = (each.detach().softmax(-1) for each in logits)
    assert found == pytest.approx(float((p * (p / q).log()).sum()), rel=1e-9)


def test_standardised_is_the_naive_loop():
    logits, (average, *_) = random_logits(), random_logits()
    found = objective_of("standardised")(outputs_of(logits), INDEX, taught={"average": average.detach()}).total
    plain = [torch.tensor([plainly_standardised(row) for row in each.tolist()]).double() for each in (*logits, average)]
    labels = naive_loss(logits, INDEX, ONES, [[0.0] * 3] * 3)
    mutual = naive_loss(plain[:3], INDEX, [0, 0, 0], PAIRS, 2.0, outside=plain[3])
    assert found.item() == pytest.approx(labels + mutual, rel=1e-6)


@pytest.mark.parametrize("divergence", ["reverse", "standardised", "decoupled"])
def test_gradients_are_those_of_finite_differences(divergence):
    """From the further teacher alone, which is a constant."""
    logits, (average, *_) = random_logits(n=2, k=4, scale=1.0), random_logits(n=2, k=4, scale=1.0)
    objective = objective_of(divergence, {"average->main": 1.0, "average->b2": 0.5}, supervision=[1, 0, 1])
    targets, taught = torch.tensor([0, 2]), {"average": average.detach()}
    assert torch.autograd.gradcheck(
        lambda *moved: objective(outputs_of(moved), targets, taught=taught).total, logits, eps=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("divergence", ["reverse", "standardised", "decoupled"])
def test_no_gradient_reaches_a_teacher(divergence):
    logits = random_logits()
    objective = sb.Objective([0, 0, 0], {"b1->main": 1.0}, divergence=divergence)
    objective(outputs_of(logits), INDEX).total.backward()
    assert logits[0].grad.abs().sum() > 0
    assert logits[1].grad.abs().sum() == logits[2].grad.abs().sum() == 0


def test_closed_forms_of_the_gradients():
    (logits,) = random_logits(1)
    upstream = torch.randn(5, 7, dtype=torch.float64)
    result = standardised(logits)
    (found,) = torch.autograd.grad(result, logits, upstream)
    spread = logits.std(-1, correction=0, keepdim=True)
    centred = upstream - upstream.mean(-1, keepdim=True) - result * (upstream * result).mean(-1, keepdim=True)
    torch.testing.assert_close(found, centred / spread)
    students, temperature = random_logits(2), 3.0
    total, _ = reverse(students, None, torch.tensor([[0.0, 0.0], [2.0, 0.0]], dtype=torch.float64), temperature)
    (found,) = torch.autograd.grad(total, students[0])
    q, p = (each.detach().div(temperature).softmax(-1) for each in students)
    gap = q.log() - p.log()
    wanted = temperature * 2.0 * q * (gap - (q * gap).sum(-1, keepdim=True)) / len(q)
    torch.testing.assert_close(found, wanted)
    pairs = torch.tensor([[0.0, 0.0], [2.0, 0.0]], dtype=torch.float64)
    total, _ = decoupled(students, None, pairs, temperature, INDEX, (3.0, 5.0))
    (found,) = torch.autograd.grad(total, students[0])
    is_label = torch.nn.functional.one_hot(INDEX, 7).bool()
    others = [(each * ~is_label) / (1 - each[is_label])[:, None] for each in (q, p)]
    gap = (q - p)[is_label][:, None]
    wanted = torch.where(is_label, 3.0 * gap, 5.0 * (others[0] - others[1]) - 3.0 * others[0] * gap)
    torch.testing.assert_close(found, temperature * 2.0 / len(q) * wanted)


def test_a_students_scale_does_not_matter_once_standardised():
    logits, (average, *_) = random_logits(), random_logits()
    objective = objective_of("standardised", supervision=[0, 0, 0])
    taught = {"average": average.detach()}
    scaled = [(5.0 * each + 2.0) for each in logits]
    first, second = (objective(outputs_of(each), INDEX, taught=taught).total for each in (logits, scaled))
    assert first.item() == pytest.approx(second.item(), rel=1e-9)


@pytest.mark.parametrize("divergence", ["kl", "reverse", "standardised", "decoupled"])
def test_branches_may_have_seen_fewer_images(divergence):
    logits = random_logits()
    fewer = [logits[0], logits[1][:3], logits[2][:3]]
    objective = sb.Objective([0, 0, 0], [[0, 1, 1], [1, 0, 1], [1, 1, 0]], divergence=divergence)
    found = objective(outputs_of(fewer), INDEX).total
    wanted = objective(outputs_of([each[:3] for each in logits]), INDEX[:3]).total
    assert found.item() == pytest.approx(wanted.item())


def test_an_unknown_divergence_is_refused():
    with pytest.raises(sb.UserError, match="the divergence is 'l2'; choose from: kl, standardised, reverse, decoupled"):
        sb.Objective([1.0], [[0.0]], divergence="l2")
    assert sb.dhm().divergence == "kl"


@pytest.mark.parametrize("divergence", ["kl", "standardised", "reverse", "decoupled"])
def test_a_step_may_have_a_temperature_of_its_own(divergence):
    """The outside teacher's and the further teachers' too."""
    out = sb.Outputs(("main", "b1"), (torch.randn(6, 5), torch.randn(6, 5)))
    labels, taught = torch.tensor([0, 1, 2, 3, 4, 0]), {"average": torch.randn(6, 5)}
    made = partial(sb.dhm, teachers=["average", "ensemble"], divergence=divergence)
    found, wanted = made()(out, labels, temperature=3, taught=taught), made(temperature=3)(out, labels, taught=taught)
    assert torch.equal(found.total, wanted.total)
    assert not torch.allclose(found.total, made()(out, labels, taught=taught).total)
    for wrong in (0, -1):
        with pytest.raises(sb.UserError, match="it must be a number above 0"):
            made()(out, labels, temperature=wrong, taught=taught)


def test_a_divergence_that_nobody_knows_is_refused_when_it_is_used():
    objective = sb.dhm()
    objective.divergence = "l2"
    with pytest.raises(sb.UserError, match="the divergence is 'l2'; choose from"):
        objective(sb.Outputs(("main",), (torch.randn(2, 5),)), torch.tensor([0, 1]))
