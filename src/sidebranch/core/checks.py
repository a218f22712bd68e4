"""What an objective is called with, checked: outputs, targets, teachers' logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sidebranch.errors import UserError


def check_batch(names: Sequence[str], logits: Sequence[Tensor], targets: Tensor) -> None:
    """Shapes, dtypes and devices; the values of labels only on a CPU, where reading them does not wait.

    Raises:
        UserError: something does not fit.
    """
    if not len(logits[0]):
        raise UserError("the batch is empty; a loss needs at least one image")
    if targets.device != logits[0].device:
        device = logits[0].device
        raise UserError(f"targets are on {targets.device}, the logits on {device}; move them: targets.to('{device}')")
    main, last = logits[0].shape, logits[-1].shape
    for name, each in zip(names, logits, strict=True):
        count = main[0] if name == names[0] else last[0]
        if each.ndim != 2 or each.shape[1:] != main[1:] or len(each) != count or len(each) > main[0]:
            raise UserError(
                f"'{name}' has logits of shape {list(each.shape)}, 'main' {list(main)}; all must have the same [N, K] "
                f"(where branches see a part of the batch, all of them the same first rows)"
            )
    if targets.ndim == 2 and targets.is_floating_point() and targets.shape == main:
        return
    is_integer = not targets.is_floating_point() and not targets.is_complex() and targets.dtype != torch.bool
    if targets.ndim == 1 and is_integer and len(targets) == main[0]:
        _check_range(targets, main[1])
        return
    raise UserError(
        f"targets are {targets.dtype} of shape {list(targets.shape)}; logits of shape {list(main)} need integer class "
        f"indices [{main[0]}] or floating-point probabilities {list(main)}"
    )


def _check_range(labels: Tensor, classes: int) -> None:
    if labels.device.type != "cpu" or torch.compiler.is_compiling() or not len(labels):
        return
    wrong = labels[(labels < 0) | (labels >= classes)]
    if len(wrong):
        raise UserError(
            f"a target is {int(wrong[0])}, but the logits have {classes} classes, 0 to {classes - 1}; there is no "
            f"ignore_index: leave such images out of the batch"
        )


def check_teacher(name: str, given: Any, main: Tensor) -> list[Tensor]:
    """A teacher's logits, as a list: of one, of several, or of all classifiers of a network's outputs.

    Raises:
        UserError: they are not as main's, [N, K] on its device.
    """
    given = getattr(given, "logits", given)
    found = [given] if isinstance(given, Tensor) else list(given)
    if not found or any(each.shape != main.shape for each in found):
        shapes = [list(each.shape) for each in found]
        raise UserError(f"the teacher '{name}' has logits of shape {shapes}; main has {list(main.shape)}")
    if away := [each.device for each in found if each.device != main.device]:
        raise UserError(f"the teacher '{name}' has logits on {away[0]}, main on {main.device}; move them there")
    return found
