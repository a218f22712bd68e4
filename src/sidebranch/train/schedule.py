"""The learning rate as a pure function of the step, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math

from sidebranch.config.schema import OptimConfig

ONE_CYCLE_START = 1 / 25  # share of the peak at the first step; torch's OneCycleLR has the same two constants
ONE_CYCLE_END = 1e-4  # share of the start at the last step


def learning_rate(optim: OptimConfig, step: int, steps_per_epoch: int) -> float:
    """The rate at a step, counted from the start of training.

    Warm-up is linear from 0; in one_cycle it follows a cosine.
    """
    total = optim.epochs * steps_per_epoch
    warmup = optim.warmup * total
    if optim.schedule == "one_cycle":
        return optim.lr * _one_cycle(step, total, warmup)
    rising = min(1.0, (step + 1) / warmup) if warmup else 1.0
    if optim.schedule == "cosine":
        return optim.lr * rising * _cosine(1.0, 0.0, (step - warmup) / (total - warmup))
    if optim.schedule == "multi_step":
        passed = sum(step >= milestone * steps_per_epoch for milestone in optim.milestones)
        return optim.lr * rising * optim.gamma**passed
    return optim.lr * rising


def mimicry_scale(ramp: int, step: int, steps_per_epoch: int) -> float:
    """The factor of the mimicry terms at a step: it rises linearly from 0 to 1 over `ramp` epochs."""
    return min(1.0, step / (ramp * steps_per_epoch)) if ramp else 1.0


def temperature(start: float, end: float, step: int, total: int) -> float:
    """T at a step of `total`: in a line from `start` to `end`, which the last one has; `start` if `end` is 0."""
    return start + (end - start) * step / max(1, total - 1) if end else start


def _one_cycle(step: int, total: int, warmup: float) -> float:
    peak = max(warmup - 1, 0.0)
    if step <= peak:
        return _cosine(ONE_CYCLE_START, 1.0, step / peak if peak else 1.0)
    return _cosine(1.0, ONE_CYCLE_START * ONE_CYCLE_END, (step - peak) / (total - 1 - peak))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * min(max(share, 0.0), 1.0))) / 2
