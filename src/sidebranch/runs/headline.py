"""The run's headline metric: top-1 error, or mAP in re-identification."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Headline:
    """A metric in percent, measured for every classifier.

    Attributes:
        key: metrics.csv has it as "val/KEY/CLASSIFIER".
        name: in prose.
        higher_is_better: whether a higher value is better.
    """

    key: str
    name: str
    higher_is_better: bool

    def is_better(self, value: float, than: float) -> bool:
        return value > than if self.higher_is_better else value < than

    def of(self, row: Mapping[str, float], column: str = "main") -> float:
        """A classifier's value in a row of metrics.csv."""
        return row[f"val/{self.key}/{column}"]

    def columns(self, row: Mapping[str, float]) -> list[str]:
        """Classifiers with this metric in the row."""
        start = f"val/{self.key}/"
        return [key.removeprefix(start) for key in row if key.startswith(start)]


TOP1 = Headline("top1", "top-1 error", higher_is_better=False)
MEAN_AP = Headline("mAP", "mAP", higher_is_better=True)


def headline_of(row: Mapping[str, float]) -> Headline:
    """The headline metric of the run that a row of metrics.csv belongs to."""
    return MEAN_AP if "val/mAP/main" in row else TOP1
