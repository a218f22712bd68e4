"""Every method with every seed, each in its own folder; finished runs are not repeated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sidebranch.config.schema import Config, Method
from sidebranch.runs.console import Reporter
from sidebranch.runs.folder import RunFolder
from sidebranch.train.loop import train


def run_grid(
    config: Config, methods: Sequence[Method], seeds: Sequence[int], root: Path, reporter: Reporter
) -> list[RunFolder]:
    """Trains the config with each method and seed, in `root`/METHOD-seedSEED; resumes what was stopped.

    Returns:
        The runs' folders, method by method.
    """
    folders = []
    for method in methods:
        for seed in seeds:
            folder = RunFolder(root / f"{method}-seed{seed}")
            train(replace(config, method=method, seed=seed), folder, resume=folder.is_used(), reporter=reporter)
            folders.append(folder)
    return folders
