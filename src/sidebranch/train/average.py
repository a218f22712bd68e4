"""The moving average of the network as a teacher of the network. In: images. Out: logits that teach, by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sidebranch.core.objective import Taught
from sidebranch.errors import UserError, nearest

AVERAGE = "average"


class AverageTeacher:
    """`teacher(images, live, roots)` returns teacher to logits: of all classifiers together, or of one.

    The average normalises by the statistics of the batch wherever the network does. Its running statistics lag behind
    its weights, most of all in a training's first steps, and are each process's own.

    Args:
        teachers: `average`, the mean probability of its live classifiers; `average.main`, `average.b1`, ..., one alone.
        average: of the network; otherwise in evaluation mode, without gradient.
        network: that trains.

    Raises:
        UserError: there is no such teacher.
    """

    def __init__(self, teachers: Sequence[str], average: ModelEmaV3, network: nn.Module) -> None:
        self.network = average.module
        pairs = zip(self.network.modules(), network.modules(), strict=True)
        self.norms = [(own, theirs) for own, theirs in pairs if isinstance(own, _BatchNorm)]
        for own, _ in self.norms:
            own.momentum = 0.0  # its buffers are those of the average, and no forward pass changes them
        known = {AVERAGE: None, **{f"{AVERAGE}.{name}": name for name in self.network.names}}
        for name in teachers:
            if name not in known:
                raise UserError(f"objective.teachers: there is no teacher '{name}'; {nearest(name, known)}")
        self.wanted = {name: known[name] for name in teachers}

    @torch.no_grad()
    def __call__(self, images: Tensor, live: Sequence[str], roots: Mapping[str, str]) -> dict[str, Taught]:
        needed = {*live, *filter(None, self.wanted.values())}
        with self._statistics_of_the_batch():
            outputs = self.network(images, live=[name for name in self.network.names if name in needed], roots=roots)
        together = [outputs[name] for name in live]
        return {teacher: outputs[name] if name else together for teacher, name in self.wanted.items()}

    @contextmanager
    def _statistics_of_the_batch(self) -> Iterator[None]:
        """Elsewhere the same module is evaluated, and ships."""
        for own, theirs in self.norms:
            own.training = theirs.training
        try:
            yield
        finally:
            for own, _ in self.norms:
                own.training = False
