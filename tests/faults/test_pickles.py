"""Files that would run code when they are opened: refused, and nothing is run."""

import pickle
import shutil

import pytest
import torch
import yaml
from sampled import one_in

from sidebranch.cli import main
from sidebranch.runs.folder import RunFolder
from sidebranch.train.loop import train


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def pickled(bomb, path):
    path.write_bytes(pickle.dumps(bomb))


def saved(bomb, path):
    torch.save(bomb, path)


def saved_old(bomb, path):
    torch.save(bomb, path, _use_new_zipfile_serialization=False)


def in_a_state(bomb, path):
    torch.save({"format": 1, "model": {"backbone.fc.weight": bomb}}, path)


WRITERS = {"a pickle": pickled, "torch.save": saved, "torch.save of old": saved_old, "in a state": in_a_state}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    from sidebranch.config import recipe

    root = tmp_path_factory.mktemp("trained")
    config = root / "digits.yaml"
    config.write_text("""
model: {name: cifar_resnet8}
data: {name: digits, batch_size: 64, limit: 64, padding: 1, flip: false}
optim: {epochs: 1, schedule: constant}
runtime: {accelerator: cpu, precision: 32-true}
""")
    train(recipe.load(config), RunFolder(root / "run"))
    return root / "run"


@pytest.fixture
def bomb(tmp_path):
    bomb = Bomb(tmp_path / "went-off")
    yield bomb
    assert not bomb.path.exists()


@pytest.fixture
def run(trained, tmp_path):
    return RunFolder(shutil.copytree(trained, tmp_path / "run"))


def refused(capsys, *arguments):
    assert main(list(map(str, arguments))) == 2
    message = capsys.readouterr().err.strip().splitlines()
    assert len(message) == 1, message


@pytest.mark.parametrize("how", one_in(3, WRITERS))
class TestRefused:
    def test_to_resume(self, run, bomb, how, capsys):
        WRITERS[how](bomb, run.last)
        run.previous.unlink(missing_ok=True)
        refused(capsys, "train", run.root, "--resume")

    def test_to_fall_back_to(self, run, bomb, how, capsys):
        run.last.unlink()
        WRITERS[how](bomb, run.previous)
        refused(capsys, "train", run.root, "--resume", "--output", run.root)

    def test_to_evaluate(self, run, bomb, how, capsys):
        WRITERS[how](bomb, run.best)
        refused(capsys, "eval", run.root, "--checkpoint", "best")

    def test_to_export(self, run, bomb, how, capsys, tmp_path):
        WRITERS[how](bomb, run.last)
        refused(capsys, "export", run.root, "--output", tmp_path / "out.safetensors")

    def test_as_the_papers_weights(self, bomb, how, capsys, tmp_path):
        WRITERS[how](bomb, tmp_path / "reference.pth")
        output = tmp_path / "out.safetensors"
        refused(capsys, "export", "imagenet/resnet18", "--weights", tmp_path / "reference.pth", "--output", output)

    def test_as_data(self, bomb, how, capsys, tmp_path):
        place = tmp_path / "data" / "cifar-100-python"
        place.mkdir(parents=True)
        for name in ("train", "test", "meta"):
            WRITERS[how](bomb, place / name)
        refused(capsys, "train", "cifar100/resnet32", "--data.root", tmp_path / "data", "--output", tmp_path / "new")

    def test_as_a_shard_s_index(self, bomb, how, capsys, tmp_path):
        (tmp_path / "shards").mkdir()
        WRITERS[how](bomb, tmp_path / "shards" / "index.json")
        refused(capsys, "train", "folder/resnet32", "--data.root", tmp_path / "shards", "--output", tmp_path / "new")


def test_as_a_recipe(bomb, tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"model: !!python/object/apply:builtins.open ['{bomb.path}', 'w']\n")
    with pytest.raises(yaml.YAMLError):
        yaml.safe_load(path.read_text())
    refused(capsys, "train", path, "--output", tmp_path / "new")
