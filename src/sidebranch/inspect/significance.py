"""Whether a gain is larger than chance: a 95 % interval of the difference between two kinds of run.

In: values of two kinds of run, by seed, in percent. Out: a `Gain`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import mean, stdev

# Student's t, 97.5 % quantile, for 1 to 10 degrees of freedom; scipy's takes longer to import than a report to write.
T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
NORMAL = 1.96


@dataclass(frozen=True)
class Gain:
    """A difference of two kinds of run, in percentage points.

    Attributes:
        points: how much higher the first is.
        half_width: of the 95 % interval; None if there is none.
        of: what varies: "seeds" or "images".
    """

    points: float
    half_width: float | None
    of: str

    @property
    def is_noise(self) -> bool:
        """Whether the interval includes 0."""
        return self.half_width is not None and abs(self.points) <= self.half_width

    def __str__(self) -> str:
        """ "2.90 points lower (95 % interval over seeds: 1.90 to 3.90)"."""
        size = abs(self.points)
        text = f"{size:.2f} points {'higher' if self.points > 0 else 'lower'}" if size >= 0.005 else "the same"
        if self.half_width is None:
            return text
        low, high = size - self.half_width, size + self.half_width
        text += f" (95 % interval over {self.of}: {low:.2f} to {high:.2f})"
        return text + (", within noise" if self.is_noise else "")


def gain(
    values: Mapping[int, float], reference: Mapping[int, float], images: int | None, is_share: bool = True
) -> Gain:
    """The mean of the paired differences over common seeds, with Student's interval.

    Of one common seed, the interval is that of two shares of the validation images, as if they were different images:
    wider than the true one. Without a common seed, the difference is that of the means.

    Args:
        values: seed to value, in percent.
        reference: the same of the kind to compare with.
        images: number of validation images, if known.
        is_share: whether a value is a share of the images, as an error is.
    """
    if common := values.keys() & reference.keys():
        values, reference = ({seed: each[seed] for seed in common} for each in (values, reference))
    points = mean(values.values()) - mean(reference.values())
    pairs = [values[seed] - reference[seed] for seed in common]
    if len(pairs) > 1:
        return Gain(points, _t(len(pairs) - 1) * stdev(pairs) / math.sqrt(len(pairs)), "seeds")
    if not images or not is_share:
        return Gain(points, None, "images")
    shares = [mean(each.values()) / 100 for each in (values, reference)]
    return Gain(points, 100 * NORMAL * math.sqrt(sum(p * (1 - p) / images for p in shares)), "images")


def _t(freedom: int) -> float:
    """Student's quantile; above ten degrees of freedom by its expansion around the normal one."""
    if freedom <= len(T):
        return T[freedom - 1]
    z = NORMAL
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
