"""Ranges of numeric fields, with the message for a value outside."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sidebranch.errors import UserError


@dataclass(frozen=True)
class Range:
    """Numbers from `least` to `most`.

    Args:
        above: `least` itself is excluded.
        below: `most` itself is excluded.
        what: the range in words; made from the numbers if empty.
    """

    least: float
    most: float = math.inf
    above: bool = False
    below: bool = False
    what: str = ""

    def __contains__(self, value: float) -> bool:
        is_high_enough = value > self.least if self.above else value >= self.least
        return is_high_enough and (value < self.most if self.below else value <= self.most) and math.isfinite(value)

    def __str__(self) -> str:
        low = f"above {self.least:g}" if self.above else f"at least {self.least:g}"
        high = f" and below {self.most:g}" if self.below else f" and at most {self.most:g}"
        return self.what or low + (high if self.most < math.inf else "")


ABOVE_0 = Range(0, above=True)
AT_LEAST_0 = Range(0)
AT_LEAST_1 = Range(1)
BELOW_1 = Range(0, 1, below=True)
PROBABILITY = Range(0, 1)
SHARE = Range(0, 1, above=True)


def check_ranges(config: object, group: str, **ranges: Range) -> None:
    """Checks fields of a dataclass; of a tuple, every element.

    Raises:
        UserError: names the first field outside its range, and the range.
    """
    for name, allowed in ranges.items():
        value = getattr(config, name)
        if not all(each in allowed for each in (value if isinstance(value, tuple) else (value,))):
            shown = list(value) if isinstance(value, tuple) else value
            raise UserError(f"{group + '.' if group else ''}{name} is {shown}; it must be {allowed}")
