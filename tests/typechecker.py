"""beartype for the tests: takes an int for a float as type checkers do; our own errors judge choices of words."""

from typing import Literal

from beartype import BeartypeConf, FrozenDict, beartype

WORDS = [
    Literal["both", "top_down", "bottom_up"],
    Literal["main", "branches", "all"],
    Literal["mimicry", "branch"],
    Literal["epoch", "step"],
]

check = beartype(conf=BeartypeConf(is_pep484_tower=True, hint_overrides=FrozenDict({w: str for w in WORDS})))
