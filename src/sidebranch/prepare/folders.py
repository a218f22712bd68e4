"""Puts data sets in order before they are trained on: checks a folder, sorts ImageNet's validation images."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from sidebranch.data.crop import UNREADABLE, rgb
from sidebranch.data.images import ImageSplit
from sidebranch.data.scan import scanned
from sidebranch.errors import UserError, reason


@dataclass(frozen=True)
class Checked:
    """What is in a folder of classes.

    Attributes:
        counts: split to class to number of images.
        unreadable: paths of files that are no images.
        differing: classes that are in only one of the splits.
    """

    counts: dict[str, dict[str, int]]
    unreadable: list[str]
    differing: list[str]

    @property
    def is_good(self) -> bool:
        return not self.unreadable and not self.differing


def check_folder(root: Path, done: Callable[[], object] = lambda: None) -> Checked:
    """Decodes every image under root/train and root/val.

    Args:
        root: of the data set.
        done: called after every image.

    Raises:
        UserError: it is not laid out as classes.
    """
    if not root.is_dir():
        raise UserError(f"no folder '{root}'; give one with train/CLASS/*.jpg and val/CLASS/*.jpg")
    splits = {name: scanned(root, name) for name in ("train", "val")}
    counts, unreadable = {}, []
    with ThreadPoolExecutor(os.cpu_count() or 1) as readers:
        for name, split in splits.items():
            found = split.labels.bincount(minlength=len(split.classes)).tolist()
            counts[name] = dict(zip(split.classes, found, strict=True))
            for at, good in enumerate(readers.map(_can_read, [split] * len(split), range(len(split)))):
                if not good:
                    unreadable.append(split.name(at))
                done()
    differing = sorted(set(counts["train"]) ^ set(counts["val"]))
    return Checked(counts, unreadable, differing)


def _can_read(split: ImageSplit, at: int) -> bool:
    try:
        with Image.open(io.BytesIO(split.read(at))) as file:
            rgb(file)
    except UNREADABLE:
        return False
    return True


@dataclass(frozen=True)
class Moves:
    """What sorting a folder of images comes to.

    Attributes:
        to_do: from path to path.
        done: how many files are where they belong.
        missing: names that have a label and no file.
    """

    to_do: dict[Path, Path]
    done: int
    missing: list[str]


def imagenet_val_moves(folder: Path, labels: dict[str, str]) -> Moves:
    """Which of ImageNet's validation images go into which class's folder.

    Args:
        folder: of the flat images, or of some of them after an interrupted run.
        labels: image, without its ending, to class.

    Raises:
        UserError: there is no such folder, or a file lies in another class's folder.
    """
    if not folder.is_dir():
        raise UserError(f"no folder '{folder}'; give the one that ILSVRC2012_img_val.tar was unpacked to")
    flat = {each.stem: each for each in folder.iterdir() if each.suffix.lower() in IMG_EXTENSIONS}
    sorted_in = {each.stem: each for each in folder.glob("*/*") if each.suffix.lower() in IMG_EXTENSIONS}
    to_do, missing, done = {}, [], 0
    for name, label in labels.items():
        at = sorted_in.get(name)
        if at is not None and at.parent.name != label:
            raise UserError(f"'{at}' is of class {label}; was it sorted by other labels? Put it back into '{folder}'")
        if at is not None:
            done += 1
        elif name in flat:
            to_do[flat[name]] = folder / label / flat[name].name
        else:
            missing.append(name)
    unknown = sorted(set(flat) - set(labels))
    if unknown:
        raise UserError(f"'{flat[unknown[0]]}' and {len(unknown) - 1} more have no label; are these labels ImageNet's?")
    return Moves(to_do, done, missing)


def read_imagenet_labels(labels: str, devkit: str) -> dict[str, str]:
    """Image to class (a WordNet ID), from a text file or from the development kit.

    Args:
        labels: lines of an image's name and its class, parted by a space or comma, as in Kaggle's LOC_val_solution.csv.
        devkit: the folder ILSVRC2012_devkit_t12, unpacked.

    Raises:
        UserError: neither or both are given, or what is given is not that.
    """
    if bool(labels) == bool(devkit):
        raise UserError("prepare imagenet-val needs either --labels FILE or --devkit ILSVRC2012_devkit_t12")
    try:
        found: dict[str, str] = {}
        for name, label in _of_lines(Path(labels)) if labels else _of_devkit(Path(devkit)):
            if found.setdefault(name, label) != label:
                raise ValueError(f"{name} is {found[name]} and {label}")
    except (OSError, ValueError, KeyError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the labels in '{labels or devkit}' ({reason(error)})") from error
    if not found:
        raise UserError(f"'{labels}' has no lines such as 'ILSVRC2012_val_00000001.JPEG n01751748'")
    return found


def _of_lines(path: Path) -> Iterator[tuple[str, str]]:
    for line in path.read_text(encoding="utf-8").splitlines():
        words = re.split(r"[\s,;]+", line.strip())
        if len(words) >= 2 and re.fullmatch(r"n\d{8}", words[1]):
            yield Path(words[0]).stem, words[1]


def _of_devkit(folder: Path) -> Iterator[tuple[str, str]]:
    from scipy.io import loadmat  # half a second, and needed here alone

    synsets = loadmat(str(folder / "data" / "meta.mat"), squeeze_me=True)["synsets"]
    classes = {int(each["ILSVRC2012_ID"]): str(each["WNID"]) for each in synsets}
    truth = (folder / "data" / "ILSVRC2012_validation_ground_truth.txt").read_text(encoding="utf-8").split()
    for number, each in enumerate(truth, 1):
        yield f"ILSVRC2012_val_{number:08d}", classes[int(each)]


def move(moves: Moves) -> None:
    """Carries them out; may be interrupted after any, and begun again.

    Raises:
        UserError: a file cannot be moved.
    """
    try:
        for source, target in moves.to_do.items():
            target.parent.mkdir(exist_ok=True)
            os.rename(source, target)
    except OSError as error:
        raise UserError(f"cannot move '{error.filename}' ({error.strerror}); what was moved stays moved") from error
