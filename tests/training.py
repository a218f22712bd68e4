"""What tests of training share."""

import os
import signal
from dataclasses import replace

import torch

from sidebranch.runs import checkpoint
from sidebranch.runs.console import Silent

TIMES = ("seconds", "images_per_second")


class StopAt(Silent):
    """Sends this process a signal when a step is reached."""

    def __init__(self, done, number=signal.SIGINT):
        self.done, self.number = done, number

    def step(self, epoch, step, done, images_per_second, readings):
        if done == self.done:
            os.kill(os.getpid(), self.number)


def changed(config, **groups):
    return replace(config, **{name: replace(getattr(config, name), **fields) for name, fields in groups.items()})


def timeless(rows):
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def weights(folder):
    return checkpoint.load(folder.last)["model"]


def assert_same(one, other):
    assert set(one) == set(other)
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name
