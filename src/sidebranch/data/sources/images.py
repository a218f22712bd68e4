"""Encoded images and their labels, from files, tar shards or a data set of Hugging Face."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from sidebranch.errors import UserError
from sidebranch.seeding import generator


class Source(Protocol):
    """Encoded images by number."""

    @property
    def groups(self) -> Tensor | None:
        """[N], ascending: the number of each image's shard; None if all images are equally fast to read."""
        ...

    def __len__(self) -> int: ...

    def read(self, number: int) -> bytes:
        """The content of the encoded file; OSError if it cannot be read."""
        ...

    def name(self, number: int) -> str:
        """Its name in messages."""
        ...


@dataclass(frozen=True)
class FileSource:
    """Images in separate files."""

    paths: tuple[str, ...]
    groups = None

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, number: int) -> bytes:
        return Path(self.paths[number]).read_bytes()

    def name(self, number: int) -> str:
        return self.paths[number]


@dataclass(frozen=True, eq=False)
class ImageSplit:
    """One split of a data set.

    Attributes:
        source: of the encoded images.
        labels: [n] class indices.
        classes: their names.
        chosen: [n] ascending numbers of the images in the source.
    """

    source: Source
    labels: Tensor
    classes: tuple[str, ...]
    chosen: Tensor

    @classmethod
    def of(cls, source: Source, labels: Tensor, classes: tuple[str, ...]) -> ImageSplit:
        """All images of a source."""
        return cls(source, labels, classes, torch.arange(len(source)))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def groups(self) -> Tensor | None:
        """[n], as the source's."""
        return None if self.source.groups is None else self.source.groups[self.chosen]

    def first(self, count: int) -> ImageSplit:
        """The first images of a fixed random order, since sources are sorted by class."""
        return self.take(self._drawn()[:count].sort().values)

    def rest(self, count: int) -> ImageSplit:
        """The images that `first` leaves."""
        return self.take(self._drawn()[count:].sort().values)

    def _drawn(self) -> Tensor:
        return torch.randperm(len(self), generator=generator("folder limit"))

    def take(self, chosen: Tensor) -> ImageSplit:
        """The images with these numbers, [m], ascending."""
        return replace(self, labels=self.labels[chosen], chosen=self.chosen[chosen])

    def relabelled(self, labels: Tensor) -> ImageSplit:
        """The same images under other labels, [n]."""
        return replace(self, labels=labels)

    def read(self, index: int) -> bytes:
        """An image's file."""
        return self.source.read(int(self.chosen[index]))

    def name(self, index: int) -> str:
        """An image's name."""
        return self.source.name(int(self.chosen[index]))


def with_same_classes(train: ImageSplit, val: ImageSplit, root: object) -> tuple[ImageSplit, ImageSplit]:
    """Both splits, if they have the same classes.

    Raises:
        UserError: a class is in one split only; it says in which, and what to do.
    """
    for name, here, other, split in (("train", train, "val", val), ("val", val, "train", train)):
        only = sorted(set(here.classes) - set(split.classes))
        if only:
            shown = ", ".join(only[:5]) + (", ..." if len(only) > 5 else "")
            count = "1 class is" if len(only) == 1 else f"{len(only)} classes are"
            raise UserError(
                f"{count} in {root}/{name} only: {shown}; add images of each to {root}/{other}, or remove it from "
                f"{root}/{name}"
            )
    return train, val
