"""Check a folder of classes; sort ImageNet's validation images into classes. Imports no torch."""

from __future__ import annotations

import io
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from sidebranch.data.sources.decoding import EXTENSIONS, UNREADABLE, rgb
from sidebranch.data.sources.scan import files_of_folders
from sidebranch.errors import UserError, reason


@dataclass(frozen=True)
class Checked:
    """The content of a folder of classes.

    Attributes:
        counts: split to class to number of images, the unreadable ones too.
        unreadable: paths of unreadable images.
        differing: classes that are in one split only.
        empty: folders of classes without an image.
        missing: the split that is not there, or "".
        others: number of files that are no images by their names, and are passed over.
    """

    counts: dict[str, dict[str, int]]
    unreadable: list[str]
    differing: list[str]
    empty: list[str]
    missing: str
    others: int = 0

    @property
    def faults(self) -> int:
        return len(self.unreadable) + len(self.differing) + len(self.empty) + bool(self.missing)


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
    missing = [name for name in ("train", "val") if not (root / name).is_dir()]
    present = [name for name in ("train", "val") if len(missing) == 2 or name not in missing]  # with neither, it raises
    splits = {name: files_of_folders(root, name) for name in present}
    counts, unreadable = {}, []
    with ThreadPoolExecutor(os.cpu_count() or 1) as readers:
        for name, classes in splits.items():
            counts[name] = {each: len(files) for each, files in classes.items()}
            paths = [path for files in classes.values() for path in files]
            for path, is_readable in zip(paths, readers.map(_is_readable, paths), strict=True):
                if not is_readable:
                    unreadable.append(path)
                done()
    differing = [] if missing else sorted(set(counts["train"]) ^ set(counts["val"]))
    empty = [str(root / name / each) for name in splits for each, files in splits[name].items() if not files]
    files = sum(len(names) for name in present for _, _, names in os.walk(root / name))
    others = files - sum(sum(each.values()) for each in counts.values())
    return Checked(counts, unreadable, differing, empty, missing[0] if missing else "", max(0, others))


def split_folder(
    source: Path, target: Path, share: float, seed: int, done: Callable[[], object] = lambda: None
) -> dict[str, dict[str, int]]:
    """Copies source/CLASS/*.jpg to target/train/CLASS and target/val/CLASS; all of it or nothing.

    Args:
        source: with a folder a class.
        target: a new folder.
        share: of every class's images that go to val, rounded up.
        seed: of the draw.
        done: called after every image.

    Returns:
        Split to class to number of images.

    Raises:
        UserError: the source has no classes or was split already, a class has too few images, or the target exists or
            cannot be written.
    """
    from sklearn.model_selection import train_test_split

    if not source.is_dir():
        raise UserError(f"no folder '{source}'; give one with CLASS/*.jpg")
    if (source / "train").is_dir() and (source / "val").is_dir():
        raise UserError(f"'{source}' is split already: it has train and val")
    if target.exists():
        raise UserError(f"'{target}' exists; give another folder")
    source, target = source.resolve(), target.resolve()
    classes = files_of_folders(source.parent, source.name)
    if few := [name for name, files in classes.items() if math.ceil(share * len(files)) >= len(files)]:
        raise UserError(
            f"a share of {share:g} leaves no training image of the class '{few[0]}', which has {len(classes[few[0]])}"
        )
    counts: dict[str, dict[str, int]] = {"train": {}, "val": {}}
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as temporary:
            staged = Path(temporary) / target.name
            for name, files in classes.items():
                parts = train_test_split(files, test_size=share, random_state=seed)
                for split, part in zip(counts, parts, strict=True):
                    counts[split][name] = len(part)
                    for file in part:
                        to = staged / split / Path(file).relative_to(source)
                        to.parent.mkdir(parents=True, exist_ok=True)
                        shutil.copy2(file, to)
                        done()
            os.replace(staged, target)
    except OSError as error:
        raise UserError(f"cannot copy to '{target}': {reason(error)}; nothing was kept") from error
    return counts


def _is_readable(path: str) -> bool:
    try:
        with Image.open(io.BytesIO(Path(path).read_bytes())) as file:
            rgb(file)
    except UNREADABLE:
        return False
    return True


@dataclass(frozen=True)
class Moves:
    """The moves that sort a folder of images.

    Attributes:
        to_do: from path to path.
        done: number of files that are in their place.
        missing: names with a label but without a file.
    """

    to_do: dict[Path, Path]
    done: int
    missing: list[str]


def imagenet_val_moves(folder: Path, labels: dict[str, str]) -> Moves:
    """The moves of ImageNet's validation images into the folders of their classes.

    Args:
        folder: of the flat images, or of the rest of them after an interrupted run.
        labels: image, without its ending, to class.

    Raises:
        UserError: there is no such folder, or a file lies in another class's folder.
    """
    if not folder.is_dir():
        raise UserError(f"no folder '{folder}'; give the one that ILSVRC2012_img_val.tar was unpacked to")
    flat = {each.stem: each for each in folder.iterdir() if each.suffix.lower() in EXTENSIONS}
    sorted_in = {each.stem: each for each in folder.glob("*/*") if each.suffix.lower() in EXTENSIONS}
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
