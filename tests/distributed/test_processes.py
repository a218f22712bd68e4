"""Several processes with the same global batches train as one does."""

import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from PIL import Image

from forked import run_ranks
from sidebranch.cli import main
from sidebranch.config import recipe
from sidebranch.runs import checkpoint
from sidebranch.runs.console import Silent
from sidebranch.runs.folder import RunFolder
from sidebranch.train.loop import train
from sidebranch.train.signals import Interrupted
from sidebranch.train.step import TrainStep
from training import StopAt, assert_same, changed, weights

# No batch norm, whose statistics would be of a share. 19 and 9 images: of the last batches some ranks have nothing.
PLAIN = """
model: {name: test_convnext, branches: auto}
data: {name: folder, root: ROOT, batch_size: 8, image_size: 32, resize: 36, workers: 0}
optim: {lr: 0.05, epochs: 2, schedule: cosine}
runtime: {accelerator: cpu, precision: 32-true, channels_last: "no", log_every: 1, checkpoint_minutes: 0.0001}
"""
RUNS = {
    "plain": "",
    "branches left out": "sampling: {kind: bernoulli, drops: branch, per: step}",
    "in pieces": "optim: {lr: 0.05, epochs: 2, schedule: cosine, accumulate: 2, clip: 0.5, ema: 0.9}",
    "new layers first": "optim: {lr: 0.05, epochs: 2, schedule: cosine, new_layers_epochs: 1}",
}


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    root = tmp_path_factory.mktemp("together")
    pixels = torch.randint(0, 256, (28, 40, 40, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for number, each in enumerate(pixels):
        place = root / "photos" / ("train" if number < 19 else "val") / ("ant", "bee")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(each.numpy()).save(place / f"{number}.png")
    paths = []
    for name, text in RUNS.items():
        path = root / f"{name}.yaml"
        kept = [line for line in PLAIN.splitlines() if line.split(":")[0] not in text or not line]
        path.write_text("\n".join(kept).replace("ROOT", str(root / "photos")) + f"\n{text}\n")
        paths.append(path)
    return paths


@pytest.fixture(scope="module")
def alone(configs, tmp_path_factory):
    root = tmp_path_factory.mktemp("alone")
    return {path.stem: outcome(path, root / path.stem) for path in configs}


def outcome(config, folder):
    train(recipe.load(config), RunFolder(folder))
    return read(folder)


def read(folder):
    state = checkpoint.load(RunFolder(Path(folder)).last)
    times = ("seconds", "images_per_second")
    rows = [{key: value for key, value in row.items() if key not in times} for row in state["rows"]]
    return rows, state["model"]


def assert_close(one, other):
    for row, other_row in zip(one[0], other[0], strict=True):
        assert row == pytest.approx(other_row, abs=1e-5, rel=1e-5)
    for key, value in one[1].items():
        torch.testing.assert_close(value, other[1][key], atol=1e-5, rtol=1e-4, msg=key)


def train_all(paths, root):
    """Trains runs, one after another."""
    for path in paths:
        train(recipe.load(path), RunFolder(root / path.stem))


def command_that_loses_a_rank(config, folder, step):
    """The command, whose second process is killed before a step."""
    working = TrainStep.__call__

    def call(self, images, labels, moment):
        if moment.done == step and self.fabric.global_rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return working(self, images, labels, moment)

    TrainStep.__call__ = call
    return main(["train", str(config), "--output", str(folder)])


def train_until(config, folder, done=0):
    """Trains, or goes on, until a step is reached, if it is not 0."""
    with nullcontext() if not done else pytest.raises(Interrupted):
        train(config, folder, resume=folder.is_used(), reporter=StopAt(done) if done else Silent())


@pytest.mark.parametrize(("count", "names"), [(2, tuple(RUNS)), (4, ("plain", "branches left out"))])
def test_several_processes_train_as_one(configs, alone, tmp_path, count, names):
    chosen = [path for path in configs if path.stem in names]
    statuses, messages = run_ranks(count, tmp_path, train_all, chosen, tmp_path)
    assert statuses == [0] * count, messages
    for name in names:
        assert_close(read(tmp_path / name), alone[name])


def test_an_error_of_one_process_is_the_run_s_and_leaves_nothing(configs, tmp_path):
    text = next(path for path in configs if path.stem == "plain").read_text()
    photos = Path(text.split("root: ")[1].split(",")[0])
    bad = sorted((photos / "val").rglob("*.png"))[1]  # the second process's
    content = bad.read_bytes()
    bad.write_bytes(b"no image")
    try:
        config = next(path for path in configs if path.stem == "plain")
        command = ["train", config, "--output", tmp_path / "run", "--runtime.devices", "2"]
        ended = subprocess.run(
            [sys.executable, "-m", "sidebranch", *map(str, command), "--runtime.checkpoint_minutes", "0"],
            env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
            timeout=300,
        )
    finally:
        bad.write_bytes(content)
    assert ended.returncode == 2, ended.stderr
    assert f"sidebranch: cannot read the image '{bad}'" in ended.stderr
    assert "--resume" not in ended.stderr
    assert not (tmp_path / "run").exists()


def test_a_killed_process_ends_the_others_and_the_run_goes_on_with_another_number(configs, alone, tmp_path):
    config = next(path for path in configs if path.stem == "plain")
    statuses, messages = run_ranks(2, tmp_path, command_that_loses_a_rank, config, tmp_path / "plain", 4)
    assert statuses == [75, -signal.SIGKILL]
    assert "another of the 2 processes has ended" in messages[0]
    assert "--resume" in messages[0]
    train(recipe.load(config), RunFolder(tmp_path / "plain"), resume=True)
    assert_close(read(tmp_path / "plain"), alone["plain"])


def test_a_run_whose_average_teaches_goes_on_with_the_same_bits(digits_config, tmp_path):
    """Though running statistics are each process's own, and a checkpoint within an epoch holds the first's."""
    config = changed(digits_config, objective={"teachers": ["average"], "average": 0.9})
    whole, stopped = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "stopped")
    for folder, done in ((whole, 0), (stopped, 2), (stopped, 0)):
        statuses, messages = run_ranks(2, tmp_path, train_until, config, folder, done)
        assert statuses == [0, 0], messages
    learnt = [dict(weights(each)) for each in (whole, stopped)]
    for each in learnt:  # running statistics are not what is learnt
        for name in [name for name in each if "running" in name]:
            del each[name]
    assert_same(*learnt)
