"""Augmentation in batches, on whatever device the images are: pad and crop, flip, normalise.

In: uint8 images [N, C, H, W] and their indices. Out: float32 images, augmented as (seed, epoch, index) say.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from sidebranch.errors import UserError
from sidebranch.seeding import uniform


@dataclass(frozen=True)
class Normalisation:
    """Channel means and standard deviations, in units of the full range [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        mean, std = _per_channel(self.mean, images.device), _per_channel(self.std, images.device)
        return images.float().sub_(mean).div_(std)


@lru_cache(maxsize=64)
def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """In units of a byte, on the device once: a copy from the host for every batch would wait for it."""
    return torch.tensor(values, device=device).mul(255).view(1, -1, 1, 1)


@dataclass(frozen=True)
class Augmentation:
    """Random crop out of the padded image, then a random horizontal flip.

    Args:
        padding: pixels on each side before cropping to the old size; 0 turns cropping off.
        padding_mode: "zeros" (black) or "reflect".
        flip: whether half of the images are mirrored.
    """

    padding: int = 0
    padding_mode: Literal["zeros", "reflect"] = "zeros"
    flip: bool = False

    def __call__(
        self, images: UInt8[Tensor, "n c h w"], index: Int[Tensor, " n"], seed: int, epoch: int
    ) -> UInt8[Tensor, "n c h w"]:
        """The images of these indices as they look in this epoch, laid out channels-last."""
        count, _, height, width = images.shape
        device = images.device
        top = self._draw(index, "top", seed, epoch)
        left = self._draw(index, "left", seed, epoch)
        rows = top[:, None] + torch.arange(height, device=device)
        columns = left[:, None] + torch.arange(width, device=device)
        if self.flip:
            mirrored = uniform(index, "flip", seed, epoch) < 0.5
            columns = torch.where(mirrored[:, None], columns.flip(1), columns)
        if self.padding:
            images = self._pad(images)
        each = torch.arange(count, device=device)
        cropped = images[each[:, None, None], :, rows[:, :, None], columns[:, None, :]]
        return cropped.permute(0, 3, 1, 2)

    def _draw(self, index: Tensor, what: str, seed: int, epoch: int) -> Tensor:
        """Offsets in 0 ... 2 * padding, one an index."""
        return (uniform(index, what, seed, epoch) * (2 * self.padding + 1)).long()

    def _pad(self, images: Tensor) -> Tensor:
        sides = (self.padding,) * 4
        if self.padding_mode == "zeros":
            return F.pad(images, sides)
        if self.padding >= min(images.shape[2:]):
            size = f"{images.shape[2]}x{images.shape[3]}"
            raise UserError(f"reflect padding of {self.padding} needs images larger than that; these are {size}")
        return F.pad(images.float(), sides, mode="reflect").to(torch.uint8)
