"""The image files of a folder of classes: found once, remembered until a folder in it changes."""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import torch
from torchvision.datasets.folder import IMG_EXTENSIONS

from sidebranch.data.cache import cache_folder, written_whole
from sidebranch.data.images import Files, ImageSplit, compared
from sidebranch.errors import UserError

READERS = 16  # folders read at once: a network's file system answers late
REMEMBERED = 10_000  # files, from which on an index is written


def folder(root: str | Path) -> tuple[ImageSplit, ImageSplit]:
    """The train and val splits under `root`; both must hold the same class folders."""
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"no folder '{root}'; give --data.root a folder with train/CLASS/*.jpg and val/CLASS/*.jpg")
    return compared(scanned(root, "train"), scanned(root, "val"), root)


def scanned(root: Path, name: str) -> ImageSplit:
    """One split: root/name/CLASS/..., in the order of torchvision's ImageFolder.

    Raises:
        UserError: it is not there, or a class has no images.
    """
    top = root / name
    if not top.is_dir():
        found = ", ".join(sorted(each.name for each in root.iterdir() if each.is_dir())[:5]) or "no folder at all"
        raise UserError(
            f"'{root}' has no folder '{name}' (found: {found}); it needs train/CLASS/*.jpg and val/CLASS/*.jpg"
        )
    try:
        classes = sorted(each.name for each in top.iterdir() if each.is_dir())
        if not classes:
            raise UserError(f"'{top}' is not laid out as CLASS/*.jpg: it has no folder")
        index = _index(top, classes)
    except OSError as error:
        raise UserError(f"cannot read the folder '{error.filename}' ({error.strerror})") from error
    empty = [each for each in classes if not index[each]]
    if empty:
        shown = ", ".join(empty[:5]) + (", ..." if len(empty) > 5 else "")
        raise UserError(f"'{top}' is not laid out as CLASS/*.jpg: no images in {shown}")
    paths = tuple(os.path.join(top, each, file) for each in classes for file in index[each])
    counts = torch.tensor([len(index[each]) for each in classes])
    labels = torch.arange(len(classes)).repeat_interleave(counts)
    return ImageSplit.whole(Files(paths), labels, tuple(classes))


def _index(top: Path, classes: list[str]) -> dict[str, list[str]]:
    """Class to its files, relative to its folder; from the cache if no folder has changed since."""
    cached = _cache_of(top)
    try:
        known = json.loads(cached.read_text(encoding="utf-8"))
        if sorted(known["files"]) == classes and all(_changed(path) == when for path, when in known["folders"].items()):
            return known["files"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    with ThreadPoolExecutor(READERS) as readers:
        found = list(readers.map(_files_under, [os.path.join(top, each) for each in classes]))
    index = {name: files for name, (files, _) in zip(classes, found, strict=True)}
    if sum(map(len, index.values())) >= REMEMBERED:
        folders = {path: when for _, each in found for path, when in each.items()}
        _remember(cached, {"folders": folders, "files": index})
    return index


def _files_under(top: str) -> tuple[list[str], dict[str, int]]:
    """Image files, sorted as ImageFolder sorts them, and every folder's time of change. Links that go round end."""
    files: dict[str, list[str]] = {}
    folders: dict[str, int] = {}
    around: set[tuple[int, int]] = set()
    waiting = [top]
    while waiting:
        place = waiting.pop()
        stat = os.stat(place)
        if (stat.st_dev, stat.st_ino) in around:
            continue
        around.add((stat.st_dev, stat.st_ino))
        folders[place] = stat.st_mtime_ns
        names = files[place] = []
        with os.scandir(place) as entries:
            for entry in entries:
                if os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():
                    waiting.append(entry.path)
                elif entry.name.lower().endswith(IMG_EXTENSIONS):
                    names.append(entry.name)
    found: list[str] = []
    for place in sorted(files):
        below = "" if place == top else place[len(top) + 1 :] + os.sep
        found += [below + name for name in sorted(files[place])]
    return found, folders


def _changed(path: str) -> int:
    return os.stat(path).st_mtime_ns


def _cache_of(top: Path) -> Path:
    return cache_folder() / f"index-{hashlib.sha256(os.fsencode(top.resolve())).hexdigest()[:24]}.json"


def _remember(path: Path, index: dict[str, object]) -> None:
    """A convenience: where it cannot be written, the next run looks anew."""
    with suppress(OSError), written_whole(path) as temporary:
        temporary.write_text(json.dumps(index), encoding="utf-8")
