"""Runs that are killed by tests, and what they come to if they are not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from sidebranch.runs import checkpoint
from sidebranch.runs.folder import RunFolder

# A checkpoint nearly every step, so that kills meet writes; everything that has state is on.
DIGITS = """
model: {name: cifar_resnet8}
data: {name: digits, batch_size: 32, limit: 150, padding: 1, flip: false}
sampling: {kind: bernoulli, drops: branch, per: step}
optim: {lr: 0.05, epochs: 3, schedule: cosine, ema: 0.9, clip: 1.0}
runtime: {accelerator: cpu, precision: 32-true, log_every: 2, checkpoint_minutes: 0.001}
"""


PHOTOS = """
model: {name: test_resnet, options: {drop_rate: 0.2}}
data: {name: folder, root: ROOT, batch_size: 4, image_size: 32, resize: 36, workers: WORKERS}
optim: {name: adamw, lr: 0.01, epochs: 4, schedule: one_cycle}
runtime: {accelerator: cpu, precision: 32-true, log_every: 2, checkpoint_minutes: 0.0001}
"""


TIMES = ("seconds", "images_per_second")


class Trainer:
    """See forking_trainer.py."""

    def __init__(self):
        command = [sys.executable, str(Path(__file__).with_name("forking_trainer.py"))]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert self.process.stdout.readline() == "ready\n"

    def run(self, config, folder, resume=False, number=None, after=0.0, largest=None):
        request = {"config": str(config), "folder": str(folder), "resume": resume, "signal": number, "after": after}
        request["largest"] = largest
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


def write_photos(root, pixels):
    from PIL import Image

    for number, each in enumerate(pixels):
        part = "train" if number < 18 else "val"
        place = root / part / ("ant", "bee", "cat")[number % 3]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(each.numpy()).save(place / f"{number}.png")


def outcome(root):
    """All that a run leaves, but for times: weights, optimiser, averages, metrics."""
    folder = RunFolder(Path(root))
    state = checkpoint.load(folder.last)
    lines = [line.split(",") for line in folder.metrics.read_text().splitlines()]
    columns = [at for at, name in enumerate(lines[0]) if name not in TIMES]
    state["metrics"] = [[line[at] for at in columns] for line in lines]
    state["shipped"] = folder.weights.read_bytes()
    state["rows"] = [{key: value for key, value in row.items() if key not in TIMES} for row in state["rows"]]
    state["best epoch"] = checkpoint.load(folder.best)["epoch"]
    del state["seconds"], state["config"]
    return state


def assert_same(one, other, where=""):
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for at, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{where}/{at}")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    else:
        assert one == other, where
