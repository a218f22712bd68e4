"""The image files in a folder of classes; large folders are indexed in the cache. Imports no torch."""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from sidebranch.data.sources.cache import cache_folder, written_atomically
from sidebranch.data.sources.decoding import EXTENSIONS
from sidebranch.errors import UserError

READERS = 16  # folders read at once, for network file systems
INDEXED = 10_000  # files, from which on an index is cached


def files_of_classes(root: Path, name: str) -> dict[str, list[str]]:
    """One split: class to its files under root/name/CLASS, in the order of torchvision's ImageFolder.

    Raises:
        UserError: the folder is missing, or a class has no images.
    """
    files = files_of_folders(root, name)
    empty = [each for each in files if not files[each]]
    if empty:
        shown = ", ".join(empty[:5]) + (", ..." if len(empty) > 5 else "")
        raise UserError(
            f"'{root / name}' is not laid out as CLASS/*.jpg: no images in the folder {shown}; fill or remove it"
        )
    return files


def files_of_folders(root: Path, name: str) -> dict[str, list[str]]:
    """As `files_of_classes`, with the folders that have no images.

    Raises:
        UserError: the folder is missing.
    """
    top = root / name
    if not top.is_dir():
        found = ", ".join(sorted(each.name for each in root.iterdir() if each.is_dir())[:5]) or "no folder at all"
        if (root / "bounding_box_train").is_dir():
            raise UserError(
                f"'{root}' is laid out for re-identification: sidebranch train market1501/mobilenet-short "
                f"--data.root {root}"
            )
        raise UserError(
            f"'{root}' has no folder '{name}' (found: {found}); it needs train/CLASS/*.jpg and val/CLASS/*.jpg, which "
            f"sidebranch prepare split {root} OUTPUT makes of CLASS/*.jpg"
        )
    try:
        classes = sorted(each.name for each in top.iterdir() if each.is_dir())
        if not classes:
            raise UserError(f"'{top}' is not laid out as CLASS/*.jpg: it has no folder")
        index = _index(top, classes)
    except OSError as error:
        raise UserError(f"cannot read the folder '{error.filename}' ({error.strerror})") from error
    return {each: [os.path.join(top, each, file) for file in index[each]] for each in classes}


def _index(top: Path, classes: list[str]) -> dict[str, list[str]]:
    """Class to its files, relative to its folder; from the cache if no folder has changed since."""
    cached = _cache_of(top)
    try:
        known = json.loads(cached.read_text(encoding="utf-8"))
        if sorted(known["files"]) == classes and all(
            _modified(path) == when for path, when in known["folders"].items()
        ):
            return known["files"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    with ThreadPoolExecutor(READERS) as readers:
        found = list(readers.map(_files_under, [os.path.join(top, each) for each in classes]))
    index = {name: files for name, (files, _) in zip(classes, found, strict=True)}
    if sum(map(len, index.values())) >= INDEXED:
        folders = {path: when for _, each in found for path, when in each.items()}
        _write_index(cached, {"folders": folders, "files": index})
    return index


def _files_under(top: str) -> tuple[list[str], dict[str, int]]:
    """Image files in ImageFolder's order, and the modification time of every folder. Symlink cycles are skipped."""
    files: dict[str, list[str]] = {}
    folders: dict[str, int] = {}
    seen: set[tuple[int, int]] = set()
    waiting = [top]
    while waiting:
        place = waiting.pop()
        stat = os.stat(place)
        if (stat.st_dev, stat.st_ino) in seen:
            continue
        seen.add((stat.st_dev, stat.st_ino))
        folders[place] = stat.st_mtime_ns
        names = files[place] = []
        with os.scandir(place) as entries:
            for entry in entries:
                if os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():
                    waiting.append(entry.path)
                elif entry.name.lower().endswith(EXTENSIONS):
                    names.append(entry.name)
    found: list[str] = []
    for place in sorted(files):
        below = "" if place == top else place[len(top) + 1 :] + os.sep
        found += [below + name for name in sorted(files[place])]
    return found, folders


def _modified(path: str) -> int:
    return os.stat(path).st_mtime_ns


def _cache_of(top: Path) -> Path:
    return cache_folder() / f"index-{hashlib.sha256(os.fsencode(top.resolve())).hexdigest()[:24]}.json"


def _write_index(path: Path, index: dict[str, object]) -> None:
    """Writes the index; without it the next run scans the folder again."""
    with suppress(OSError), written_atomically(path) as temporary:
        temporary.write_text(json.dumps(index), encoding="utf-8")
