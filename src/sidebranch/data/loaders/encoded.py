"""Batches of a split of encoded images.

Worker processes decode and crop, seeded by (seed, epoch, index); images are sent as uint8 and normalised on the device.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sidebranch.data.augmentation.batched import IMAGENET, Normalisation
from sidebranch.data.augmentation.crops import FolderTransform, PersonTransform, crop_of, cut, drawing
from sidebranch.data.loaders.order import Rank, batches_of, class_batches, class_steps, steps_of
from sidebranch.data.sources.decoding import UNREADABLE, rgb
from sidebranch.data.sources.images import ImageSplit
from sidebranch.errors import UserError


class _Images(Dataset[tuple[Tensor, int] | str]):
    """Item (epoch, index): the image as augmented in this epoch and its label, or the name of an unreadable file.

    Indices from the split's length on are repeats of the same images.
    """

    def __init__(
        self, split: ImageSplit, transform: FolderTransform | PersonTransform, training: bool, seed: int, exact: bool
    ) -> None:
        self.split, self.training, self.seed = split, training, seed
        self.square = transform if isinstance(transform, FolderTransform) and not exact else None
        self.transform_file = transform.build(training)
        self.distorted = transform.distortions() if training else None

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int] | str:
        epoch, index = key
        place = index % len(self.split)
        try:
            with Image.open(io.BytesIO(self.split.read(place))) as file:
                if self.square is not None:
                    crop = crop_of(self.square, file, self.training, self.seed, epoch, index)
                    image = cut(file, crop, self.square.size, self.square.interpolation)
                else:
                    decoded = rgb(file)
                    with drawing("augment", self.seed, epoch, index):
                        image = self.transform_file(decoded)
        except UNREADABLE:
            return self.split.name(place)
        if self.distorted is not None:
            with drawing("distort", self.seed, epoch, index):
                image = self.distorted(image)
        return image, int(self.split.labels[place])


class _Batches:
    """The keys of one epoch's batches. `epoch` and `start` may be set between epochs; workers stay alive."""

    def __init__(self, indices: Callable[..., list[Tensor]], steps: int) -> None:
        self.indices, self.steps = indices, steps
        self.epoch = 0
        self.start = 0

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch in self.indices(epoch=self.epoch)[self.start :]:
            yield [(self.epoch, index) for index in batch.tolist()]

    def __len__(self) -> int:
        return self.steps


def _collate(items: list[tuple[Tensor, int] | str]) -> tuple[Tensor, Tensor, list[str]]:
    """Images, labels, and the paths that could not be read."""
    good = [item for item in items if not isinstance(item, str)]
    bad = [item for item in items if isinstance(item, str)]
    images = torch.stack([image for image, _ in good]) if good else torch.empty(0, 3, 1, 1, dtype=torch.uint8)
    return images, torch.tensor([label for _, label in good], dtype=torch.int64), bad


class EncodedLoader:
    """Normalised float32 batches in channels-last layout on the device, and their labels.

    Args:
        split: the images.
        transform: their geometry; for persons always by torchvision.
        batch_size: over all ranks.
        training: shuffle and augment.
        workers: processes that decode; 0 decodes in this process.
        exact: torchvision's transforms on full images, as in the papers; else JPEGs are decoded no larger than needed.
        repeats: repeated augmentation; see `batches_of`.
        instances: training: images of each class in a batch, 0 draws freely; see `class_batches`.
        on_corrupt: "error" stops at an unreadable image; "skip" leaves it out and adds it to `corrupt`.
    """

    def __init__(
        self,
        split: ImageSplit,
        transform: FolderTransform | PersonTransform,
        batch_size: int,
        *,
        device: torch.device,
        training: bool,
        seed: int = 0,
        workers: int = 0,
        drop_last: bool = False,
        exact: bool = False,
        repeats: int = 1,
        instances: int = 0,
        on_corrupt: Literal["error", "skip"] = "error",
        normalisation: Normalisation = IMAGENET,
        rank: Rank = Rank(),
    ) -> None:
        self.device = device
        self.normalisation = normalisation
        self.on_corrupt = on_corrupt
        self.corrupt: set[str] = set()
        if instances and training:
            balanced = partial(class_batches, split.labels, batch_size, instances, seed=seed, rank=rank)
            self._batches = _Batches(balanced, class_steps(split.labels, batch_size, instances))
        else:
            order = {"shuffle": training, "drop_last": drop_last}
            more = {"seed": seed, "rank": rank, "groups": split.groups, "repeats": repeats}
            self._batches = _Batches(
                partial(batches_of, len(split), batch_size, **order, **more), steps_of(len(split), batch_size, **order)
            )
        self._loader = DataLoader(
            _Images(split, transform, training, seed, exact),
            batch_sampler=self._batches,  # pyright: ignore[reportArgumentType] (its items are our keys, not ints)
            num_workers=workers,
            collate_fn=_collate,
            pin_memory=device.type == "cuda",
            persistent_workers=workers > 0,
        )

    def __len__(self) -> int:
        """Batches per epoch."""
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
