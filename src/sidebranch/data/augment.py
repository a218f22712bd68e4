"""Augmentation in batches, on whatever device the images are: pad and crop, flip, normalise.

In: uint8 images, a word a pixel, and a batch's indices. Out: float32 images, augmented as (seed, epoch, index) say.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from jaxtyping import Float, Int, Int32, UInt8
from torch import Tensor

from sidebranch.errors import UserError
from sidebranch.seeding import uniform

PaddingMode = Literal["zeros", "reflect"]


@dataclass(frozen=True)
class Normalisation:
    """Channel means and standard deviations, in units of the full range [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Laid out channels-last, whatever the images' layout."""
        rows = images.permute(0, 2, 3, 1).float().flatten(2)  # whole rows of pixels: a broadcast over 3 is slow
        width = images.shape[3]
        mean, std = _per_row(self.mean, width, images.device), _per_row(self.std, width, images.device)
        normalised = rows.sub_(mean).div_(std)
        return normalised.unflatten(2, (width, -1)).permute(0, 3, 1, 2)

    def of_words(self, words: Int32[Tensor, "n h w"]) -> Float[Tensor, "n c h w"]:
        """The same of images a word a pixel (see `Pixels`)."""
        count, height, width = words.shape
        normalised = torch.empty(count, len(self.mean), height, width, device=words.device)
        for channel, (mean, std) in enumerate(zip(self.mean, self.std, strict=True)):
            plane = torch.bitwise_and(words if channel == 0 else words >> (8 * channel), 255).float()
            torch.div(plane.sub_(mean * 255), std * 255, out=plane)
            normalised[:, channel] = plane
        return normalised


@lru_cache(maxsize=64)
def _per_row(values: tuple[float, ...], width: int, device: torch.device) -> Tensor:
    """In units of a byte, for every channel of a row of pixels; on the device once, as copies would wait for it."""
    return torch.tensor(values, device=device).mul(255).repeat(width)


@dataclass(frozen=True, eq=False)
class Pixels:
    """Images of up to four channels, a 32-bit word a pixel, so that a crop moves one number a pixel.

    Attributes:
        words: [N, H W + 1]; the last is a black pixel.
        shape: C, H, W.
    """

    words: Int32[Tensor, "n p"]
    shape: tuple[int, int, int]

    @classmethod
    def of(cls, images: UInt8[Tensor, "n c h w"]) -> Pixels:
        count, channels, height, width = images.shape
        if channels > 4:
            raise UserError(f"images have {channels} channels; augmentation on the device takes up to 4")
        padded = torch.zeros(count, height * width + 1, 4, dtype=torch.uint8, device=images.device)
        padded[:, :-1, :channels] = images.permute(0, 2, 3, 1).flatten(1, 2)
        return cls(padded.view(torch.int32).squeeze(2), (channels, height, width))


@dataclass(frozen=True)
class Augmentation:
    """Random crop out of the padded image, then a random horizontal flip.

    Args:
        padding: pixels on each side before cropping to the old size; 0 turns cropping off.
        padding_mode: "zeros" (black) or "reflect".
        flip: whether half of the images are mirrored.
    """

    padding: int = 0
    padding_mode: PaddingMode = "zeros"
    flip: bool = False

    def __call__(self, images: Pixels, index: Int[Tensor, " n"], seed: int, epoch: int) -> Int32[Tensor, "n h w"]:
        """The images of these indices as they look in this epoch, a word a pixel."""
        _, height, width = images.shape
        device = images.words.device
        if self.padding_mode == "reflect" and self.padding >= min(height, width):
            size = f"{height}x{width}"
            raise UserError(f"reflect padding of {self.padding} needs images larger than that; these are {size}")
        rows = self._draw(index, "top", seed, epoch)[:, None] + torch.arange(height, device=device)
        columns = self._draw(index, "left", seed, epoch)[:, None] + torch.arange(width, device=device)
        if self.flip:
            mirrored = uniform(index, "flip", seed, epoch) < 0.5
            columns = torch.where(mirrored[:, None], columns.flip(1), columns)
        black = height * width
        down = _places(height, width, self.padding, self.padding_mode, black, device)[rows]
        across = _places(width, 1, self.padding, self.padding_mode, black, device)[columns]
        place = (down[:, :, None] + across[:, None, :]).clamp_(max=black)
        place += (index * (black + 1))[:, None, None]
        return torch.take(images.words, place)

    def _draw(self, index: Tensor, what: str, seed: int, epoch: int) -> Tensor:
        """Offsets in 0 ... 2 * padding, one an index."""
        return (uniform(index, what, seed, epoch) * (2 * self.padding + 1)).long()


@lru_cache(maxsize=64)
def _places(size: int, step: int, padding: int, mode: PaddingMode, black: int, device: torch.device) -> Tensor:
    """Where each row or column of the padded image lies among the words; `black` for one outside the image."""
    place = torch.arange(-padding, size + padding)
    if mode == "reflect":
        place = (size - 1) - ((size - 1) - place.abs()).abs()
        return (place * step).to(device)
    return torch.where((place < 0) | (place >= size), black, place * step).to(device)
