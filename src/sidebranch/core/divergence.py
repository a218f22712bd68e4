"""How far a student is from a teacher, other than by the cross-entropy of the fused loss.

In: logits of the classifiers [n, K], teachers' logits or probabilities, weights [P, C]. Out: the weighted sum, and the
terms [P, C]. Plain autograd; no gradient reaches a teacher.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FLAT = 1e-3  # logits that spread less are taken to spread so much, which bounds the gradient
DIVERGENCES = ("kl", "standardised", "reverse", "decoupled")


def standardised(logits: Tensor) -> Tensor:
    """Each image's logits [..., K] with mean 0 and standard deviation 1 (Sun et al. 2024).

    A student then need not match the teacher's scale. With s the standard deviation over K and g the gradient with
    respect to the result y: dL/dz = (g - mean(g) - y mean(g y)) / s.
    """
    spread = logits.std(-1, correction=0, keepdim=True)
    return (logits - logits.mean(-1, keepdim=True)) / spread.clamp_min(FLAT)


def reverse(
    logits: Sequence[Tensor], outside: Tensor | None, mimicry: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Kullback-Leibler's divergence of the teacher from the student, KL(f_q || f_p), which seeks the teacher's modes.

        dL/dz_q = T m_pq f_q (log f_q - log f_p - KL(f_q || f_p))

    Args:
        logits: of the classifiers, [n, K] each.
        outside: probabilities of further teachers, [n, T, K].
        mimicry: [P, C] weights, the scale in them.
        temperature: T.

    Returns:
        T^2 times the weighted sum; and the terms [P, C], mean cross-entropies of teacher p to student q, whose diagonal
        is each student's own entropy: term - diagonal[q] is the divergence.
    """
    scores = torch.stack([each / temperature for each in logits]).log_softmax(-1)
    teachers = scores.detach()
    if outside is not None:
        known = outside.to(scores.dtype).clamp_min(torch.finfo(scores.dtype).tiny).log()
        teachers = torch.cat([teachers, known.transpose(0, 1)])
    students = scores.exp()
    count = scores.shape[1]
    crossed = -torch.einsum("pnk,qnk->pq", teachers, students) / count
    entropies = -(students * scores).sum((1, 2)) / count
    total = temperature**2 * (mimicry * (crossed - entropies)).sum()
    return total, crossed.detach()


def decoupled(
    logits: Sequence[Tensor],
    outside: Tensor | None,
    mimicry: Tensor,
    temperature: float,
    labels: Tensor,
    weights: tuple[float, float],
) -> tuple[Tensor, Tensor]:
    """Decoupled knowledge distillation (Zhao et al. 2022): alpha KL(b_p || b_q) + beta KL(g_p || g_q).

    b = (f_y, 1 - f_y) is the probability of the label y and of all else, g = f_k / (1 - f_y), k != y, the distribution
    of all else. Kullback-Leibler's divergence is alpha = 1 and beta = 1 - f_py. With a weight m, over n images,

        dL/dz_qy = T m / n alpha (f_qy - f_py)
        dL/dz_qk = T m / n (beta (g_qk - g_pk) - alpha g_qk (f_qy - f_py)),   k != y

    Args:
        logits: of the classifiers, [n, K] each.
        outside: probabilities of further teachers, [n, T, K].
        mimicry: [P, C] weights, the scale in them.
        temperature: T.
        labels: [n] class indices.
        weights: alpha and beta.

    Returns:
        T^2 times the weighted sum; and the terms [P, C]: mean divergences, 0 on the diagonal.
    """
    alpha, beta = weights
    scores = torch.stack([each / temperature for each in logits])
    shares, others = _parted(scores, labels)
    taught_shares, taught_others = shares.detach(), others.detach()
    if outside is not None:
        known = outside.to(scores.dtype).clamp_min(torch.finfo(scores.dtype).tiny).log().transpose(0, 1)
        more_shares, more_others = _parted(known, labels)
        taught_shares = torch.cat([taught_shares, more_shares])
        taught_others = torch.cat([taught_others, more_others])
    divergences = alpha * _divergences(taught_shares, shares) + beta * _divergences(taught_others, others)
    return temperature**2 * (mimicry * divergences).sum(), divergences.detach()


def _parted(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the label and of all else, [C, n, 2], and of the classes that are not it, [C, n, K - 1]."""
    places = torch.arange(scores.shape[-1] - 1, device=scores.device)
    at, rest = labels[:, None], places + (places >= labels[:, None])
    at, others = at.expand(len(scores), -1, -1), scores.gather(-1, rest.expand(len(scores), -1, -1))
    shares = torch.cat([scores.gather(-1, at), others.logsumexp(-1, keepdim=True)], -1)
    return shares.log_softmax(-1), others.log_softmax(-1)


def _divergences(teachers: Tensor, students: Tensor) -> Tensor:
    """KL(p || q) of every teacher [P, n, J] and student [C, n, J] in log-probabilities, the mean over n: [P, C]."""
    probabilities, count = teachers.exp(), students.shape[1]
    own = (probabilities * teachers).sum((1, 2))
    return (own[:, None] - torch.einsum("pnk,qnk->pq", probabilities, students)) / count
