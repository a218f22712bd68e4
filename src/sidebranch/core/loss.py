"""The loss of one batch and its gradient, computed together in chunks of rows, so that memory stays bounded.

    L = sum_c s_c H(y, f_c) + scale T^2 sum_{p, q} m_pq H(sg f_p, f_q)
    dL/dz_q = s_q (f_q - y) + scale T sum_p m_pq (f_q^T - f_p^T)

f_c = softmax(z_c), f_c^T = softmax(z_c / T), means over the rows. Loss and gradient are contractions of the same
probabilities, so a chunk of rows is read once and autograd keeps no [C, N, K] intermediate. Above `KEPT` logits the
backward pass recomputes the gradient instead of keeping it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

CHUNK = {"cpu": 1 << 20, "cuda": 1 << 24}  # elements of a chunk [rows, C, K]
KEPT = 1 << 24  # up to this many logits, the forward pass keeps the gradient


class FusedLoss(torch.autograd.Function):
    """`apply(supervision, mimicry, temperature, scale, targets, outside, *logits)` returns total, labels, pairs.

    supervision [C] and mimicry [P, C] are constants on the logits' device, in the precision of the computation; mimicry
    is None if nobody teaches. targets: [N] int64 class indices or [N, K] probabilities. outside: the probabilities
    [N, T, K] of the T further teachers, the last rows of mimicry, or None. logits: main's [N, K] and the branches'
    [n, K], n <= N; mimicry uses the first n rows. labels [C] and pairs [P, C] are the unweighted terms; only total has
    a gradient.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        *settings, targets, outside = inputs[:6]
        logits = inputs[6:]
        wanted = any(ctx.needs_input_grad[6:])
        keep = wanted and sum(each.numel() for each in logits) <= KEPT
        total, labels, pairs, gradient = _sweep(settings, targets, outside, logits, keep)
        ctx.settings = settings
        ctx.lengths = [len(each) for each in logits]
        ctx.kept = keep
        ctx.save_for_backward(*((gradient,) if keep else (targets, outside, *logits)))
        ctx.mark_non_differentiable(labels, pairs)
        return total, labels, pairs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] (autograd's own protocol)
        ctx: Any, *outputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        if ctx.kept:
            gradient = ctx.saved_tensors[0] * outputs[0]  # a copy: autograd may add to it in place
        else:
            targets, outside, *logits = ctx.saved_tensors
            gradient = _sweep(ctx.settings, targets, outside, logits, True, outputs[0])[3]
        return (*(None,) * 6, *(each[:length] for each, length in zip(gradient, ctx.lengths, strict=True)))


def _sweep(
    settings: Sequence[Any],
    targets: Tensor,
    outside: Tensor | None,
    logits: Sequence[Tensor],
    with_gradient: bool,
    factor: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Total, its terms, and the gradient [C, N, K] with respect to the logits times `factor`; empty if not wanted."""
    supervision, mimicry, temperature, scale = settings
    count, seen, classes = len(targets), min(map(len, logits)), logits[0].shape[1]
    counts = torch.full_like(supervision, seen)
    counts[0] = count
    labels = torch.zeros_like(supervision)
    pairs = supervision.new_zeros((len(logits) if mimicry is None else len(mimicry), len(logits)))
    by_labels, by_teachers = torch.diag(supervision / counts), None
    if mimicry is not None:
        teaching = mimicry * (scale * temperature / seen)
        by_teachers = torch.diag(teaching.sum(0)) - teaching[: len(logits)].T, -teaching[len(logits) :].T
    # One image's share of a mean underflows in half precision.
    precise = torch.float32 if logits[0].dtype == torch.float16 else logits[0].dtype
    gradient = logits[0].new_empty(len(logits), count if with_gradient else 0, classes, dtype=precise)
    rows = max(1, CHUNK.get(logits[0].device.type, CHUNK["cpu"]) // (len(logits) * classes))
    ends = sorted({*range(0, seen, rows), *range(seen, count, rows), count})
    for start, stop in pairwise(ends):
        mimics = mimicry is not None and start < seen
        live = len(logits) if start < seen else 1
        scores = torch.stack([each[start:stop].to(supervision.dtype) for each in logits[:live]], 1)
        scores -= scores.amax(-1, keepdim=True)
        probabilities, log_sums = _softmax(scores)
        expected = targets[start:stop]
        labels[:live] += _at_labels(scores, expected) - log_sums.sum(0)
        weights = by_labels[:live, :live]
        teachers = probabilities
        beyond = None
        if mimics:
            if temperature != 1.0:
                scores /= temperature
                teachers, log_sums = _softmax(scores)
            pairs[:live] += _contracted(teachers, scores) - log_sums.sum(0)
            if outside is not None:
                beyond = outside[start:stop].to(supervision.dtype)
                pairs[live:] += _contracted(beyond, scores) - log_sums.sum(0)
        if not with_gradient:
            continue
        if by_teachers is None or not mimics:
            part = _mixed(weights, probabilities)
        elif teachers is probabilities:  # one contraction for both
            part = _mixed(weights + by_teachers[0], probabilities)
        else:
            part = _mixed(weights, probabilities).add_(_mixed(by_teachers[0], teachers))
        if by_teachers is not None and beyond is not None:
            part += _mixed(by_teachers[1], beyond)
        _subtract_labels(part, expected, weights.diagonal())
        if factor is not None:
            part *= factor.to(part.dtype)
        gradient[:live, start:stop] = part.transpose(0, 1)
    labels = labels.neg_() / counts
    pairs = pairs.neg_() / seen
    total = labels @ supervision
    if mimicry is not None:
        total = total + scale * temperature**2 * (pairs * mimicry).sum()
    return total, labels, pairs, gradient


def _softmax(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities [r, C, K], and the log-sum-exp [r, C] of scores whose largest is 0."""
    probabilities = scores.softmax(-1)
    return probabilities, probabilities.amax(-1).log_().neg_()


def _contracted(teachers: Tensor, students: Tensor) -> Tensor:
    """teachers [r, P, K] times students [r, C, K], summed over rows and classes: [P, C]."""
    return torch.bmm(teachers, students.mT).sum(0)


def _mixed(weights: Tensor, probabilities: Tensor) -> Tensor:
    """weights [C, P] times [r, P, K]."""
    return torch.bmm(weights.expand(len(probabilities), -1, -1), probabilities)


def _at_labels(scores: Tensor, targets: Tensor) -> Tensor:
    """Scores at the labels, summed over the rows: [C]."""
    if targets.ndim == 1:
        return scores.gather(2, _index(targets, scores)).sum((0, 2))
    return _contracted(targets[:, None].to(scores.dtype), scores)[0]


def _subtract_labels(gradient: Tensor, targets: Tensor, weights: Tensor) -> None:
    """Subtract weight x targets of every classifier, in place."""
    if targets.ndim == 1:
        index = _index(targets, gradient)
        gradient.scatter_add_(2, index, (-weights).view(1, -1, 1).expand_as(index))
    else:
        gradient -= weights.view(-1, 1) * targets[:, None].to(gradient.dtype)


def _index(targets: Tensor, scores: Tensor) -> Tensor:
    return targets.view(-1, 1, 1).expand(-1, scores.shape[1], 1)
