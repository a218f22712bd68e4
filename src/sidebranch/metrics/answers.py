"""What classifiers answered over a validation set, in sums: how sure and how right, which classes, which confusions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float

BINS = 15  # of confidence, of equal width; as in Guo et al., "On calibration of modern neural networks", 2017
MOST_CLASSES = 2000  # with more, confusions are not counted: the table would take too much memory
PAIRS, EXAMPLES, KEPT = 1000, 3, 6000  # confusions that are listed; images of each; images that are kept for them
SIDE = 64  # pixels of an example's longer side, at most


class Answers:
    """Sums over batches of the answers of each column (a classifier, or the ensemble).

    Args:
        columns: their names, main first.
        device: of the sums.
        num_classes: K.
        keeps_examples: keep small copies of images that main has wrong, about as many of every class.

    Attributes:
        bins: [columns, 15, 3]: the number of images by confidence, of right answers, the sum of confidences.
        right: [columns, K]: right answers by class.
        images: [K]: images by class.
        confused: [K, K]: main's answers (second) by class (first); empty with too many classes.
    """

    def __init__(
        self, columns: Sequence[str], device: torch.device, num_classes: int, keeps_examples: bool = True
    ) -> None:
        self.columns, self.num_classes = tuple(columns), num_classes
        precise = torch.float32 if device.type == "mps" else torch.float64
        side = num_classes if num_classes <= MOST_CLASSES else 0
        self.bins = torch.zeros(len(self.columns), BINS, 3, dtype=precise, device=device)
        self.right = torch.zeros(len(self.columns), num_classes, dtype=precise, device=device)
        self.images = torch.zeros(num_classes, dtype=precise, device=device)
        self.confused = torch.zeros(side, side, dtype=precise, device=device)
        self.examples: dict[tuple[int, int], list[Tensor]] = {}
        self._left = [max(EXAMPLES, KEPT // num_classes) if keeps_examples else 0] * num_classes

    @torch.no_grad()
    def add(self, scores: Float[Tensor, "c n k"], labels: Tensor) -> None:
        """Adds one batch of log-probabilities, with [N] class indices."""
        answers = _first(scores)
        confidence = scores.gather(-1, answers[..., None]).squeeze(-1).exp()
        is_right = answers == labels
        place = (confidence * BINS).long().clamp_(0, BINS - 1)
        facts = torch.stack([torch.ones_like(confidence), is_right.to(confidence), confidence], -1).to(self.bins)
        self.bins.scatter_add_(1, place[..., None].expand(-1, -1, 3), facts)
        self.right.scatter_add_(1, labels.expand(len(scores), -1), is_right.to(self.right))
        self.images += torch.bincount(labels, minlength=self.num_classes)
        if len(self.confused):
            pairs = torch.bincount(labels * self.num_classes + answers[0], minlength=self.num_classes**2)
            self.confused += pairs.view_as(self.confused)

    def keep_examples(
        self, images: Float[Tensor, "n channels h w"], scores: Float[Tensor, "c n k"], labels: Tensor
    ) -> None:
        """Keeps small copies of images that main has wrong, some of each confusion. Waits for the device."""
        if not any(self._left):
            return
        answers = _first(scores)[0]
        wrong = (answers != labels).nonzero().flatten()
        for place, label, answer in zip(wrong.tolist(), labels[wrong].tolist(), answers[wrong].tolist(), strict=True):
            found = self.examples.setdefault((label, answer), [])
            if len(found) < EXAMPLES and self._left[label]:
                step = max(1, -(-max(images.shape[-2:]) // SIDE))
                found.append(images[place, :, ::step, ::step].float().cpu())
                self._left[label] -= 1

    def read(self, classes: Sequence[str]) -> dict[str, Any]:
        """Plain values, for a file; errors in percent. `examples` of a confusion are left to the caller. Waits.

        Args:
            classes: K names.
        """
        images = self.images.tolist()
        wrong = self.confused.clone().fill_diagonal_(0).flatten() if len(self.confused) else self.confused
        counts, order = wrong.topk(min(PAIRS, len(wrong)))
        return {
            "columns": list(self.columns),
            "classes": list(classes),
            "images": [int(each) for each in images],
            "bins": dict(zip(self.columns, self.bins.tolist(), strict=True)),
            "errors": {
                name: [100 * (1 - right / count) if count else None for right, count in zip(row, images, strict=True)]
                for name, row in zip(self.columns, self.right.tolist(), strict=True)
            },
            "confused": [
                {"class": pair // self.num_classes, "answer": pair % self.num_classes, "count": int(count)}
                for count, pair in zip(counts.tolist(), order.tolist(), strict=True)
                if count
            ],
        }


def _first(scores: Tensor) -> Tensor:
    """[C, N] answers. Of equal scores, the one that the errors count: `topk` takes it by how many it looks for."""
    return scores.topk(min(5, scores.shape[-1])).indices[..., 0]
