import math
import re
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sidebranch as sb
from sidebranch.core import loss as kernel

NAMES = ("main", "b1", "b2")


def outputs_of(logits, names=NAMES, network=()):
    return sb.Outputs(names, tuple(logits), network)


def random_logits(count=3, n=5, k=7, dtype=torch.float64, scale=3.0):
    return [(torch.randn(n, k, dtype=dtype) * scale).requires_grad_() for _ in range(count)]


def naive_loss(logits, targets, supervision, mimicry, temperature=1.0, outside=None):
    """The papers' formula, one scalar at a time."""
    probabilities = [[softmax(row, 1.0) for row in each.tolist()] for each in logits]
    soft = [[softmax(row, temperature) for row in each.tolist()] for each in logits]
    teachers = soft + ([[softmax(row, temperature) for row in outside.tolist()]] if outside is not None else [])
    n = len(targets)
    total = 0.0
    for c, weight in enumerate(supervision):
        for i in range(n):
            if targets.ndim == 1:
                total += weight * -math.log(probabilities[c][i][int(targets[i])]) / n
            else:
                rows = zip(targets[i].tolist(), probabilities[c][i], strict=True)
                total += weight * -sum(y * math.log(f) for y, f in rows) / n
    for p, teacher in enumerate(teachers):
        for q, student in enumerate(soft):
            if p != q:
                for i in range(n):
                    entropy = -sum(a * math.log(b) for a, b in zip(teacher[i], student[i], strict=True))
                    total += temperature**2 * mimicry[p][q] * entropy / n
    return total


def softmax(row, temperature):
    exponentials = [math.exp((value - max(row)) / temperature) for value in row]
    return [value / sum(exponentials) for value in exponentials]


INDEX = torch.tensor([0, 3, 6, 1, 1])
SOFT = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).softmax(-1)
ONES = [1.0, 1.0, 1.0]
BOTH = [[0, 1, 1], [1, 0, 1], [1, 1, 0]]
DOWN = [[0, 1, 1], [0, 0, 1], [0, 0, 0]]
UP = [[0, 0, 0], [1, 0, 0], [1, 1, 0]]
NONE = [[0, 0, 0], [0, 0, 0], [0, 0, 0]]
METHODS = {
    "baseline": (sb.baseline(), [1.0, 0.0, 0.0], NONE, 1.0),
    "dsl": (sb.dsl(), ONES, NONE, 1.0),
    "dks": (sb.dks(), ONES, BOTH, 1.0),
    "dhm": (sb.dhm(), ONES, BOTH, 1.0),
    "top down": (sb.dks("top_down"), ONES, DOWN, 1.0),
    "bottom up": (sb.dhm("bottom_up"), ONES, UP, 1.0),
    "temperature": (sb.dks(temperature=4.0), ONES, BOTH, 4.0),
    "weight": (sb.dhm(weight=0.3), ONES, [[0.3 * mu for mu in row] for row in BOTH], 1.0),
    "by hand": (
        sb.Objective([1.0, 0.5, 0.25], [[9, 1, 2], [3, 9, 4], [5, 6, 9]], temperature=2.0),
        [1.0, 0.5, 0.25],
        [[9, 1, 2], [3, 9, 4], [5, 6, 9]],
        2.0,
    ),
}


@pytest.mark.parametrize("targets", [INDEX, SOFT], ids=["index", "soft"])
@pytest.mark.parametrize("method", METHODS)
def test_value_equals_the_naive_loop(method, targets):
    objective, supervision, mimicry, temperature = METHODS[method]
    logits = random_logits()
    expected = naive_loss(logits, targets, supervision, mimicry, temperature)
    assert objective(outputs_of(logits), targets).total.item() == pytest.approx(expected, rel=1e-9)
    single = [each.detach().float() for each in logits]
    assert objective(
        outputs_of(single), targets.float() if targets.ndim == 2 else targets
    ).total.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_gradient_equals_finite_differences_of_the_naive_loop(method):
    """A teacher is a constant, so its entry is held at the unperturbed logits: the naive loop pair by pair."""
    objective, supervision, mimicry, temperature = METHODS[method]
    logits = random_logits(n=2, k=3, scale=1.0)
    targets = torch.tensor([0, 2])
    objective(outputs_of(logits), targets).total.backward()
    still = [each.detach().clone() for each in logits]
    step = 1e-5
    for c in range(3):
        for i in range(2):
            for k in range(3):
                moved = []
                for sign in (1, -1):
                    student = still[c].clone()
                    student[i, k] += sign * step
                    value = supervision[c] * naive_loss([student], targets, [1.0], [[0.0]])
                    for p in range(3):
                        if p != c:
                            pair = [[0.0, 0.0], [mimicry[p][c], 0.0]]
                            value += naive_loss([student, still[p]], targets, [0, 0], pair, temperature)
                    moved.append(value)
                assert logits[c].grad[i, k].item() == pytest.approx((moved[0] - moved[1]) / (2 * step), abs=1e-6)


def test_no_gradient_reaches_a_teacher():
    logits = random_logits()
    objective = sb.Objective([0, 0, 0], [[0, 0, 0], [1, 0, 0], [0, 0, 0]])
    objective(outputs_of(logits), INDEX).total.backward()
    assert logits[0].grad.abs().sum() > 0
    assert logits[1].grad.abs().sum() == 0
    assert logits[2].grad.abs().sum() == 0


def test_gradient_equals_that_of_the_code_s_kullback_leibler_form():
    logits = random_logits()
    sb.dks()(outputs_of(logits), INDEX).total.backward()
    ours = [each.grad.clone() for each in logits]
    for each in logits:
        each.grad = None
    total = sum(F.cross_entropy(each, INDEX) for each in logits)
    for p in range(3):
        for q in range(3):
            if p != q:
                teacher = logits[p].detach().softmax(-1)
                total = total + F.kl_div(logits[q].log_softmax(-1), teacher, reduction="batchmean")
    total.backward()
    for mine, each in zip(ours, logits, strict=True):
        torch.testing.assert_close(mine, each.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_finite_at_extreme_logits(dtype):
    logits = [(torch.randn(4, 7) * 1e4).clamp(-1e4, 1e4).to(dtype).requires_grad_() for _ in NAMES]
    loss = sb.dhm()(outputs_of(logits), INDEX[:4])
    loss.total.backward()
    assert loss.total.isfinite()
    assert all(each.grad.isfinite().all() for each in logits)


def test_bfloat16_logits_give_a_float32_loss_also_under_autocast():
    logits = [each.detach().bfloat16() for each in random_logits()]
    expected = sb.dhm()(outputs_of([each.float() for each in logits]), INDEX).total
    with torch.autocast("cpu", torch.bfloat16):
        total = sb.dhm()(outputs_of(logits), INDEX).total
    assert total.dtype == torch.float32
    torch.testing.assert_close(total, expected, rtol=1e-6, atol=0)


def test_loss_of_indifferent_classifiers():
    """Nine entropies of ln K: three to the labels, six to one another. The papers' code starts at 3 ln K: it
    subtracts the teachers' entropies, which are the diagonal."""
    loss = sb.dhm()(outputs_of([torch.zeros(4, 100)] * 3), torch.arange(4))
    assert loss.total.item() == pytest.approx(9 * math.log(100), rel=1e-6)
    divergence = loss.mimicry - loss.mimicry.diagonal()[:, None]
    assert divergence.abs().max() < 1e-5


def test_terms_are_unweighted_detached_and_named_by_row():
    logits = random_logits()
    loss = sb.dks(weight=0.5)(outputs_of(logits), INDEX)
    assert not loss.supervision.requires_grad
    assert not loss.mimicry.requires_grad
    expected = -(logits[1].softmax(-1) * logits[2].log_softmax(-1)).sum(-1).mean()
    assert loss.mimicry[1, 2].item() == pytest.approx(expected.item(), rel=1e-9)
    assert loss.supervision[2].item() == pytest.approx(F.cross_entropy(logits[2], INDEX).item(), rel=1e-9)


def test_eq_11_matching_under_noise_aligns_gradients():
    """E[-phi2(theta + xi) log phi1(theta + xi)] = -phi2 log phi1 - sigma^2 <grad phi2, grad phi1> / phi1 + o(sigma^2),
    up to the second-order terms of each factor alone, which are taken off by averaging them separately."""
    torch.manual_seed(3)
    theta = torch.randn(6, dtype=torch.float64)
    first, second = (torch.randn(4, 6, dtype=torch.float64) for _ in range(2))

    def probability(weights, at):
        return (at @ weights.T).softmax(-1)[..., 1]

    sigma = 1e-2
    noise = torch.randn(200_000, 6, dtype=torch.float64) * sigma
    noise = torch.cat([noise, -noise])
    phi_1, phi_2 = probability(first, theta + noise), probability(second, theta + noise)
    covariance = ((phi_2 - phi_2.mean()) * (phi_1.log() - phi_1.log().mean())).mean()
    at = theta.clone().requires_grad_()
    grads = [torch.autograd.grad(probability(weights, at), at)[0] for weights in (first, second)]
    predicted = sigma**2 * (grads[0] @ grads[1]) / probability(first, theta)
    assert covariance.item() == pytest.approx(predicted.item(), rel=0.02)


def test_masked_mimicry_leaves_supervision():
    logits = random_logits()
    loss = sb.dhm()(outputs_of(logits), INDEX, mimics=("main", "b2"))
    expected = naive_loss(logits, INDEX, ONES, [[0, 0, 1], [0, 0, 0], [1, 0, 0]])
    assert loss.total.item() == pytest.approx(expected, rel=1e-9)


def test_a_branch_that_was_not_computed_takes_its_weights_along():
    logits = random_logits(2)
    objective = METHODS["by hand"][0]
    loss = objective(outputs_of(logits, ("main", "b2"), NAMES), INDEX)
    assert loss.total.item() == pytest.approx(naive_loss(logits, INDEX, [1.0, 0.25], [[0, 2], [5, 0]], 2.0), rel=1e-9)
    assert loss.mimicry.shape == (2, 2)


@pytest.mark.parametrize(
    ("students", "deep", "supervision", "row"),
    [
        ("main", False, [1, 0, 0], [1, 0, 0]),
        ("main", True, [1, 1, 1], [1, 0, 0]),
        ("branches", True, [1, 1, 1], [0, 1, 1]),
        ("all", True, [1, 1, 1], [1, 1, 1]),
    ],
)
@pytest.mark.parametrize("temperature", [1.0, 5.0])
def test_distillation_from_an_outside_teacher(students, deep, supervision, row, temperature):
    teacher = nn.Linear(4, 7).double()
    teacher.train()
    seen = torch.randn(5, 4, dtype=torch.float64)
    logits = random_logits()
    objective = sb.kd(teacher, students, deep_supervision=deep, weight=0.7, temperature=temperature)
    loss = objective(outputs_of(logits), INDEX, images=seen)
    rows = [*NONE, [0.7 * mu for mu in row]]
    expected = naive_loss(logits, INDEX, supervision, rows, temperature, outside=teacher(seen))
    assert loss.total.item() == pytest.approx(expected, rel=1e-9)
    loss.total.backward()
    assert teacher.training
    assert all(each.requires_grad for each in teacher.parameters())
    assert all(each.grad is None for each in teacher.parameters())


def test_any_number_of_classifiers():
    for count in (1, 2, 4, 6):
        logits = random_logits(count)
        names = ("main", *(f"b{i}" for i in range(1, count)))
        mimicry = [[float(p != q) for q in range(count)] for p in range(count)]
        expected = naive_loss(logits, INDEX, [1.0] * count, mimicry)
        assert sb.dks()(outputs_of(logits, names), INDEX).total.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sb.dks("sideways"), "both, top_down, bottom_up"),
        (lambda: sb.dks(temperature=0), "temperature is 0"),
        (lambda: sb.kd(nn.Linear(1, 1), "b7"), "main, branches, all"),
        (lambda: sb.Objective([1, 1], BOTH)(outputs_of(random_logits()), INDEX), "2 weights for the 3 classifiers"),
        (lambda: sb.Objective(ONES, [[0, 1]])(outputs_of(random_logits()), INDEX), "need 3 x 3"),
        (lambda: sb.dks()(outputs_of(random_logits()), INDEX[:4]), r"class indices \[5\]"),
        (lambda: sb.dks()(outputs_of(random_logits()), SOFT[:, :5]), r"probabilities \[5, 7\]"),
        (lambda: sb.dks()(outputs_of(random_logits()), INDEX.float()), "integer class"),
        (
            lambda: sb.dks()(outputs_of([torch.zeros(5, 7), torch.zeros(5, 8)], NAMES[:2]), INDEX),
            "all must have the same",
        ),
        (lambda: sb.dks()(outputs_of(random_logits()), INDEX, mimics=("main", "b7")), "no classifier 'b7'"),
        (lambda: sb.kd(nn.Linear(4, 7))(outputs_of(random_logits()), INDEX), "images=images"),
    ],
)
def test_bad_input_says_what_would_be_right(call, message):
    with pytest.raises(sb.UserError, match=message):
        call()


@pytest.mark.parametrize("method", [sb.dsl, sb.dhm, lambda: sb.dhm(direction="top_down", temperature=2.0)])
def test_branches_that_saw_part_of_the_batch_learn_from_that_part(method):
    torch.manual_seed(3)
    main, b1, b2 = (torch.randn(6, 5, dtype=torch.float64, requires_grad=True) for _ in range(3))
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    objective = method()
    loss = objective(sb.Outputs(("main", "b1", "b2"), (main, b1[:4], b2[:4])), labels)
    part = objective(sb.Outputs(("main", "b1", "b2"), (main[:4], b1[:4], b2[:4])), labels[:4])
    difference = torch.nn.functional.cross_entropy(main, labels) - torch.nn.functional.cross_entropy(
        main[:4], labels[:4]
    )
    assert torch.allclose(loss.total, part.total + difference)
    assert torch.allclose(loss.mimicry, part.mimicry)
    assert torch.allclose(loss.supervision[1:], part.supervision[1:])


def test_the_mimicry_terms_may_be_scaled():
    main, b1 = torch.randn(6, 5), torch.randn(6, 5)
    out, labels = sb.Outputs(("main", "b1"), (main, b1)), torch.tensor([0, 1, 2, 3, 4, 0])
    none, half, full = (sb.dhm()(out, labels, mimicry_scale=scale).total for scale in (0.0, 0.5, 1.0))
    assert torch.allclose(none, sb.dsl()(out, labels).total)
    assert torch.allclose(half, (none + full) / 2)


def test_a_star_in_a_pair_is_everyone_and_a_later_pair_counts():
    names = ("main", "b1", "b2")
    made = partial(sb.Objective, [1, 1, 1], teachers=["average"])
    assert made(mimicry={"average->*": 2}).arrays(names)[1] == (*[(0.0,) * 3] * 3, (2.0,) * 3)
    found = made(mimicry={"* -> *": 0.5, "main->*": 1, "*->b2": 0}).arrays(names)[1]
    assert found == ((0.0, 1.0, 0.0), (0.5, 0.0, 0.0), (0.5, 0.5, 0.0), (0.5, 0.5, 0.0))
    for wrong in ("*", "b3->*", "->", "main->main"):
        with pytest.raises(sb.UserError, match=f"names no pair '{re.escape(wrong)}'"):
            made(mimicry={wrong: 1}).arrays(names)


@pytest.mark.parametrize("lengths", [(4, 6, 6), (6, 4, 5), (6, 5, 4), (6, 6, 4)])
def test_parts_of_a_batch_that_do_not_fit_are_refused(lengths):
    logits = tuple(torch.randn(length, 5) for length in lengths)
    with pytest.raises(sb.UserError, match="all of them the same first rows"):
        sb.dhm()(sb.Outputs(("main", "b1", "b2"), logits), torch.tensor([0, 1, 2, 3, 4, 0]))


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("seen", [7, 3])
def test_any_chunks_and_a_second_sweep_give_the_same(monkeypatch, soft, temperature, seen):
    """However the rows are cut, and whether the gradient is kept or made again in the backward pass."""

    def run():
        torch.manual_seed(4)
        main, b1, b2 = (torch.randn(7, 5, dtype=torch.float64, requires_grad=True) for _ in range(3))
        targets = torch.randn(7, 5).softmax(-1).double() if soft else torch.randint(5, (7,))
        teacher = torch.nn.Linear(4, 5).double()
        images = torch.randn(7, 4, dtype=torch.float64)
        mimicry = [[0, 1, 0.5], [2, 0, 1], [1, 0.3, 0], [0.2, 0.1, 0.4]]
        objective = sb.Objective([1, 0.5, 2], mimicry, temperature, teacher)
        out = sb.Outputs(("main", "b1", "b2"), (main, b1[:seen], b2[:seen]))
        found = objective(out, targets, images=images)
        (3 * found.total).backward()
        return [found.total.detach(), found.supervision, found.mimicry, main.grad, b1.grad, b2.grad]

    whole = run()
    monkeypatch.setattr(kernel, "CHUNK", {"cpu": 2 * 3 * 5})
    chunked = run()
    monkeypatch.setattr(kernel, "KEPT", 0)
    swept = run()
    for one, two, three in zip(whole, chunked, swept, strict=True):
        assert torch.allclose(one, two, atol=1e-12)
        assert torch.allclose(two, three, atol=1e-12)


@pytest.mark.parametrize("kept", [0, 1 << 24])
def test_the_gradient_is_that_of_finite_differences(monkeypatch, kept):
    monkeypatch.setattr(kernel, "KEPT", kept)
    monkeypatch.setattr(kernel, "CHUNK", {"cpu": 20})
    logits = tuple(torch.randn(4, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    objective = sb.dsl()  # no teachers: the stop-gradient is no derivative
    torch.autograd.gradcheck(
        lambda *each: objective(sb.Outputs(("main", "b1"), each), torch.tensor([0, 1, 4, 2])).total, logits
    )
    total = objective(sb.Outputs(("main", "b1"), logits), torch.tensor([0, 1, 4, 2])).total
    once = torch.autograd.grad(total, logits, retain_graph=True)
    again = torch.autograd.grad(total, logits)
    assert all(torch.equal(*pair) for pair in zip(once, again, strict=True))


def test_what_is_on_another_device_is_refused():
    logits = [torch.randn(4, 5) for _ in NAMES]
    with pytest.raises(sb.UserError, match=r"targets are on meta, the logits on cpu; move them: targets.to\('cpu'\)"):
        sb.dhm()(outputs_of(logits), torch.zeros(4, dtype=torch.long, device="meta"))
    taught = {"average": torch.empty(4, 5, device="meta")}
    with pytest.raises(sb.UserError, match="the teacher 'average' has logits on meta, main on cpu"):
        sb.mean_teacher()(outputs_of(logits), torch.zeros(4, dtype=torch.long), taught=taught)


def test_an_outside_teacher_of_other_classes_is_refused_and_a_branched_one_teaches_by_all():
    logits, labels, images = [torch.randn(4, 5)], torch.zeros(4, dtype=torch.long), torch.randn(4, 3)
    with pytest.raises(
        sb.UserError, match=r"the teacher 'teacher' has logits of shape \[\[4, 7\]\]; main has \[4, 5\]"
    ):
        sb.kd(nn.Linear(3, 7))(outputs_of(logits, ("main",)), labels, images=images)

    class Branched(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(3, 5), nn.Linear(3, 5)

        def forward(self, x):
            return outputs_of([self.first(x), self.second(x)], ("main", "b1"))

    net = Branched()
    found = sb.kd(net)(outputs_of(logits, ("main",)), labels, images=images)
    wanted = sb.kd([net.first, net.second])(outputs_of(logits, ("main",)), labels, images=images)
    assert torch.equal(found.total, wanted.total)


def test_an_empty_batch_and_wrong_settings_are_said_in_a_line():
    with pytest.raises(sb.UserError, match="the batch is empty"):
        sb.dhm()(outputs_of([torch.randn(0, 5) for _ in NAMES]), torch.zeros(0, dtype=torch.long))
    with pytest.raises(sb.UserError, match=r"mimics is a sequence of names, such as \('main', 'b1'\)"):
        sb.dhm()(outputs_of([torch.randn(2, 5) for _ in NAMES]), torch.zeros(2, dtype=torch.long), mimics="b1")


def test_methods_are_told_apart_by_their_repr():
    made = [sb.baseline(), sb.dsl(), sb.dhm(), sb.dks("top_down"), sb.one(), sb.dhm(teachers=["average"])]
    assert len({repr(each) for each in made}) == len(made)
