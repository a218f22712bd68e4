"""The network's own predictions of the epoch before as its teacher (PS-KD, Kim et al. 2021).

In: numbers of images and the network's outputs. Out: logits that teach, by name. The loader gives the numbers in place
of labels, which are looked up here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sidebranch.core.model import Outputs
from sidebranch.core.objective import Taught
from sidebranch.errors import UserError, nearest

PAST = "past"
KNOWN = {PAST: False, f"{PAST}.main": True}  # whether it is main's prediction alone


class PastTeacher:
    """Remembers every image's prediction until the network sees the image again.

    The paper's teacher is main alone and its weight rises over the whole training, which is `objective.mimicry_ramp`.
    Differs: the paper mixes teacher and labels into one target; here the teacher has a weight of its own, and several
    classifiers may teach by the mean of their probabilities.

    Args:
        teachers: `past`, the mean probability of the live classifiers; `past.main`, main's.
        labels: [N], of all training images.
        num_classes: K.
        device: of the batches.

    Attributes:
        labels: [N], on the device.
        predictions: [T, N, K] float16 log-probabilities of each teacher, zeros where there is none yet: what a
            checkpoint has to keep.

    Raises:
        UserError: there is no such teacher.
    """

    def __init__(self, teachers: Sequence[str], labels: Tensor, num_classes: int, device: torch.device) -> None:
        for name in teachers:
            if name not in KNOWN:
                raise UserError(f"objective.teachers: there is no teacher '{name}'; {nearest(name, KNOWN)}")
        self.teachers = tuple(teachers)
        self.labels = labels.to(device)
        self.predictions = torch.zeros(len(teachers), len(labels), num_classes, dtype=torch.float16, device=device)

    def of(self, numbers: Tensor, epoch: int, outputs: Outputs) -> dict[str, Taught]:
        """What teaches images [n]; nothing in the first epoch, 0. An image without a prediction yet has this step's."""
        if not epoch:
            return dict.fromkeys(self.teachers)
        taught = {}
        for name, known in zip(self.teachers, self.predictions, strict=True):
            before = known[numbers]
            is_new = ~before.any(-1, keepdim=True)
            taught[name] = torch.where(is_new, self._says(name, len(numbers), outputs), before)
        return taught

    def remember(self, numbers: Tensor, outputs: Outputs) -> None:
        """Keeps the predictions [n, K] of images [n]."""
        for name, kept in zip(self.teachers, self.predictions, strict=True):
            kept[numbers] = self._says(name, len(numbers), outputs)

    @torch.no_grad()
    def _says(self, name: str, count: int, outputs: Outputs) -> Tensor:
        heard = [outputs.logits[0]] if KNOWN[name] else outputs.logits
        mean = torch.stack([each[:count].float().softmax(-1) for each in heard]).mean(0)
        return mean.clamp_min(torch.finfo(mean.dtype).tiny).log().to(self.predictions.dtype)
