from collections import Counter

import pytest

import sidebranch as sb

NAMES = ("main", "b1", "b2", "b3")


def draws(sampler, count=2000, per="epoch"):
    moments = [(i, 0) if per == "epoch" else (0, i) for i in range(count)]
    return [sampler(NAMES, seed=0, epoch=epoch, step=step) for epoch, step in moments]


def test_fixed_is_everyone():
    assert sb.Fixed()(NAMES, seed=1, epoch=2, step=3) == sb.Draw(NAMES, NAMES)


@pytest.mark.parametrize("per", ["epoch", "step"])
def test_bernoulli_keeps_each_branch_with_its_probability_independently(per):
    drawn = draws(sb.Bernoulli(0.3, per=per), per=per)
    for branch in NAMES[1:]:
        assert sum(branch in each.mimics for each in drawn) / 2000 == pytest.approx(0.3, abs=0.03)
    both = sum({"b1", "b2"} <= set(each.mimics) for each in drawn) / 2000
    assert both == pytest.approx(0.09, abs=0.02)


def test_main_always_takes_part():
    for sampler in (sb.Bernoulli(0.0, "branch"), sb.Categorical({"none": 1.0}, "branch")):
        assert sampler(NAMES, seed=0, epoch=0, step=0) == sb.Draw(("main",), ("main",))


def test_dropping_mimicry_keeps_the_branch_alive():
    for each in draws(sb.Bernoulli(0.5, "mimicry"), 20):
        assert each.live == NAMES
    for each in draws(sb.Bernoulli(0.5, "branch"), 20):
        assert each.live == each.mimics


def test_per_epoch_draws_last_the_epoch_and_per_step_draws_do_not():
    for kind in (sb.Bernoulli, lambda **kw: sb.Categorical({"b1": 0.5, "b2+b3": 0.5}, **kw)):
        slow, quick = kind(per="epoch"), kind(per="step")
        assert len({slow(NAMES, seed=0, epoch=5, step=step) for step in range(50)}) == 1
        assert len({slow(NAMES, seed=0, epoch=epoch, step=0) for epoch in range(50)}) > 1
        assert len({quick(NAMES, seed=0, epoch=5, step=step) for step in range(50)}) > 1


def test_categorical_draws_its_distribution():
    wanted = {"b1": 0.2, "b1 + b3": 0.5, "none": 0.3}
    counts = Counter(each.mimics for each in draws(sb.Categorical(wanted)))
    assert set(counts) == {("main", "b1"), ("main", "b1", "b3"), ("main",)}
    assert counts[("main", "b1", "b3")] / 2000 == pytest.approx(0.5, abs=0.04)
    assert counts[("main",)] / 2000 == pytest.approx(0.3, abs=0.04)


def test_a_draw_is_a_function_of_the_moment():
    sampler = sb.Bernoulli(0.5, "branch", "step")
    first = [sampler(NAMES, seed=0, epoch=1, step=step) for step in range(30)]
    sampler(NAMES, seed=9, epoch=9, step=9)
    assert [sampler(NAMES, seed=0, epoch=1, step=step) for step in reversed(range(30))][::-1] == first
    assert [sampler(NAMES, seed=1, epoch=1, step=step) for step in range(30)] != first


def test_who_may_be_missing_is_known_beforehand():
    assert sb.Fixed().computes_all
    assert sb.Bernoulli(0.5, "mimicry").computes_all
    assert not sb.Bernoulli(0.5, "branch").computes_all
    assert not sb.Categorical({"b1": 1.0}, "branch").computes_all


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sb.Bernoulli(1.5), r"must lie in \[0, 1\]"),
        (lambda: sb.Bernoulli(drops="all"), "mimicry, branch"),
        (lambda: sb.Bernoulli(per="batch"), "epoch, step"),
        (lambda: sb.Categorical({"b1": 0.5}), "sum to 1"),
        (lambda: sb.Categorical({}), "sum to 1"),
        (lambda: sb.Categorical({"b4": 1.0})(NAMES, seed=0, epoch=0, step=0), "no branch 'b4'; did you mean"),
    ],
)
def test_bad_input_says_what_would_be_right(call, message):
    with pytest.raises(sb.UserError, match=message):
        call()
