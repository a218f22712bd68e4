"""A folder of images, one folder a class: root/train/CLASS/*.jpg and root/val/CLASS/*.jpg.

Decoding and geometry happen in worker processes, seeded by (seed, epoch, index); images travel as uint8 and are
normalised on the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder

from sidebranch.data.augment import Normalisation
from sidebranch.data.crop import UNREADABLE, FolderTransform, crop_of, cut, drawing, rgb
from sidebranch.data.order import Shard, batches_of, steps_of
from sidebranch.errors import UserError, reason
from sidebranch.seeding import generator

IMAGENET = Normalisation(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


@dataclass(frozen=True, eq=False)
class FolderSplit:
    """One split: paths, labels, class names."""

    paths: tuple[str, ...]
    labels: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, count: int) -> FolderSplit:
        """The first files of a fixed random order: on disk they are sorted by class."""
        chosen = torch.randperm(len(self), generator=generator("folder limit"))[:count].sort().values
        return replace(self, paths=tuple(self.paths[i] for i in chosen.tolist()), labels=self.labels[chosen])

    def relabelled(self, labels: Tensor) -> FolderSplit:
        """The same files under other labels, [n]."""
        return replace(self, labels=labels)


def folder(root: str | Path) -> tuple[FolderSplit, FolderSplit]:
    """The train and val splits under `root`; both must hold the same class folders."""
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"no folder '{root}'; give --data.root a folder with train/CLASS/*.jpg and val/CLASS/*.jpg")
    train, val = _scan(root, "train"), _scan(root, "val")
    if train.classes != val.classes:
        differing = sorted(set(train.classes) ^ set(val.classes))
        shown = ", ".join(differing[:5]) + (", ..." if len(differing) > 5 else "")
        raise UserError(f"{len(differing)} classes are in only one of {root}/train and {root}/val: {shown}")
    return train, val


def _scan(root: Path, name: str) -> FolderSplit:
    if not (root / name).is_dir():
        found = ", ".join(sorted(each.name for each in root.iterdir() if each.is_dir())[:5]) or "no folder at all"
        raise UserError(
            f"'{root}' has no folder '{name}' (found: {found}); it needs train/CLASS/*.jpg and val/CLASS/*.jpg"
        )
    try:
        scanned = ImageFolder(str(root / name))
    except FileNotFoundError as error:
        raise UserError(f"'{root / name}' is not laid out as CLASS/*.jpg: {reason(error).rstrip('.')}") from error
    paths = tuple(path for path, _ in scanned.samples)
    return FolderSplit(paths, torch.tensor(scanned.targets), tuple(scanned.classes))


class _Images(Dataset[tuple[Tensor, int] | str]):
    """Item (epoch, index): the image as it looks in this epoch and its label, or the path of a file that is none."""

    def __init__(self, split: FolderSplit, transform: FolderTransform, training: bool, seed: int, exact: bool) -> None:
        self.split, self.transform, self.training, self.seed = split, transform, training, seed
        self.exactly = transform.build(training) if exact else None

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int] | str:
        epoch, index = key
        path = self.split.paths[index]
        try:
            with Image.open(path) as file:
                if self.exactly is None:
                    crop = crop_of(self.transform, file, self.training, self.seed, epoch, index)
                    image = cut(file, crop, self.transform.size)
                else:
                    whole = rgb(file)
                    with drawing(self.seed, epoch, index):
                        image = self.exactly(whole)
        except UNREADABLE:
            return path
        return image, int(self.split.labels[index])


class _Batches:
    """The keys of one epoch's batches. Setting `epoch` and `start` reaches workers that live on between epochs."""

    def __init__(self, count: int, batch_size: int, seed: int, shuffle: bool, drop_last: bool, shard: Shard) -> None:
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.shuffle, self.drop_last, self.shard = shuffle, drop_last, shard
        self.epoch = 0
        self.start = 0

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        indices = batches_of(
            self.count,
            self.batch_size,
            seed=self.seed,
            epoch=self.epoch,
            shuffle=self.shuffle,
            drop_last=self.drop_last,
            shard=self.shard,
        )
        for batch in indices[self.start :]:
            yield [(self.epoch, index) for index in batch.tolist()]

    def __len__(self) -> int:
        return steps_of(self.count, self.batch_size, shuffle=self.shuffle, drop_last=self.drop_last)


def _collate(items: list[tuple[Tensor, int] | str]) -> tuple[Tensor, Tensor, list[str]]:
    """Images, labels, and the paths that could not be read."""
    good = [item for item in items if not isinstance(item, str)]
    bad = [item for item in items if isinstance(item, str)]
    images = torch.stack([image for image, _ in good]) if good else torch.empty(0, 3, 1, 1, dtype=torch.uint8)
    return images, torch.tensor([label for _, label in good], dtype=torch.int64), bad


class FolderLoader:
    """Normalised float32 batches on the device, laid out channels-last, and their labels.

    Args:
        split: the files.
        transform: their geometry.
        batch_size: over all ranks together.
        training: shuffle and augment.
        workers: processes that decode; 0 decodes in this one.
        exact: torchvision's transforms on whole images, as in the papers; else JPEGs are decoded no larger than needed.
        on_corrupt: "error" stops at a file that is no image; "skip" leaves it out and counts it in `corrupt`.
    """

    def __init__(
        self,
        split: FolderSplit,
        transform: FolderTransform,
        batch_size: int,
        *,
        device: torch.device,
        training: bool,
        seed: int = 0,
        workers: int = 0,
        drop_last: bool = False,
        exact: bool = False,
        on_corrupt: Literal["error", "skip"] = "error",
        normalisation: Normalisation = IMAGENET,
        shard: Shard = Shard(),
    ) -> None:
        self.device = device
        self.normalisation = normalisation
        self.on_corrupt = on_corrupt
        self.corrupt: set[str] = set()
        self._batches = _Batches(len(split.paths), batch_size, seed, training, drop_last, shard)
        self._loader = DataLoader(
            _Images(split, transform, training, seed, exact),
            batch_sampler=self._batches,  # pyright: ignore[reportArgumentType] (its items are our keys, not ints)
            num_workers=workers,
            collate_fn=_collate,
            pin_memory=device.type == "cuda",
            persistent_workers=workers > 0,
        )

    def __len__(self) -> int:
        """Batches an epoch."""
        return len(self._batches)

    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Images [N, 3, H, W] and labels [N] of this epoch, from batch `start` on; N is 0 where all were skipped."""
        self._batches.epoch, self._batches.start = epoch, start
        for images, labels, bad in self._loader:
            if bad and self.on_corrupt == "error":
                raise UserError(f"cannot read the image '{bad[0]}'; remove it, or pass --data.on_corrupt skip")
            self.corrupt.update(bad)
            on_device = images.to(self.device, non_blocking=True)
            yield self.normalisation(on_device), labels.to(self.device, non_blocking=True)
