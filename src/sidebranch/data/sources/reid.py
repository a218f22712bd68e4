"""Person re-identification: images with person identities and cameras.

In: a folder in the layout of Market-1501 or DukeMTMC-reID, or a CSV table. Out: training images, whose classes are the
identities; queries and gallery, of identities that are not in training.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sidebranch.data.sources.images import FileSource, ImageSplit
from sidebranch.errors import UserError

FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
COLUMNS = ("path", "identity", "camera", "split")
# 0002_c1s1_000451_03.jpg, the doubled endings of the published set too; 0001_c2_f0046182.jpg.
NAME = re.compile(r"(-1|\d+)_c(\d+)(?:s\d+_\d+_\d+|_f\d+)(?:\.(?:jpe?g|png))+", re.IGNORECASE)
JUNK = "-1"  # a bad detection, which counts neither as right nor as wrong
DISTRACTOR = "0"  # in the folders: a person who is in no query
SHOWN = 5  # names in a message


@dataclass(frozen=True)
class Sighting:
    """One image: its file, its person and its camera."""

    path: str
    identity: str
    camera: str


@dataclass(frozen=True, eq=False)
class ReIDSet:
    """A data set, read once.

    Attributes:
        train: with the identities as classes.
        test: the queries, then the gallery without junk; the "labels" are the images' numbers in this split.
        queries: number of queries.
        identities: [n], of the test images, 0 and up.
        cameras: [n], of the test images, 0 and up.
        notes: lines about the images found and left out.
    """

    train: ImageSplit
    test: ImageSplit
    queries: int
    identities: Tensor
    cameras: Tensor
    notes: tuple[str, ...]


def reid(root: str | Path, needs_train: bool = True) -> ReIDSet:
    """Reads a folder with bounding_box_train, query and bounding_box_test, or a CSV file.

    Args:
        root: of the folder, or the file.
        needs_train: if false, there may be nobody to train on.

    Raises:
        UserError: it is neither, or one of the three parts has no image.
    """
    root = Path(root)
    parts, odd = _table(root) if root.is_file() else _folders(root, needs_train)
    kept = {name: [each for each in found if each.identity != JUNK] for name, found in parts.items()}
    if not root.is_file():
        for name in ("train", "query"):
            kept[name] = [each for each in kept[name] if each.identity != DISTRACTOR]
    for name, found in kept.items():
        if not found and (needs_train or name != "train"):
            if not root.is_file():
                odd = [each for each in odd if each.startswith(f"{FOLDERS[name]}/")]
            where = (
                f"'{root}' has no row of split '{name}'" if root.is_file() else f"no image in '{root / FOLDERS[name]}'"
            )
            raise UserError(f"{where} that names an identity and a camera{_such_as(odd)}")
    train, test = kept["train"], [*kept["query"], *kept["gallery"]]
    classes = sorted({each.identity for each in train}, key=_numerically)
    labels = _numbered([each.identity for each in train], classes)
    people = sorted({each.identity for each in test})
    cameras = sorted({each.camera for each in test})
    notes = [_counted(name, parts[name], kept[name], is_table=root.is_file()) for name in FOLDERS if parts[name]]
    if odd:
        what = "incomplete rows" if root.is_file() else "files whose names have no identity and camera"
        notes.append(f"left out {len(odd):,} {what}{_such_as(odd)}")
    return ReIDSet(
        ImageSplit.of(FileSource(tuple(each.path for each in train)), labels, tuple(classes)),
        ImageSplit.of(FileSource(tuple(each.path for each in test)), torch.arange(len(test)), tuple(classes)),
        len(kept["query"]),
        _numbered([each.identity for each in test], people),
        _numbered([each.camera for each in test], cameras),
        tuple(notes),
    )


def _folders(root: Path, needs_train: bool) -> tuple[dict[str, list[Sighting]], list[str]]:
    """Split to its images, sorted by name; and the file names without identity and camera."""
    if not root.is_dir():
        raise UserError(f"no '{root}'; give --data.root a folder with {_names(FOLDERS.values())}, or a CSV file")
    parts, odd = {}, []
    for split, name in FOLDERS.items():
        if split == "train" and not needs_train and not (root / name).is_dir():
            parts[split] = []
            continue
        if not (root / name).is_dir():
            near = [root.parent, *sorted(root.glob("*")), *sorted(root.glob("*/*"))]
            inside = next((each for each in near if (each / name).is_dir()), None)
            wanted = [each for part, each in FOLDERS.items() if needs_train or part != "train"]
            hint = f"; did you mean '{inside}'?" if inside else f"; it needs {_names(wanted)}"
            raise UserError(f"'{root}' has no folder '{name}'{hint}")
        found = parts[split] = []
        for path in sorted((root / name).iterdir(), key=lambda each: each.name):
            if told := NAME.fullmatch(path.name):
                found.append(Sighting(str(path), str(int(told[1])), str(int(told[2]))))
            else:
                odd.append(f"{name}/{path.name}")
    return parts, odd


def _table(path: Path) -> tuple[dict[str, list[Sighting]], list[str]]:
    """Split to its images, in the table's order; and the incomplete rows."""
    parts, odd = {name: [] for name in FOLDERS}, []
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            if lacking := [each for each in COLUMNS if each not in (reader.fieldnames or ())]:
                raise UserError(f"'{path}' has no column {_names(lacking)}; its first line must name {_names(COLUMNS)}")
            for row in reader:
                where, who, camera, split = ((row[each] or "").strip() for each in COLUMNS)
                if where and who and camera and split in parts:
                    parts[split].append(Sighting(str(path.parent / where), who, camera))
                else:
                    odd.append(f"line {reader.line_num}")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read the table '{path}' ({error})") from error
    return parts, odd


def _counted(split: str, found: Sequence[Sighting], kept: Sequence[Sighting], is_table: bool) -> str:
    """A line about a split."""
    distractors = 0 if is_table else sum(each.identity == DISTRACTOR for each in found)
    junk = sum(each.identity == JUNK for each in found)
    people = {each.identity for each in kept} - ({DISTRACTOR} if distractors else set())
    cameras = {each.camera for each in kept}
    text = f"{split}: {len(kept):,} images of {len(people):,} identities, {len(cameras)} cameras"
    if distractors:
        text += f", {distractors:,} distractors {'among them' if split == 'gallery' else 'left out'}"
    return text + (f", {junk:,} junk left out" if junk else "")


def _numbered(names: Iterable[str], of: Sequence[str]) -> Tensor:
    """[n], the positions of names in a list."""
    places = {name: place for place, name in enumerate(of)}
    return torch.tensor([places[name] for name in names], dtype=torch.int64)


def _numerically(name: str) -> tuple[int, str]:
    return (int(name), name) if name.isdecimal() and len(name) < 20 else (0, name)


def _names(names: Iterable[str]) -> str:
    return ", ".join(names)


def _such_as(names: Sequence[str]) -> str:
    return f": {_names(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''}" if names else ""
