"""The small search behind the demo's settings: peak learning rate, epochs and weight decay, baseline against DHM.

    python benchmarks/digits_search.py results/digits-search/runs.csv

Writes a row a run. Finished rows are kept, so it can be stopped and started.
"""

from __future__ import annotations

import csv
import itertools
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from sidebranch.config import recipe
from sidebranch.runs.folder import RunFolder
from sidebranch.train.loop import train

RATES = (0.003, 0.005, 0.01, 0.02, 0.03, 0.05)
EPOCHS = (40, 60)
DECAYS = (5e-4,)
PADDINGS = (1, 0)
SEEDS = tuple(range(8))
FIELDS = ("epochs", "lr", "weight_decay", "padding", "seed", "method", "main", "b1", "b2", "ensemble", "seconds")


def main(path: Path) -> None:
    done = set()
    if path.exists():
        with open(path, encoding="utf-8", newline="") as file:
            done = {tuple(row[field] for field in FIELDS[:6]) for row in csv.DictReader(file)}
    base = recipe.load(recipe.find("digits/demo"))
    for padding, epochs, lr, decay, seed in itertools.product(PADDINGS, EPOCHS, RATES, DECAYS, SEEDS):
        for method in ("baseline", "dhm"):
            if tuple(map(str, (epochs, lr, decay, padding, seed, method))) in done:
                continue
            optim = replace(base.optim, epochs=epochs, lr=lr, weight_decay=decay)
            config = replace(base, method=method, seed=seed, optim=optim, data=replace(base.data, padding=padding))
            with tempfile.TemporaryDirectory() as folder:
                last = train(config, RunFolder(Path(folder)))[-1]
            errors = [last.get(f"val/top1/{name}", "") for name in ("main", "b1", "b2", "ensemble")]
            is_new = not path.exists()
            with open(path, "a", encoding="utf-8", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                if is_new:
                    writer.writerow(FIELDS)
                writer.writerow([epochs, lr, decay, padding, seed, method, *errors, last["seconds"]])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
