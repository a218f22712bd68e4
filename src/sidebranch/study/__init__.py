"""Grids of runs."""

from sidebranch.study.grid import run_grid

__all__ = ["run_grid"]
