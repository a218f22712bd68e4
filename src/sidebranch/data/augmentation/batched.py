"""Augmentation of batches on the device: pad and crop, flip, normalise.

In: padded uint8 images, one 32-bit word per pixel, and a batch's indices. Out: float32 images, functions of (seed,
epoch, index).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn import functional

from sidebranch.errors import UserError
from sidebranch.seeding import uniform

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, Int32, UInt8

PaddingMode = Literal["zeros", "reflect"]


@dataclass(frozen=True)
class Normalisation:
    """Channel means and standard deviations, in units of the full range [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Normalised images in channels-last layout."""
        rows = images.permute(0, 2, 3, 1).float().flatten(2)  # rows of pixels, since a broadcast over 3 is slow
        width = images.shape[3]
        mean, std = _per_row(self.mean, width, images.device), _per_row(self.std, width, images.device)
        normalised = rows.sub_(mean).div_(std)
        return normalised.unflatten(2, (width, -1)).permute(0, 3, 1, 2)

    def of_words(self, words: Int32[Tensor, "n h w"]) -> Float[Tensor, "n c h w"]:
        """The same for images of one word per pixel (see `Augmentation.padded`)."""
        count, height, width = words.shape
        normalised = torch.empty(count, len(self.mean), height, width, device=words.device)
        for channel, (mean, std) in enumerate(zip(self.mean, self.std, strict=True)):
            plane = torch.bitwise_and(words if channel == 0 else words >> (8 * channel), 255).float()
            torch.div(plane.sub_(mean * 255), std * 255, out=plane)
            normalised[:, channel] = plane
        return normalised


IMAGENET = Normalisation(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


@lru_cache(maxsize=64)
def _per_row(values: tuple[float, ...], width: int, device: torch.device) -> Tensor:
    """A row of pixels with the channels' values, in units of a byte; cached, as a copy would wait for the device."""
    return torch.tensor(values, device=device).mul(255).repeat(width)


@dataclass(frozen=True)
class Draws:
    """Crop and flip of every image in one epoch: the upper left corner in the padded image, and mirrored or not."""

    top: Int[Tensor, " N"]
    left: Int[Tensor, " N"]
    mirrored: Bool[Tensor, " N"]


@dataclass(frozen=True)
class Augmentation:
    """Random crop of the padded image, then a random horizontal flip.

    Args:
        padding: pixels on each side before cropping to the old size; 0 turns cropping off.
        padding_mode: "zeros" (black) or "reflect".
        flip: mirror half of the images.
    """

    padding: int = 0
    padding_mode: PaddingMode = "zeros"
    flip: bool = False

    def padded(self, images: UInt8[Tensor, "N c h w"]) -> Int32[Tensor, "N hp wp"]:
        """Padded images of up to four channels, one 32-bit word per pixel, so that a crop is a strided view."""
        count, channels, height, width = images.shape
        if channels > 4:
            raise UserError(f"images have {channels} channels; augmentation on the device takes up to 4")
        if self.padding_mode == "reflect" and self.padding >= min(height, width):
            size = f"{height}x{width}"
            raise UserError(f"reflect padding of {self.padding} needs larger images; these are {size}")
        pixels = torch.zeros(count, height, width, 4, dtype=torch.uint8, device=images.device)
        pixels[..., :channels] = images.permute(0, 2, 3, 1)
        words = pixels.view(torch.int32).squeeze(3)
        if self.padding_mode == "zeros":
            return functional.pad(words, [self.padding] * 4)
        rows, columns = (self._reflected(size).to(images.device) for size in (height, width))
        return words[:, rows][:, :, columns]

    def _reflected(self, size: int) -> Tensor:
        """Source index of each row or column of the padded image."""
        place = torch.arange(-self.padding, size + self.padding)
        return (size - 1) - ((size - 1) - place.abs()).abs()

    def draws(self, count: int, seed: int, epoch: int, device: torch.device) -> Draws:
        """For images 0 ... count - 1; an image's draws do not depend on the count."""
        index = torch.arange(count, device=device)
        top, left = ((uniform(index, side, seed, epoch) * (2 * self.padding + 1)).long() for side in ("top", "left"))
        return Draws(top, left, uniform(index, "flip", seed, epoch) < 0.5)

    def __call__(
        self, padded: Int32[Tensor, "N hp wp"], index: Int[Tensor, " n"], draws: Draws
    ) -> Int32[Tensor, "n h w"]:
        """The images of these indices under an epoch's draws, one word per pixel."""
        count, height, width = padded.shape
        corners = 2 * self.padding + 1
        windows = padded.as_strided(
            (count, corners, corners, height - 2 * self.padding, width - 2 * self.padding),
            (height * width, width, 1, width, 1),
        )
        crops = windows[index, draws.top[index], draws.left[index]]
        return torch.where(draws.mirrored[index][:, None, None], crops.flip(2), crops) if self.flip else crops
