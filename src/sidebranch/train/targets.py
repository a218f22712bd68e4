"""From labels to what the loss takes: mixed images, and probabilities."""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.transforms import v2

from sidebranch.config.data import DataConfig


def soft_targets(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """Labels [N] or probabilities [N, K], unchanged; with smoothing, probabilities [N, K]."""
    if not smoothing:
        return labels
    mixed = nn.functional.one_hot(labels, num_classes).float() if labels.ndim == 1 else labels
    return mixed * (1 - smoothing) + smoothing / num_classes


def mixing(config: DataConfig, num_classes: int) -> v2.Transform | None:
    """Images [N, C, H, W] and labels [N] to mixed images and probabilities [N, K]; None without mixup and CutMix.

    With both, one of them is drawn per step. Draws come from torch's generator, which each step seeds by (seed, epoch,
    step, rank): every process draws its own factor.
    """
    kinds: list[v2.Transform] = [v2.MixUp(alpha=config.mixup, num_classes=num_classes)] if config.mixup else []
    kinds += [v2.CutMix(alpha=config.cutmix, num_classes=num_classes)] if config.cutmix else []
    return v2.RandomChoice(kinds) if kinds else None
