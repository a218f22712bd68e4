import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import sidebranch as sb
from sidebranch.evaluation.of_run import evaluate_run
from sidebranch.runs import checkpoint
from sidebranch.runs.folder import RunFolder
from sidebranch.train.loop import train


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "checkpoints" / "last.ckpt"
    checkpoint.save(path, {"model": {"weight": torch.randn(1000)}, "epoch": 3})
    return path


def test_round_trip(saved):
    assert checkpoint.load(saved)["epoch"] == 3


@pytest.mark.parametrize("length", [0, 1, 100, 2000, -1])
def test_a_truncated_file_is_called_damaged(saved, length):
    saved.write_bytes(saved.read_bytes()[:length])
    with pytest.raises(sb.UserError, match=r"'.*last\.ckpt' is damaged"):
        checkpoint.load(saved)


def test_a_bit_flipped_file_is_called_damaged(saved):
    content = bytearray(saved.read_bytes())
    content[len(content) // 2] ^= 1
    saved.write_bytes(bytes(content))
    with pytest.raises(sb.UserError, match="is damaged"):
        checkpoint.load(saved)


class Bomb:
    def __reduce__(self):
        return (exec, ("import pathlib; pathlib.Path('/tmp/sidebranch-bomb').touch()",))


@pytest.mark.parametrize(
    "write", [lambda path: torch.save(Bomb(), path), lambda path: path.write_bytes(pickle.dumps(Bomb()))]
)
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path, write):
    path = tmp_path / "evil.ckpt"
    write(path)
    with pytest.raises(sb.UserError, match="not safe to open|no checkpoint of sidebranch"):
        checkpoint.load(path)
    assert not Path("/tmp/sidebranch-bomb").exists()


def test_another_file_is_no_checkpoint(tmp_path):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(sb.UserError, match="no checkpoint of sidebranch train"):
        checkpoint.load(tmp_path / "other.pth")
    with pytest.raises(sb.UserError, match="no checkpoint '.*missing"):
        checkpoint.load(tmp_path / "missing.ckpt")


def test_a_checkpoint_of_another_network_is_refused(digits_config, tmp_path):
    folder = RunFolder(tmp_path / "run")
    config = replace(digits_config, optim=replace(digits_config.optim, epochs=1))
    train(config, folder)
    state = checkpoint.load(folder.last)
    del state["model"]["backbone.fc.bias"]
    checkpoint.save(folder.last, state)
    with pytest.raises(sb.UserError, match=r"of another network: backbone\.fc\.bias missing"):
        train(config, folder, resume=True)
    with pytest.raises(sb.UserError, match="of another network"):
        evaluate_run(folder)


def test_a_failed_write_leaves_the_old_file(saved, monkeypatch):
    before = saved.read_bytes()

    def fail(state, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(sb.UserError, match="is unchanged"):
        checkpoint.save(saved, {})
    assert saved.read_bytes() == before
    assert [each.name for each in saved.parent.iterdir()] == ["last.ckpt"]
