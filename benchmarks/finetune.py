"""Do side branches help where most users train: fine-tuning from real ImageNet weights, on a folder of photographs?

    python benchmarks/finetune.py weights imagenette-small results-folder

`weights` has the two files of `lite_weights.py`. In: 2,000 training photographs of ten classes, at 96x96. Out: a study
of EfficientNet-Lite0 by methods, 3 seeds, each with the learning rate that was best for it on a fifth of the training
photographs that it did not train on. Every stage is a study, so the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

RATES = (3e-4, 1e-3, 3e-3)
HELD_OUT = 5  # every fifth training photograph
FLAGS = {
    "data.image_size": 96,
    "data.resize": 108,
    "data.workers": 0,
    "optim.epochs": 5,
    "runtime.precision": "32-true",  # depthwise convolutions in bf16 are slower on CPUs
}
METHODS = {"baseline": {"method": "baseline"}, "DSL": {"method": "dsl"}, "DHM": {"method": "dhm"}}
SLOW_TRUNK, LONG_PHASE = {"optim.layer_decay": 0.75}, {"optim.new_layers_epochs": 3}
COPIES = {"branches.init": "copy", "branches.width": 1}


def split(data: Path, output: Path) -> Path:
    """A folder of links: every fifth training photograph of each class in val/, the others in train/."""
    for folder in sorted((data / "train").iterdir()):
        for number, path in enumerate(sorted(folder.iterdir())):
            link = output / ("val" if number % HELD_OUT == 0 else "train") / folder.name / path.name
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.exists():
                link.symlink_to(path.resolve())
    return output


def study(path: Path, variants: dict[str, Any], about: str, flags: dict[str, Any], seeds: int) -> list[dict[str, Any]]:
    """Runs a study to its end; its rows."""
    groups = [{"recipes": ["folder/finetune"], "variants": variants}]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({"about": about, "seeds": seeds, "groups": groups}, sort_keys=False))
    words = [word for key, value in flags.items() for word in (f"--{key}", str(value))]
    root = path.parent / path.stem
    common = ["--output", str(root), "--seeds", str(seeds), "--parallel", "2"]
    subprocess.run([sys.executable, "-m", "sidebranch", "study", str(path), *common, *words], check=True)
    return [json.loads(line) for line in (root / "results.jsonl").read_text().splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("weights", "data", "output"):
        parser.add_argument(name, type=Path)
    options = parser.parse_args()
    lite0, lite2 = ({"model.name": name, "model.weights": str(options.weights / f"{name}.safetensors")}
                    for name in ("tf_efficientnet_lite0", "tf_efficientnet_lite2"))  # fmt: skip

    held_out = FLAGS | lite0 | {"data.root": split(options.data, options.output / "split")}
    rates = {f"{name}, {rate:g}": settings | {"optim.lr": rate} for name, settings in METHODS.items() for rate in RATES}
    rows = study(options.output / "rates.yaml", rates, "Learning rates, on held-out training photographs", held_out, 1)
    errors = {row["variant"]: row["last"]["main"] for row in rows}
    best = {name: min(RATES, key=lambda rate: errors[f"{name}, {rate:g}"]) for name in METHODS}
    print("rates:", best)

    everything = FLAGS | {"data.root": options.data}
    teacher = {"teacher": METHODS["baseline"] | {"optim.lr": best["baseline"]}}
    study(options.output / "teacher.yaml", teacher, "The teacher, EfficientNet-Lite2", everything | lite2, 1)
    run = next((options.output / "teacher" / "cells").iterdir())

    base, dhm = ({**METHODS[name], "optim.lr": best[name]} for name in ("baseline", "DHM"))
    variants = {
        "baseline": base,
        "DSL": {**METHODS["DSL"], "optim.lr": best["DSL"]},
        "DHM": dhm,
        "KD from Lite2": {**base, "method": "kd", "teacher.run": str(run)},
        "baseline, slow trunk": base | SLOW_TRUNK,
        "DHM, slow trunk": dhm | SLOW_TRUNK,
        "DHM, copied branches": dhm | COPIES,
        "DHM, 3 epochs of new layers first": dhm | LONG_PHASE,
    }
    about = "EfficientNet-Lite0 from ImageNet weights, fine-tuned on 2,000 photographs of ten classes at 96x96"
    study(options.output / "finetune.yaml", variants, about, everything | lite0, 3)


if __name__ == "__main__":
    main()
