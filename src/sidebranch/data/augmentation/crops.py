"""Crops of single images: the box that the network sees, and its pixels.

In: an image's size and the state of torch's generator. Out: a `Crop`, which any decoder can apply: Pillow here, after
decoding a JPEG no larger than the crop needs; NVIDIA DALI in `dali.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from sidebranch.data.sources.decoding import rgb
from sidebranch.seeding import seed_of


@dataclass(frozen=True)
class Crop:
    """A box in an image, in pixels from the upper left corner, and whether to mirror it afterwards."""

    left: float
    top: float
    right: float
    bottom: float
    mirrored: bool = False


@dataclass(frozen=True)
class FolderTransform:
    """From an image file to a square tensor.

    Args:
        size: side of the square that the network sees.
        resize: shorter side before cropping, at least `size`.
        squash: whether images are resized to a square of side `resize` before cropping, in any aspect ratio.
        interpolation: of resizing.
        scale: whether training crops vary in scale and aspect ratio (random resized crop) or in place only.
        flip: whether half of the training images are mirrored.
        policy: torchvision's RandAugment (2 operations) or TrivialAugment, after cropping and flipping, or none.
        magnitude: RandAugment's, from 0 to 30.
        erase: probability that a box of a training image is painted in the mean colour of ImageNet.
    """

    size: int = 224
    resize: int = 256
    squash: bool = False
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    scale: bool = True
    flip: bool = True
    policy: Literal["none", "randaugment", "trivialaugment"] = "none"
    magnitude: int = 9
    erase: float = 0.0

    def distortions(self) -> v2.Compose | None:
        """Training augmentation of the square, uint8 [3, size, size], after crop and flip; None if there is none."""
        steps: list[v2.Transform] = []
        if self.policy == "randaugment":
            steps.append(v2.RandAugment(magnitude=self.magnitude))
        elif self.policy == "trivialaugment":
            steps.append(v2.TrivialAugmentWide())
        steps += _erasing(self.erase)
        return v2.Compose(steps) if steps else None

    def build(self, training: bool) -> v2.Compose:
        """PIL image to uint8 [3, size, size], by torchvision's transforms."""
        how = v2.InterpolationMode(self.interpolation)
        resize = v2.Resize([self.resize, self.resize] if self.squash else self.resize, how)
        if training:
            fixed_scale = [resize, v2.RandomCrop(self.size)]
            steps = [v2.RandomResizedCrop(self.size, interpolation=how)] if self.scale else fixed_scale
            steps += [v2.RandomHorizontalFlip()] if self.flip else []
        else:
            steps = [resize, v2.CenterCrop(self.size)]
        return v2.Compose([*steps, v2.PILToTensor()])

    def crop(self, width: int, height: int, training: bool) -> Crop:
        """The box that `build` would cut out of an image of this size, with the same draws of torch's generator."""
        shorter = min(width, height)
        resized_height, resized_width = self.resize * height // shorter, self.resize * width // shorter
        if self.squash:
            resized_height = resized_width = self.resize
        if training and self.scale:
            left, top, cut_width, cut_height = _drawn(v2.RandomResizedCrop(self.size), height, width)
            box = float(left), float(top), float(left + cut_width), float(top + cut_height)
        else:
            if training:
                left, top, *_ = _drawn(v2.RandomCrop(self.size), resized_height, resized_width)
            else:
                left, top = round((resized_width - self.size) / 2), round((resized_height - self.size) / 2)
            across, down = width / resized_width, height / resized_height
            box = left * across, top * down, (left + self.size) * across, (top + self.size) * down
        return Crop(*box, mirrored=training and self.flip and bool(torch.rand(1) < 0.5))


@dataclass(frozen=True)
class PersonTransform:
    """From a file of a person to an upright tensor.

    Args:
        size: height and width that the network sees; validation resizes to them.
        resize: height of training images before a random crop; the width is in proportion.
        padding: black pixels around the image before the crop, instead of a larger `resize`.
        flip: whether half of the training images are mirrored.
        erase: probability that a box of a training image is painted in the mean colour of ImageNet.
    """

    size: tuple[int, int] = (256, 128)
    resize: int = 288
    padding: int = 0
    flip: bool = True
    erase: float = 0.0

    def distortions(self) -> v2.Compose | None:
        """Training augmentation of the cropped image; None if there is none."""
        steps = _erasing(self.erase)
        return v2.Compose(steps) if steps else None

    def build(self, training: bool) -> v2.Compose:
        """PIL image to uint8 [3, height, width]."""
        height, width = self.size
        steps: list[v2.Transform] = [v2.Resize([height, width])]
        if training:
            larger: list[v2.Transform] = [v2.Resize([self.resize, round(self.resize * width / height)])]
            steps = [*steps, v2.Pad(self.padding)] if self.padding else larger
            steps += [v2.RandomCrop([height, width])]
            steps += [v2.RandomHorizontalFlip()] if self.flip else []
        return v2.Compose([*steps, v2.PILToTensor()])


def _erasing(probability: float) -> list[v2.Transform]:
    colour: Any = [124.0, 116.0, 104.0]
    return [v2.RandomErasing(probability, value=colour)] if probability else []


def _drawn(transform: v2.RandomResizedCrop | v2.RandomCrop, height: int, width: int) -> tuple[int, int, int, int]:
    """Left, top, width and height that a torchvision transform draws for an image of this size."""
    drawn = transform.make_params([torch.empty(3, height, width, device="meta")])
    return drawn["left"], drawn["top"], drawn["width"], drawn["height"]


@contextmanager
def drawing(what: str, seed: int, epoch: int, index: int) -> Iterator[None]:
    """Seeds torch's generator for one image in one epoch, and restores it afterwards.

    The CPU's alone: `torch.manual_seed` visits every kind of device, which takes as long as half of the decoding.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of(what, seed, epoch, index))
        yield


def crop_of(transform: FolderTransform, file: Image.Image, training: bool, seed: int, epoch: int, index: int) -> Crop:
    """The crop of one image in one epoch; reads only the header of its file."""
    with drawing("augment", seed, epoch, index):
        return transform.crop(*file.size, training)


def cut(file: Image.Image, crop: Crop, size: int, interpolation: str = "bilinear") -> Tensor:
    """The crop as uint8 [3, size, size]; a JPEG is decoded at 1/2, 1/4 or 1/8 of its size if that is large enough."""
    width, height = file.size
    box = crop.left, crop.top, crop.right, crop.bottom
    wanted = (math.ceil(width * size / (box[2] - box[0])), math.ceil(height * size / (box[3] - box[1])))
    file.draft(None, wanted)  # pyright: ignore[reportArgumentType] (no mode: the file's own)
    across, down = file.size[0] / width, file.size[1] / height
    box = box[0] * across, box[1] * down, min(box[2] * across, file.size[0]), min(box[3] * down, file.size[1])
    square = rgb(file).resize((size, size), Image.Resampling[interpolation.upper()], box=box)
    if crop.mirrored:
        square = square.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1)
