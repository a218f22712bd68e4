"""Data sets of Hugging Face, `hf:NAME`: a name on its hub, or a folder that `datasets.load_dataset` reads."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch

from sidebranch.data.sources.images import ImageSplit, with_same_classes
from sidebranch.errors import UserError, reason

PREFIX = "hf:"
VALIDATION = ("validation", "val", "valid", "test")  # the first of these that there is


class Hub:
    """The images of one split.

    Args:
        name: of the data set.
        table: the split, with encoded images.
        column: of the images.
    """

    groups = None

    def __init__(self, name: str, table: Any, column: str) -> None:
        self._name, self.table, self.column = name, table, column

    def __len__(self) -> int:
        return len(self.table)

    def read(self, number: int) -> bytes:
        cell = self.table[number][self.column] or {}
        if cell.get("bytes") is not None:
            return cell["bytes"]
        if not cell.get("path"):
            raise OSError(f"{self.name(number)} is empty")
        return Path(cell["path"]).read_bytes()

    def name(self, number: int) -> str:
        return f"{PREFIX}{self._name}, image {number}"


def hub(root: str) -> tuple[ImageSplit, ImageSplit]:
    """The train and the validation split of a data set that has one column of images and one of class labels.

    Raises:
        UserError: it cannot be loaded, or it is no data set for classification.
    """
    name = root.removeprefix(PREFIX)
    try:
        library = importlib.import_module("datasets")
    except ImportError as error:
        raise UserError(f"{root} needs Hugging Face's datasets: pip install 'sidebranch[hf]'") from error
    try:
        tables = library.load_dataset(name)
    except Exception as error:  # whatever the data set's reader raises
        raise UserError(f"datasets cannot load '{name}': {reason(error)}") from error
    val = next((each for each in VALIDATION if each in tables), None)
    if "train" not in tables or val is None:
        wanted = f"it needs train and one of {', '.join(VALIDATION)}"
        raise UserError(f"'{name}' has the splits {', '.join(tables)}; {wanted}")
    splits = [_split(library, name, tables[each]) for each in ("train", val)]
    return with_same_classes(splits[0], splits[1], name)


def _split(library: Any, name: str, table: Any) -> ImageSplit:
    images = [key for key, kind in table.features.items() if isinstance(kind, library.Image)]
    labels = [key for key, kind in table.features.items() if isinstance(kind, library.ClassLabel)]
    if len(images) != 1 or not labels:
        columns = ", ".join(f"{key} ({type(kind).__name__})" for key, kind in table.features.items())
        raise UserError(f"'{name}' has the columns {columns}; it needs one Image and a ClassLabel")
    label = "label" if "label" in labels else labels[0]
    known = torch.tensor(table[label][:])
    if len(known) and int(known.min()) < 0:
        raise UserError(f"'{name}' has images without a label in a split")
    source = Hub(name, table.cast_column(images[0], library.Image(decode=False)), images[0])
    return ImageSplit.of(source, known, tuple(table.features[label].names))
