"""A folder of classes as splits: train/CLASS/*.jpg and val/CLASS/*.jpg."""

from __future__ import annotations

from pathlib import Path

import torch

from sidebranch.data.sources.images import FileSource, ImageSplit, with_same_classes
from sidebranch.data.sources.scan import files_of_classes
from sidebranch.errors import UserError


def folder(root: str | Path, needs_train: bool = True) -> tuple[ImageSplit, ImageSplit]:
    """The train and val splits under `root`; both must have the same classes.

    Args:
        root: with train/CLASS and val/CLASS.
        needs_train: if false, there may be no `train`; it is empty then, with val's classes.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"no folder '{root}'; give --data.root a folder with train/CLASS/*.jpg and val/CLASS/*.jpg")
    if not needs_train and not (root / "train").is_dir():
        val = _split(root, "val")
        return val.take(torch.arange(0)), val
    return with_same_classes(_split(root, "train"), _split(root, "val"), root)


def _split(root: Path, name: str) -> ImageSplit:
    files = files_of_classes(root, name)
    counts = torch.tensor([len(each) for each in files.values()])
    paths = tuple(path for each in files.values() for path in each)
    return ImageSplit.of(FileSource(paths), torch.arange(len(files)).repeat_interleave(counts), tuple(files))
