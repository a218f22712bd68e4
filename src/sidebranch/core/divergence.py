"""How far a student is from a teacher, other than by the cross-entropy of the fused loss.

In: logits of the classifiers [n, K], teachers' logits or probabilities, weights [P, C]. Out: the weighted sum, and the
terms [P, C]. Plain autograd; no gradient reaches a teacher.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

DIVERGENCES = ("kl", "standardised", "reverse")


def standardised(logits: Tensor) -> Tensor:
    """Each image's logits [..., K] with mean 0 and standard deviation 1 (Sun et al. 2024).

    A student then need not match the teacher's scale. With s the standard deviation over K and g the gradient with
    respect to the result y: dL/dz = (g - mean(g) - y mean(g y)) / s.
    """
    spread = logits.std(-1, correction=0, keepdim=True)
    return (logits - logits.mean(-1, keepdim=True)) / spread.clamp_min(torch.finfo(logits.dtype).eps)


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
