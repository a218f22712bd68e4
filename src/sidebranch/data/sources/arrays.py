"""Small data sets in memory, one uint8 tensor per split: digits, CIFAR-10, CIFAR-100."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from filelock import FileLock
from torch import Tensor
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.datasets.utils import check_integrity

from sidebranch.data.augmentation.batched import Normalisation
from sidebranch.errors import UserError, reason
from sidebranch.seeding import generator

if TYPE_CHECKING:
    from jaxtyping import Int, UInt8

DIGITS_VALIDATION = 500
CIFAR = Normalisation((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))  # of CIFAR-10


@dataclass(frozen=True, eq=False)
class ArraySplit:
    """One split of a data set, in memory.

    Attributes:
        images: [N, C, H, W].
        labels: class indices.
        classes: their names.
        normalisation: of the training split.
    """

    images: UInt8[Tensor, "n c h w"]
    labels: Int[Tensor, " n"]
    classes: tuple[str, ...]
    normalisation: Normalisation

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, count: int) -> ArraySplit:
        """The first images."""
        return self.take(torch.arange(count))

    def rest(self, count: int) -> ArraySplit:
        """The images that `first` leaves."""
        return self.take(torch.arange(count, len(self)))

    def take(self, chosen: Int[Tensor, " m"]) -> ArraySplit:
        """The images with these numbers."""
        return replace(self, images=self.images[chosen], labels=self.labels[chosen])

    def relabelled(self, labels: Int[Tensor, " n"]) -> ArraySplit:
        """The same images under other labels."""
        return replace(self, labels=labels)


def digits() -> tuple[ArraySplit, ArraySplit]:
    """Scikit-learn's 1,797 handwritten digits, 1x8x8: 1,297 to train on, 500 to validate on. Needs no network."""
    from sklearn.datasets import load_digits  # slow to import, used only here

    pixels, targets = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels).mul(255 / 16).round().to(torch.uint8).view(-1, 1, 8, 8)
    labels = torch.from_numpy(targets).long()
    order = torch.randperm(len(labels), generator=generator("digits split"))
    val, train = order[:DIGITS_VALIDATION], order[DIGITS_VALIDATION:]
    names = tuple("0123456789")
    scale = Normalisation(mean=(0.305,), std=(0.376,))
    return ArraySplit(images[train], labels[train], names, scale), ArraySplit(images[val], labels[val], names, scale)


def cifar10(root: str | Path) -> tuple[ArraySplit, ArraySplit]:
    """CIFAR-10 under `root`, downloaded there if it is missing: 50,000 and 10,000 images of 3x32x32."""
    return _cifar(CIFAR10, Path(root), CIFAR)


def cifar100(root: str | Path) -> tuple[ArraySplit, ArraySplit]:
    """CIFAR-100 under `root`, downloaded there if it is missing: 50,000 and 10,000 images of 3x32x32.

    Normalised with CIFAR-10's statistics, as in the DHM paper's code.
    """
    return _cifar(CIFAR100, Path(root), CIFAR)


def _cifar(kind: type[CIFAR10], root: Path, scale: Normalisation) -> tuple[ArraySplit, ArraySplit]:
    """Checks the md5 sums before torchvision opens the pickles; errors are one line."""
    if (root / kind.base_folder).exists():
        return _read(kind, root, scale)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{kind.base_folder}.lock"):  # the other runs wait, and find it
            return _read(kind, root, scale)
    except OSError as error:
        raise UserError(f"cannot write to '{root}': {reason(error)}; give another --data.root") from error


def _read(kind: type[CIFAR10], root: Path, scale: Normalisation) -> tuple[ArraySplit, ArraySplit]:
    folder = root / kind.base_folder
    if folder.exists():
        for name, md5 in [*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])]:
            if not (folder / name).exists():
                raise UserError(f"{folder} lacks the file '{name}'; remove the folder and download or unpack it again")
            if not check_integrity(str(folder / name), md5):
                raise UserError(
                    f"{folder / name} is damaged: its md5 is not {md5}; remove the folder to download it again"
                )
    try:
        train = kind(str(root), train=True, download=not folder.exists())
        val = kind(str(root), train=False)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"no {kind.base_folder} in '{root}', and downloading it failed ({error}); give --data.root the folder that "
            f"holds {kind.base_folder}"
        ) from error
    return _split(train, scale), _split(val, scale)


def _split(cifar: CIFAR10, scale: Normalisation) -> ArraySplit:
    images = torch.from_numpy(cifar.data).permute(0, 3, 1, 2).contiguous()
    return ArraySplit(images, torch.tensor(cifar.targets), tuple(cifar.classes), scale)
