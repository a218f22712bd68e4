"""Every method with every seed, each in a folder of its own; what is finished is not run again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sidebranch.engine import Config, RunFolder, train
from sidebranch.engine.config import Method
from sidebranch.engine.progress import Reporter


def run_grid(
    config: Config, methods: Sequence[Method], seeds: Sequence[int], root: Path, reporter: Reporter
) -> list[RunFolder]:
    """Trains the config under each method and seed, in `root`/METHOD-seedSEED; goes on where it was stopped.

    Returns:
        The runs' folders, method by method.
    """
    folders = []
    for method in methods:
        for seed in seeds:
            folder = RunFolder(root / f"{method}-seed{seed}")
            train(replace(config, method=method, seed=seed), folder, resume=folder.last.exists(), reporter=reporter)
            folders.append(folder)
    return folders
