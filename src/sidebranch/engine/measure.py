"""What a run is judged by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Measure:
    """A number in percent, of every classifier.

    Attributes:
        key: in metrics.csv it stands under "val/KEY/CLASSIFIER".
        name: in prose.
        higher_is_better: whether more of it is better.
    """

    key: str
    name: str
    higher_is_better: bool

    def is_better(self, value: float, than: float) -> bool:
        return value > than if self.higher_is_better else value < than

    def of(self, row: Mapping[str, float], column: str = "main") -> float:
        """One classifier's, in a row of metrics.csv."""
        return row[f"val/{self.key}/{column}"]

    def columns(self, row: Mapping[str, float]) -> list[str]:
        """The classifiers that a row has it of."""
        start = f"val/{self.key}/"
        return [key.removeprefix(start) for key in row if key.startswith(start)]


TOP1 = Measure("top1", "top-1 error", higher_is_better=False)
MEAN_AP = Measure("mAP", "mAP", higher_is_better=True)


def measure_of(row: Mapping[str, float]) -> Measure:
    """By which the run of a row of metrics.csv is judged."""
    return MEAN_AP if "val/mAP/main" in row else TOP1
