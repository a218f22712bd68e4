"""Trains the runs that it is told to, one after another, in one of several processes: FOLDER CONFIG ..."""

import sys
import warnings
from pathlib import Path

from sidebranch.engine import RunFolder, recipe, train

if __name__ == "__main__":
    warnings.simplefilter("error", UserWarning)
    root = Path(sys.argv[1])
    for config in map(Path, sys.argv[2:]):
        folder = RunFolder(root / config.stem)
        train(recipe.load(config), folder, resume=folder.last.exists())
