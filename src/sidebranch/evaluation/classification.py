"""Errors of every classifier, and of their ensemble, on a validation set."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from sidebranch.data.datasets import Dataset, Loader
from sidebranch.device import FullBatches
from sidebranch.errors import UserError
from sidebranch.metrics.agreement import Agreement
from sidebranch.metrics.answers import Answers
from sidebranch.metrics.meter import COUNT, Meter

SHOWN = 40  # of main's confusions, with images


def columns_of(names: Sequence[str]) -> tuple[str, ...]:
    """The classifiers, and their ensemble if there is more than one."""
    return (*names, "ensemble") if len(names) > 1 else tuple(names)


@dataclass(frozen=True)
class Validation:
    """What one pass over a validation set gives.

    Attributes:
        errors: classifier, or "ensemble", to metric to value.
        agreement: of pairs of classifiers: "kl/b1->main", the mean Kullback-Leibler divergence in nats, and
            "differ/main-b1", the images with different answers in percent.
    """

    errors: dict[str, dict[str, float]]
    agreement: dict[str, float]


@torch.no_grad()
def evaluate(
    network: nn.Module,
    names: Sequence[str],
    loader: Loader,
    device: torch.device,
    reduce: Callable[[Tensor], Tensor] | None = None,
    *,
    num_classes: int,
    answers: Answers | None = None,
) -> Validation:
    """Loss in nats, top-1 and (of more than 5 classes) top-5 error in percent, of each classifier and the ensemble.

    The ensemble averages the classifiers' probabilities.

    Args:
        network: images to `Outputs`.
        names: of its classifiers.
        loader: every image of the validation set once, over all ranks.
        device: of the loader's batches.
        reduce: sums a tensor over the ranks.
        num_classes: K.
        answers: of the columns; filled, with examples of what this rank has wrong.

    Raises:
        UserError: no image could be read.
    """
    was_training = network.training
    network.eval()
    meter, agreement = Meter(columns_of(names), device, num_classes), Agreement(names, device)
    full_batches = FullBatches()
    for images, labels in loader.batches():
        if not len(labels):  # this rank has no image of the last batch, or all are unreadable
            continue
        with full_batches(len(labels)):
            outputs = network(images)
        scores = torch.stack([logits.float() for logits in outputs.logits]).log_softmax(-1)
        if len(names) > 1:
            agreement.add(scores)
            scores = torch.cat([scores, scores.logsumexp(0, keepdim=True) - math.log(len(names))])
        if answers is not None:
            answers.add(scores, labels)
            answers.keep_examples(images, scores, labels)
        losses = -scores.gather(2, labels.view(1, -1, 1).expand(len(scores), -1, 1)).mean((1, 2))
        meter.add(meter.columns, scores, labels, losses)
    network.train(was_training)
    if reduce is not None:
        meter.sums, agreement.sums = reduce(meter.sums), reduce(agreement.sums)
        if answers is not None:
            for name in ("bins", "right", "images", "confused"):
                setattr(answers, name, reduce(getattr(answers, name)))
    if not float(meter.sums[COUNT].sum()):
        raise UserError("no validation image could be read")
    return Validation(meter.read(), agreement.read())


def answers_as_table(answers: Answers, dataset: Dataset) -> dict[str, Any]:
    """Plain values for JSON: answers in sums, and main's confusions with a few images each, as JPEG in base64."""
    table, known = answers.read(dataset.classes), dataset.described
    mean, std = (torch.tensor(known[each]).view(-1, 1, 1) for each in ("mean", "std"))
    for place, pair in enumerate(table["confused"]):
        images = answers.examples.get((pair["class"], pair["answer"]), []) if place < SHOWN else []
        pair["examples"] = [_jpeg(image * std + mean) for image in images]
    return table


def _jpeg(image: Tensor) -> str:
    """An image, [C, H, W] in [0, 1], as JPEG in base64."""
    pixels = (255 * image).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).squeeze(-1).numpy()
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "JPEG", quality=88)
    return base64.b64encode(data.getvalue()).decode()
