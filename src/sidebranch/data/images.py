"""Encoded images and their labels, wherever they lie: as files, in tar shards, or in a data set of Hugging Face."""

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
        """[N], the number of the shard that each image lies in, ascending; None where any is as near as any other."""
        ...

    def __len__(self) -> int: ...

    def read(self, number: int) -> bytes:
        """The file's content; OSError if it cannot be had."""
        ...

    def name(self, number: int) -> str:
        """What to call it in messages."""
        ...


@dataclass(frozen=True)
class Files:
    """Images that are files of their own."""

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
        source: where the images come from.
        labels: [n] class indices.
        classes: their names.
        chosen: [n] numbers of the images in the source, ascending.
    """

    source: Source
    labels: Tensor
    classes: tuple[str, ...]
    chosen: Tensor

    @classmethod
    def whole(cls, source: Source, labels: Tensor, classes: tuple[str, ...]) -> ImageSplit:
        """All images of a source."""
        return cls(source, labels, classes, torch.arange(len(source)))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def groups(self) -> Tensor | None:
        """[n], as the source's."""
        return None if self.source.groups is None else self.source.groups[self.chosen]

    def first(self, count: int) -> ImageSplit:
        """The first images of a fixed random order: they are sorted by class where they lie."""
        kept = torch.randperm(len(self), generator=generator("folder limit"))[:count].sort().values
        return replace(self, labels=self.labels[kept], chosen=self.chosen[kept])

    def relabelled(self, labels: Tensor) -> ImageSplit:
        """The same images under other labels, [n]."""
        return replace(self, labels=labels)

    def read(self, index: int) -> bytes:
        """An image's file."""
        return self.source.read(int(self.chosen[index]))

    def name(self, index: int) -> str:
        """An image's name."""
        return self.source.name(int(self.chosen[index]))


def compared(train: ImageSplit, val: ImageSplit, root: object) -> tuple[ImageSplit, ImageSplit]:
    """Both, if they have the same classes.

    Raises:
        UserError: they have not; names some of those that are in one only.
    """
    if train.classes != val.classes:
        differing = sorted(set(train.classes) ^ set(val.classes))
        shown = ", ".join(differing[:5]) + (", ..." if len(differing) > 5 else "")
        raise UserError(f"{len(differing)} classes are in only one of {root}/train and {root}/val: {shown}")
    return train, val
