"""Trackers get every metric, go on after a resume, and never stop a run."""

import sys
import types
from pathlib import Path

import pytest

import sidebranch as sb
from sidebranch.runs import trackers
from sidebranch.runs.console import Silent
from sidebranch.runs.trackers import NAME, Trackers, tracker


class Logger:
    def __init__(self, fails_at=None):
        self.fails_at, self.seen, self.config, self.status = fails_at, [], None, None

    def log_hyperparams(self, config):
        self.config = config

    def log_metrics(self, metrics, step):
        if step == self.fails_at:
            raise ConnectionError("no route to host\nand more")
        self.seen.append((step, metrics))

    def finalize(self, status):
        self.status = status


class Listener(Silent):
    def __init__(self):
        self.said = []

    def say(self, text):
        self.said.append(text)


def test_a_tracker_gets_all_until_it_fails_and_the_run_goes_on(tmp_path, monkeypatch):
    logger, listener = Logger(fails_at=3), Listener()
    monkeypatch.setattr(trackers, "tracker", lambda kind, root: logger)
    made = Trackers(tmp_path, 0, "wandb", {"seed": 1}, listener)
    for step in range(1, 6):
        made.write({"val/top1/main": 10.0 - step}, step)
    made.close()
    assert logger.config == {"seed": 1}
    assert logger.seen == [(1, {"val/top1/main": 9.0}), (2, {"val/top1/main": 8.0})]
    assert listener.said == ["wandb can no longer be written (no route to host); metrics.csv is still written"]
    assert logger.status == "success"
    assert list(tmp_path.glob("events.*"))


def test_a_tracker_that_does_not_start_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(sb.UserError, match=r"--runtime.logger mlflow needs mlflow: pip install 'sidebranch\[mlflow\]'"):
        tracker("mlflow", tmp_path)
    broken = Logger()
    broken.log_hyperparams = lambda config: 1 / 0
    monkeypatch.setattr(trackers, "tracker", lambda kind, root: broken)
    with pytest.raises(sb.UserError, match="--runtime.logger mlflow does not start: division by zero"):
        Trackers(tmp_path, 0, "mlflow", {}, Silent())


def test_a_resumed_run_goes_on_in_its_tracker(tmp_path, monkeypatch):
    made = []

    def keep(*words, **named):
        made.append((words, named))
        return types.SimpleNamespace(run_id=named.get("run_id") or "7f3")

    module = types.SimpleNamespace(loggers=types.SimpleNamespace(WandbLogger=keep, MLFlowLogger=keep))
    monkeypatch.setitem(sys.modules, "lightning.pytorch", module)
    monkeypatch.setattr(trackers, "find_spec", lambda name: True)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    for kind in ("wandb", "wandb", "mlflow", "mlflow"):
        tracker(kind, tmp_path)
    assert made[0] == made[1]
    assert (tmp_path / ".wandb_run").read_text().strip() == made[0][1]["id"]
    assert [named["run_id"] for _, named in made[2:]] == [None, "7f3"]
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(sb.UserError, match="needs MLFLOW_TRACKING_URI"):
        tracker("mlflow", Path(tmp_path))


def test_names_that_mlflow_takes():
    assert NAME["mlflow"]("val/kl/main->b1") == "val/kl.main to b1"
    assert NAME["mlflow"]("train/loss") == "train/loss"
