"""Runs killed at random moments, resumed, and compared, bit for bit, with one that was left alone."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sampled import a_third

from sidebranch.runs import checkpoint
from sidebranch.runs.folder import RunFolder

# A checkpoint nearly every step, so that kills meet writes; everything that has state is on.
DIGITS = """
model: {name: cifar_resnet20}
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
KINDS = ("digits", "photos", "workers")
TRIALS = 45
GENTLE = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 128 + signal.SIGUSR1}
TIMES = ("seconds", "images_per_second")
pytestmark = pytest.mark.xdist_group("trainer")  # one process that keeps it


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


@pytest.fixture(scope="module")
def trainer():
    made = Trainer()
    yield made
    made.process.stdin.close()
    made.process.stdout.close()
    made.process.wait()


@pytest.fixture(scope="module")
def undisturbed(trainer, tmp_path_factory):
    """Kind of run to its config, what it comes to when left alone, and how long it takes."""
    root = tmp_path_factory.mktemp("undisturbed")
    pixels = torch.randint(0, 256, (24, 24, 30, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    write_photos(root / "photos", pixels)
    texts = {
        "digits": DIGITS,
        "photos": PHOTOS.replace("ROOT", str(root / "photos")).replace("WORKERS", "0"),
        "workers": PHOTOS.replace("ROOT", str(root / "photos")).replace("WORKERS", "1"),
    }
    runs = {}
    for kind, text in texts.items():
        config = root / f"{kind}.yaml"
        config.write_text(text)
        ended = trainer.run(config, root / kind)
        assert ended["status"] == 0
        runs[kind] = config, outcome(root / kind), ended["seconds"]
    return runs


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


@pytest.mark.parametrize("trial", a_third(range(TRIALS)))
def test_a_killed_run_ends_as_if_left_alone(trainer, undisturbed, tmp_path, trial):
    draw = random.Random(trial)
    kind = KINDS[trial % len(KINDS)]
    config, expected, seconds = undisturbed[kind]
    for attempt in range(draw.choice((1, 1, 1, 2, 3))):
        number = draw.choice((signal.SIGKILL, signal.SIGKILL, *GENTLE))
        began = (tmp_path / "config.yaml").exists()
        ended = trainer.run(config, tmp_path, began, number, after=draw.uniform(0, seconds))
        assert ended["status"] in (0, -number, GENTLE.get(number)), f"attempt {attempt}"
    if kind == "photos":  # as many workers as one likes
        config = undisturbed["workers"][0]
    last = trainer.run(config, tmp_path, resume=(tmp_path / "config.yaml").exists())
    assert last["status"] == 0
    assert_same(outcome(tmp_path), expected)


@pytest.mark.parametrize("harm", ["truncated", "flipped", "emptied", "gone"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(trainer, undisturbed, tmp_path, harm):
    config, expected, seconds = undisturbed["digits"]
    while not RunFolder(tmp_path).previous.exists():
        resume = RunFolder(tmp_path).last.exists()
        trainer.run(config, tmp_path / "", resume, signal.SIGTERM, 0.6 * seconds)
    path = RunFolder(tmp_path).last
    content = bytearray(path.read_bytes())
    if harm == "truncated":
        content = content[: len(content) // 2]
    elif harm == "flipped":
        content[len(content) // 2] ^= 1
    path.unlink()  # a hard link's other name keeps its content
    if harm != "gone":
        path.write_bytes(b"" if harm == "emptied" else content)
    assert trainer.run(config, tmp_path, resume=True)["status"] == 0
    assert_same(outcome(tmp_path), expected)
