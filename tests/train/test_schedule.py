import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR, OneCycleLR

from sidebranch.config.schema import OptimConfig
from sidebranch.train.schedule import learning_rate, mimicry_scale, temperature

STEPS = 7


def trace(optim):
    return [learning_rate(optim, step, STEPS) for step in range(optim.epochs * STEPS)]


def torch_trace(make, epochs, per_epoch=1):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    scheduler = make(optimizer)
    rates = []
    for _ in range(epochs * STEPS // per_epoch):
        rates += [optimizer.param_groups[0]["lr"]] * per_epoch
        optimizer.step()
        scheduler.step()
    return rates


def test_multi_step_equals_torch():
    ours = trace(OptimConfig(lr=0.1, epochs=10, schedule="multi_step", milestones=(3, 7), gamma=0.2))
    assert ours == pytest.approx(torch_trace(lambda o: MultiStepLR(o, [3, 7], 0.2), 10, STEPS))


def test_cosine_equals_torch():
    ours = trace(OptimConfig(lr=0.1, epochs=10, schedule="cosine"))
    assert ours == pytest.approx(torch_trace(lambda o: CosineAnnealingLR(o, 70), 10))


@pytest.mark.parametrize("share", [0.2, 0.3, 0.5])
def test_one_cycle_equals_torch(share):
    ours = trace(OptimConfig(lr=0.1, epochs=10, schedule="one_cycle", warmup=share))
    theirs = torch_trace(lambda o: OneCycleLR(o, 0.1, total_steps=70, pct_start=share, cycle_momentum=False), 10)
    assert ours == pytest.approx(theirs)


@pytest.mark.parametrize("schedule", ["constant", "multi_step", "cosine"])
def test_warm_up_is_linear_and_reaches_the_peak(schedule):
    ours = trace(OptimConfig(lr=0.1, epochs=10, schedule=schedule, milestones=(8,), warmup=0.1))
    assert ours[:7] == pytest.approx([0.1 * (i + 1) / 7 for i in range(7)])
    assert max(ours) == pytest.approx(0.1)


def test_mimicry_rises_in_a_line_over_its_ramp():
    assert [mimicry_scale(2, step, 5) for step in (0, 5, 10, 99)] == [0.0, 0.5, 1.0, 1.0]
    assert mimicry_scale(0, 0, 5) == 1.0


def test_the_temperature_goes_in_a_line_to_its_end():
    assert [temperature(3, 1, step, 5) for step in range(5)] == [3.0, 2.5, 2.0, 1.5, 1.0]
    assert [temperature(3, 0, step, 5) for step in (0, 4)] == [3.0, 3.0]
    assert temperature(3, 1, 0, 1) == 3.0
