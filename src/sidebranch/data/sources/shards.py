"""WebDataset tar shards with an index beside them, so that any image can be read by its number.

A folder, or an address, holds `index.json` and the shards that it names: tar files in WebDataset's layout, with each
image's class beside it, readable by any WebDataset reader. The index also has the position of each image in its shard:
so an epoch has exactly the length of the split, every process and worker reads its share only, and a run resumes in the
middle of an epoch without reading the images before. Shards at an address are downloaded when first needed, once per
machine, by WebDataset's readers, and stay in the cache.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import os
import re
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from PIL import Image
from torch import Tensor

from sidebranch.data.sources.cache import cache_folder, written_atomically
from sidebranch.data.sources.decoding import UNREADABLE
from sidebranch.data.sources.images import ImageSplit, with_same_classes
from sidebranch.errors import UserError, reason
from sidebranch.seeding import generator

INDEX = "index.json"
SCHEMES = ("https", "http", "gs", "hf", "ais", "sftp", "ftps")
FORMAT = 1
ENDINGS = {"JPEG": "jpg", "MPO": "jpg"}  # file endings of Pillow's formats with another name


class Shards:
    """Images in tar files.

    Args:
        root: the folder or address of the shards.
        names: of the shards, in order.
        groups: [N], the shard of each image.
        sizes: of the shards, in bytes.
        places: [N, 2], offset and length of each image in its shard, in bytes.
    """

    def __init__(self, root: str, names: Sequence[str], sizes: Sequence[int], groups: Tensor, places: Tensor) -> None:
        self.root, self.names, self.sizes, self.groups, self.places = root, tuple(names), tuple(sizes), groups, places

    def __len__(self) -> int:
        return len(self.places)

    def read(self, number: int) -> bytes:
        offset, length = self.places[number].tolist()
        group = int(self.groups[number])
        path = local(f"{self.root}/{self.names[group]}", self.sizes[group])
        with open(path, "rb") as file:
            content = os.pread(file.fileno(), length, offset)
        if len(content) < length:
            raise OSError(f"'{path}' ends before its index does")
        return content

    def name(self, number: int) -> str:
        return f"{self.root}/{self.names[int(self.groups[number])]}, byte {int(self.places[number, 0])}"


def is_sharded(root: str) -> bool:
    """Whether a data root is one of shards: an address, or a folder with an index."""
    return _is_address(root) or (Path(root) / INDEX).is_file()


def shards(root: str) -> tuple[ImageSplit, ImageSplit]:
    """The train and val splits of a folder, or an address, of shards.

    Raises:
        UserError: there is no index, it is not ours, or a local shard is missing or of another length.
    """
    root = root.rstrip("/")
    try:
        index = json.loads(Path(local(f"{root}/{INDEX}")).read_text(encoding="utf-8"))
        if index["format"] != FORMAT:
            raise UserError(f"'{root}/{INDEX}' has format {index['format']}, this sidebranch reads {FORMAT}")
        classes = tuple(map(str, index["classes"]))
        train, val = (_split(root, index["splits"][name], classes) for name in ("train", "val"))
    except (ValueError, KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise UserError(f"'{root}/{INDEX}' is no index of `sidebranch prepare shards` ({reason(error)})") from error
    except OSError as error:
        raise UserError(f"cannot read '{root}/{INDEX}' ({reason(error)})") from error
    return with_same_classes(train, val, root)


def _split(root: str, parts: Sequence[dict[str, Any]], classes: tuple[str, ...]) -> ImageSplit:
    if not parts or any(len(part["labels"]) != len(part["places"]) for part in parts):
        raise ValueError("a split without shards, or labels without places")
    counts = torch.tensor([len(part["labels"]) for part in parts])
    labels = torch.tensor([label for part in parts for label in part["labels"]])
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(classes):
        raise ValueError("labels beyond its classes")
    places = torch.tensor([(int(start), int(length)) for part in parts for start, length in part["places"]])
    for part in parts:
        if not _is_address(root):
            path = Path(root) / part["name"]
            if not path.is_file() or path.stat().st_size != part["bytes"]:
                raise UserError(f"the shard '{path}' is missing or not as long as '{root}/{INDEX}' says")
    groups = torch.arange(len(parts)).repeat_interleave(counts)
    names, sizes = [str(part["name"]) for part in parts], [int(part["bytes"]) for part in parts]
    return ImageSplit.of(Shards(root, names, sizes, groups, places), labels, classes)


def local(path: str, size: int = -1) -> str:
    """The local path of a file; an address is downloaded unless the cache has it with this size."""
    if not _is_address(path):
        return path
    base, _, name = path.rpartition("/")
    kept = cache_folder() / "shards" / hashlib.sha256(base.encode()).hexdigest()[:24] / name
    if _has_size(kept, size):
        return str(kept)
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{kept}.lock"):  # the other workers wait, and find the file
            if not _has_size(kept, size):
                _download(path, kept)
    except Exception as error:  # whatever the address's reader raises
        raise OSError(f"downloading {path} failed: {reason(error)}") from error
    return str(kept)


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _download(address: str, path: Path) -> None:
    with written_atomically(path) as temporary, webdataset().gopen(address) as stream, open(temporary, "wb") as file:
        while piece := stream.read(1 << 20):
            file.write(piece)


def _is_address(root: str) -> bool:
    """Whether it is an address of a known scheme, in characters that are safe in a reader's shell command."""
    return re.fullmatch(rf"({'|'.join(SCHEMES)})://[\w.~/:@%+,=-]+", root, re.ASCII) is not None


def webdataset() -> Any:
    """The library; UserError if it is not installed."""
    try:
        return importlib.import_module("webdataset")
    except ImportError as error:
        raise UserError("tar shards need WebDataset: pip install 'sidebranch[shards]'") from error


def write_shards(splits: dict[str, ImageSplit], target: Path, megabytes: int) -> dict[str, int]:
    """Writes both splits as shards, and then their index.

    The training images are written in a fixed random order, so that every shard has all classes.

    Args:
        splits: `train` and `val`.
        target: the folder.
        megabytes: size of a full shard.

    Returns:
        The number of shards of each split.

    Raises:
        UserError: an image cannot be read, or a shard not be written.
    """
    library = webdataset()
    try:
        return _written(library, splits, target, megabytes)
    except OSError as error:
        raise UserError(f"cannot pack '{target}' ({reason(error)}); run it again to start over") from error


def _written(library: Any, splits: dict[str, ImageSplit], target: Path, megabytes: int) -> dict[str, int]:
    target.mkdir(parents=True, exist_ok=True)
    index: dict[str, Any] = {"format": FORMAT, "classes": list(splits["train"].classes), "splits": {}}
    for name, split in splits.items():
        order = torch.arange(len(split))
        if name == "train":
            order = torch.randperm(len(split), generator=generator("shards"))
        written: list[str] = []
        writer = library.ShardWriter(
            f"{target}/{name}-".replace("%", "%%") + "%06d.tar", maxsize=megabytes * 1e6, verbose=0, post=written.append
        )
        try:
            for place, at in enumerate(order.tolist()):
                content = split.read(at)
                try:
                    with Image.open(io.BytesIO(content)) as file:
                        ending = ENDINGS.get(file.format or "", (file.format or "").lower())
                except UNREADABLE as error:
                    wrong = f"cannot pack '{split.name(at)}': it is no image"
                    raise UserError(f"{wrong}; `sidebranch prepare check` lists all such") from error
                label = str(int(split.labels[at])).encode()
                writer.write({"__key__": f"{place:09d}", ending: content, "cls": label})
        finally:
            writer.close()
        index["splits"][name] = [_described(path) for path in map(Path, written)]
    with written_atomically(target / INDEX) as temporary:
        temporary.write_text(json.dumps(index), encoding="utf-8")
    return {name: len(parts) for name, parts in index["splits"].items()}


def _described(path: Path) -> dict[str, Any]:
    """A shard's entry in the index."""
    labels, places = [], []
    with tarfile.open(path) as tar:
        for member in tar:
            if member.name.endswith(".cls"):
                content = tar.extractfile(member)
                labels.append(int(content.read()) if content is not None else -1)
            else:
                places.append([member.offset_data, member.size])
    return {"name": path.name, "bytes": path.stat().st_size, "labels": labels, "places": places}
