"""A folder of classes as splits: train/CLASS/*.jpg and val/CLASS/*.jpg."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from sidebranch.data.sources.images import FileSource, ImageSplit, with_same_classes
from sidebranch.data.sources.scan import files_of_classes
from sidebranch.errors import UserError


def folder(root: str | Path, may_lack: Literal["", "train", "val"] = "") -> tuple[ImageSplit, ImageSplit]:
    """The train and val splits under `root`; both must have the same classes.

    Args:
        root: with train/CLASS and val/CLASS.
        may_lack: the split that need not be there; it is empty then, with the other's classes.
    """
    root = Path(root)
    if not root.is_dir():
        where = "" if root.is_absolute() else f" in '{Path.cwd()}'"
        raise UserError(
            f"no folder '{root}'{where}; give --data.root a folder with train/CLASS/*.jpg and val/CLASS/*.jpg"
        )
    if may_lack and not (root / may_lack).is_dir():
        found = _split(root, "train" if may_lack == "val" else "val")
        none = found.take(torch.arange(0))
        return (found, none) if may_lack == "val" else (none, found)
    return with_same_classes(_split(root, "train"), _split(root, "val"), root)


def _split(root: Path, name: str) -> ImageSplit:
    files = files_of_classes(root, name)
    counts = torch.tensor([len(each) for each in files.values()])
    paths = tuple(path for each in files.values() for path in each)
    return ImageSplit.of(FileSource(paths), torch.arange(len(files)).repeat_interleave(counts), tuple(files))
