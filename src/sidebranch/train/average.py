"""The moving average of the network as a teacher of the network. In: images. Out: logits that teach, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor

from sidebranch.core.objective import Taught
from sidebranch.errors import UserError, nearest

AVERAGE = "average"


class AverageTeacher:
    """`teacher(images, live, roots)` returns teacher to logits: of all classifiers together, or of one.

    Args:
        teachers: `average`, the mean probability of its live classifiers; `average.main`, `average.b1`, ..., one alone.
        average: of the network; in evaluation mode, without gradient.

    Raises:
        UserError: there is no such teacher.
    """

    def __init__(self, teachers: Sequence[str], average: ModelEmaV3) -> None:
        self.network = average.module
        known = {AVERAGE: None, **{f"{AVERAGE}.{name}": name for name in self.network.names}}
        for name in teachers:
            if name not in known:
                raise UserError(f"objective.teachers: there is no teacher '{name}'; {nearest(name, known)}")
        self.wanted = {name: known[name] for name in teachers}

    @torch.no_grad()
    def __call__(self, images: Tensor, live: Sequence[str], roots: Mapping[str, str]) -> dict[str, Taught]:
        needed = {*live, *filter(None, self.wanted.values())}
        outputs = self.network(images, live=[name for name in self.network.names if name in needed], roots=roots)
        together = [outputs[name] for name in live]
        return {teacher: outputs[name] if name else together for teacher, name in self.wanted.items()}
