"""Files, folders and patterns to batches of photographs, decoded ahead, in order, and what was wrong with others."""

from __future__ import annotations

import base64
import glob
import io
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sidebranch.data.augmentation.batched import Normalisation
from sidebranch.data.augmentation.crops import FolderTransform, PersonTransform, cut
from sidebranch.data.sources.decoding import EXTENSIONS, UNREADABLE, rgb
from sidebranch.device import cores
from sidebranch.errors import UserError, reason

ENDINGS = (*EXTENSIONS, ".gif")
ORIENTATION = 0x0112  # of EXIF
FEW = 64  # photographs, that are decoded in this process
THUMB = 176
Transform = FolderTransform | PersonTransform


@dataclass(frozen=True, eq=False)
class Batch:
    """Some photographs.

    Attributes:
        paths: of those that could be read.
        images: [N, C, H, W], normalised.
        skipped: path to what was wrong, of the others.
        thumbs: small copies as JPEG in base64, if asked for.
    """

    paths: tuple[str, ...]
    images: Tensor
    skipped: dict[str, str]
    thumbs: tuple[str, ...]


def find(words: Sequence[str]) -> list[str]:
    """The image files that are meant, in order, each once: files, folders with all below them, patterns.

    Raises:
        UserError: a word means none.
    """
    found: dict[str, None] = {}
    for word in words:
        if not word:
            raise UserError("an image's name is empty")
        path = Path(word)
        if path.is_dir():
            below = sorted(str(each) for each in path.rglob("*") if each.suffix.lower() in ENDINGS and each.is_file())
        else:
            below = (
                [word]
                if path.is_file()
                else sorted(each for each in glob.glob(word, recursive=True) if os.path.isfile(each))
            )
        if not below and path.is_dir():
            raise UserError(f"'{word}' has no image in it, of {', '.join(ENDINGS)}")
        if not below:
            raise UserError(f"'{word}' is not a file, a folder or a pattern that some file fits")
        found |= {os.path.normpath(each): None for each in below}
    return list(found)


class _Photos(Dataset[tuple[str, Tensor | str, str]]):
    """Item: the path; its pixels, uint8 [C, H, W], or what is wrong; and a small copy."""

    def __init__(self, paths: Sequence[str], transform: Transform, channels: int, with_thumbs: bool) -> None:
        self.paths, self.transform, self.channels, self.with_thumbs = paths, transform, channels, with_thumbs
        self.upright = transform.build(training=False) if isinstance(transform, PersonTransform) else None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> tuple[str, Tensor | str, str]:
        path = self.paths[number]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of large images, and of odd metadata
                with Image.open(path) as file:
                    image = ImageOps.exif_transpose(file) if file.getexif().get(ORIENTATION, 1) != 1 else file
                    pixels = self._pixels(image)
                    return path, pixels, _thumb(image) if self.with_thumbs else ""
        except UNREADABLE as error:
            return path, _what_is_wrong(error), ""

    def _pixels(self, image: Image.Image) -> Tensor:
        if self.upright is not None:
            return self.upright(rgb(image))
        assert isinstance(self.transform, FolderTransform)
        crop = self.transform.crop(*image.size, training=False)
        pixels = cut(image, crop, self.transform.size, self.transform.interpolation)
        if self.channels == 1:
            grey = Image.fromarray(pixels.permute(1, 2, 0).numpy()).convert("L")
            return torch.frombuffer(bytearray(grey.tobytes()), dtype=torch.uint8).view(1, *pixels.shape[1:])
        return pixels


def batches(
    paths: Sequence[str],
    transform: Transform,
    scale: Normalisation,
    size: int,
    with_thumbs: bool = False,
    done: Callable[[int], object] = lambda count: None,
) -> Iterator[Batch]:
    """The photographs in order.

    Args:
        paths: of `find`.
        transform: to what the network sees.
        scale: the network's normalisation, of as many channels as it takes.
        size: of a batch.
        with_thumbs: whether small copies are made.
        done: called with the number of files after every batch.
    """
    photos = _Photos(paths, transform, len(scale.mean), with_thumbs)
    workers = 0 if len(paths) <= FEW else min(4, cores())
    for items in DataLoader(photos, size, num_workers=workers, collate_fn=list):
        good = [(path, pixels, thumb) for path, pixels, thumb in items if isinstance(pixels, Tensor)]
        skipped = {path: pixels for path, pixels, _ in items if isinstance(pixels, str)}
        images = scale(torch.stack([pixels for _, pixels, _ in good])) if good else torch.empty(0)
        yield Batch(tuple(path for path, *_ in good), images, skipped, tuple(thumb for *_, thumb in good))
        done(len(items))


def _thumb(image: Image.Image) -> str:
    small = rgb(image)
    small.thumbnail((THUMB, THUMB))
    data = io.BytesIO()
    small.save(data, "JPEG", quality=85)
    return base64.b64encode(data.getvalue()).decode()


def _what_is_wrong(error: BaseException) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return "it has too many pixels to be opened safely"
    if isinstance(error, Image.UnidentifiedImageError):
        return "it is no image, or damaged"
    return reason(error)
