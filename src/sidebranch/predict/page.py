"""A page of photographs with every classifier's opinion, the disagreements first."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sidebranch.runs.atomic_files import write_text

MOST = 500  # photographs on a page


@dataclass(frozen=True)
class Opinion:
    """What one classifier says about a photograph: its name, the class, and the probability."""

    classifier: str
    answer: str
    probability: float


@dataclass(frozen=True)
class Explained:
    """A photograph: its file, a small copy as JPEG in base64, and the opinions, that which counts first."""

    path: str
    thumb: str
    opinions: tuple[Opinion, ...]

    @property
    def answers(self) -> int:
        """How many different answers there are."""
        return len({each.answer for each in self.opinions})


def write_page(photos: Sequence[Explained], path: Path, title: str) -> None:
    """Writes the page: one file, which needs no other.

    Args:
        photos: all.
        path: of the file.
        title: of the page.
    """
    from jinja2 import ChoiceLoader, Environment, PackageLoader

    rooms = ChoiceLoader([PackageLoader("sidebranch.predict", "."), PackageLoader("sidebranch.inspect", ".")])
    page = Environment(loader=rooms, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    ordered = sorted(photos, key=lambda each: (-each.answers, each.opinions[0].probability))
    folders = {os.path.dirname(each.path) for each in photos}
    can_be_shortened = len(folders) == 1 or (folders and all(map(os.path.isabs, folders)))
    common = os.path.commonpath(folders) if can_be_shortened else ""
    text = page.get_template("opinions.html.j2").render(
        title=title,
        photos=ordered[:MOST],
        folder=common,
        count=len(photos),
        differing=sum(each.answers > 1 for each in photos),
        has_several=any(len(each.opinions) > 1 for each in photos),
    )
    write_text(path, text)
