"""The loss of one batch and its gradient in one sweep over the rows, in memory that the number of classes does not fix.

    L = sum_c s_c H(y, f_c) + scale T^2 sum_{p, q} m_pq H(sg f_p, f_q)
    dL/dz_q = s_q (f_q - y) + scale T sum_p m_pq (f_q^T - f_p^T)

f_c = softmax(z_c), f_c^T = softmax(z_c / T), means over the rows. The gradient is another small contraction of what the
loss is made of, so a chunk of rows is read once, and autograd keeps no [C, N, K] intermediate. Where the logits are
many, the backward pass makes the sweep again instead of keeping the gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

CHUNK = {"cpu": 1 << 17, "cuda": 1 << 24}  # elements of [C, rows, K] at a time
KEPT = 1 << 24  # logits, up to which the gradient is kept from the forward pass


class FusedLoss(torch.autograd.Function):
    """`apply(supervision, mimicry, temperature, scale, targets, outside, *logits)` to total, labels, pairs.

    supervision [C] and mimicry [P, C] are constants on the logits' device, in the precision to compute in; mimicry is
    None where nobody teaches. targets: [N] indices or [N, K] probabilities. outside: an outside teacher's probabilities
    [N, K], or None. logits: main's [N, K], the branches' [n, K], n <= N; mimicry is among the first n rows. labels [C]
    and pairs [P, C] are the unweighted terms; only total has a gradient.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        *settings, targets, outside = inputs[:6]
        logits = inputs[6:]
        wanted = any(ctx.needs_input_grad[6:])
        keep = wanted and sum(each.numel() for each in logits) <= KEPT
        total, labels, pairs, grads = _sweep(settings, targets, outside, logits, keep)
        ctx.settings = settings
        ctx.kept = keep
        ctx.save_for_backward(*(grads if keep else (targets, outside, *logits)))
        ctx.mark_non_differentiable(labels, pairs)
        return total, labels, pairs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] (autograd's own protocol)
        ctx: Any, *outputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        if ctx.kept:
            grads = [each * outputs[0] for each in ctx.saved_tensors]
        else:
            targets, outside, *logits = ctx.saved_tensors
            grads = _sweep(ctx.settings, targets, outside, logits, True, outputs[0])[3]
        return (*(None,) * 6, *grads)


def _sweep(
    settings: Sequence[Any],
    targets: Tensor,
    outside: Tensor | None,
    logits: Sequence[Tensor],
    with_gradient: bool,
    factor: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Total, its terms, and its gradient by each of the logits, times a factor."""
    supervision, mimicry, temperature, scale = settings
    count, seen, classes = len(targets), min(map(len, logits)), logits[0].shape[1]
    counts = torch.full_like(supervision, seen)
    counts[0] = count
    labels = torch.zeros_like(supervision)
    pairs = supervision.new_zeros((len(logits) if mimicry is None else len(mimicry), len(logits)))
    by_labels, by_teachers = supervision / counts, None
    if mimicry is not None:
        teaching = mimicry * (scale * temperature / seen)
        by_teachers = torch.diag(teaching.sum(0)) - teaching[: len(logits)], -teaching[len(logits) :]
    if factor is not None:
        factor = factor.to(supervision.dtype)
    # A mean's share underflows in half precision.
    precise = torch.float32 if logits[0].dtype == torch.float16 else logits[0].dtype
    grads = [torch.empty_like(each, dtype=precise) for each in logits] if with_gradient else []
    rows = max(1, CHUNK.get(logits[0].device.type, CHUNK["cpu"]) // (len(logits) * classes))
    ends = sorted({*range(0, seen, rows), *range(seen, count, rows), count})
    for start, stop in pairwise(ends):
        part = logits if start < seen else logits[:1]
        here = slice(0, len(part))
        scores = torch.stack([each[start:stop].to(supervision.dtype) for each in part])
        log_probabilities = scores.log_softmax(-1)
        labels[here] += _to_labels(log_probabilities, targets[start:stop])
        mimics = mimicry is not None and start < seen
        probabilities = log_probabilities.exp()
        warm = temperature != 1.0
        gradient = probabilities
        if with_gradient and (warm or not mimics):
            gradient = probabilities * by_labels[here, None, None]
        if mimics:
            students = (scores / temperature).log_softmax(-1) if warm else log_probabilities
            teachers = students.exp() if warm else probabilities
            flat = students.flatten(1)
            pairs[: len(part)] += teachers.flatten(1) @ flat.T
            beyond = None if outside is None else outside[None, start:stop].to(supervision.dtype).flatten(1)
            if beyond is not None:
                pairs[len(part) :] += beyond @ flat.T
            if with_gradient and by_teachers is not None:
                if warm:
                    gradient.flatten(1).addmm_(by_teachers[0].T, teachers.flatten(1))
                else:  # one contraction for both
                    weights = by_teachers[0].T + torch.diag(by_labels.expand(len(part)))
                    gradient = (weights @ teachers.flatten(1)).view_as(scores)
                if beyond is not None:
                    gradient.flatten(1).addmm_(by_teachers[1].T, beyond)
        if with_gradient:
            _less_labels(gradient, targets[start:stop], by_labels[here])
            if factor is not None:
                gradient *= factor
            for grad, each in zip(grads, gradient, strict=False):
                grad[start:stop] = each
    labels = labels.neg_() / counts
    pairs = pairs.neg_() / seen
    total = labels @ supervision
    if mimicry is not None:
        total = total + scale * temperature**2 * (pairs * mimicry).sum()
    return total, labels, pairs, grads


def _to_labels(log_probabilities: Tensor, targets: Tensor) -> Tensor:
    """[C]: the labels' log-probabilities, summed over the rows."""
    if targets.ndim == 1:
        index = targets.view(1, -1, 1).expand(len(log_probabilities), -1, 1)
        return log_probabilities.gather(2, index).sum((1, 2))
    return torch.einsum("nk,cnk->c", targets.to(log_probabilities.dtype), log_probabilities)


def _less_labels(gradient: Tensor, targets: Tensor, weights: Tensor) -> None:
    """Takes every classifier's weight times the labels off, in place."""
    if targets.ndim == 1:
        index = targets.view(1, -1, 1).expand(len(gradient), -1, 1)
        gradient.scatter_add_(2, index, (-weights).view(-1, 1, 1).expand(-1, len(targets), 1).contiguous())
    else:
        gradient -= weights.view(-1, 1, 1) * targets.to(gradient.dtype)
