"""One of several processes: trains runs, one after another, or dies in one of them.

together.py FOLDER CONFIG ...
together.py die STEP FOLDER CONFIG     the command, whose second process is killed before a step
"""

import os
import signal
import sys
import warnings
from pathlib import Path

from sidebranch.cli import main
from sidebranch.config import recipe
from sidebranch.runs.folder import RunFolder
from sidebranch.train.loop import train
from sidebranch.train.step import TrainStep


def dying(step):
    def call(self, images, labels, moment):
        if moment.done == step and self.fabric.global_rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return working(self, images, labels, moment)

    working = TrainStep.__call__
    return call


if __name__ == "__main__":
    warnings.simplefilter("error", UserWarning)
    if sys.argv[1] == "die":
        TrainStep.__call__ = dying(int(sys.argv[2]))
        sys.exit(main(["train", sys.argv[4], "--output", sys.argv[3], "--runtime.devices", "2"]))
    root = Path(sys.argv[1])
    for config in map(Path, sys.argv[2:]):
        folder = RunFolder(root / config.stem)
        train(recipe.load(config), folder, resume=folder.last.exists())
