"""Several runs: methods by seeds, one after another or at once."""

from sidebranch.study.at_once import run_at_once
from sidebranch.study.grid import run_grid

__all__ = ["run_at_once", "run_grid"]
