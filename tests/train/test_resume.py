"""Runs that are stopped and resumed equal runs that are not, bit for bit."""

import json
import os
import signal

import pytest
import torch

import sidebranch as sb
from sidebranch.config import recipe
from sidebranch.runs import checkpoint
from sidebranch.runs.console import Silent
from sidebranch.runs.folder import RunFolder
from sidebranch.train.loop import train
from sidebranch.train.signals import Interrupted
from training import StopAt, assert_same, changed, timeless, weights

VARIANTS = {
    "dhm": {},
    "sampled branches, EMA, clipping, smoothing, AdamW": {
        "sampling": {"kind": "bernoulli", "drops": "branch", "per": "step"},
        "optim": {"name": "adamw", "lr": 0.003, "ema": 0.9, "clip": 1.0, "warmup": 0.2},
        "objective": {"label_smoothing": 0.1, "direction": "top_down"},
    },
    "dropout of branches per epoch, bf16, AMSGrad": {
        "sampling": {"kind": "categorical", "sets": {"b1": 0.5, "none": 0.5}, "drops": "branch"},
        "optim": {"name": "adam", "lr": 0.003, "amsgrad": True, "schedule": "one_cycle", "warmup": 0.3},
        "runtime": {"precision": "bf16-mixed"},
    },
    "part of each batch, late start, early stop, a ramp, a cooling": {
        "branches": {"batch_fraction": 0.3, "start_epoch": 0, "stop_epoch": 1},
        "objective": {"mimicry_ramp": 2, "temperature": 3.0, "temperature_end": 1.0},
    },
    "grown branches, moving roots, a first phase of new layers": {
        "model": {"name": "cifar_resnet20", "branches": "auto"},
        "branches": {"roots": "stage"},
        "sampling": {"roots": {"b1": [0.5, 0.25, 0.25]}, "per": "step"},
        "optim": {"new_layers_epochs": 1},
    },
    "the network's moving average teaches": {
        "objective": {"teachers": ["average", "average.b1"], "temperature": 3.0, "average": 0.9},
        "sampling": {"kind": "bernoulli", "drops": "branch", "per": "step"},
    },
    "the predictions of the epoch before teach, decoupled, in pieces": {
        "objective": {"teachers": ["past", "past.main", "ensemble"], "divergence": "decoupled"},
        "optim": {"accumulate": 2},
    },
    "mixing, pieces, LAMB, vectors that do not decay": {
        "data": {"mixup": 0.2, "cutmix": 1.0},
        "objective": {"label_smoothing": 0.1},
        "optim": {"name": "lamb", "lr": 0.003, "accumulate": 3, "decay_vectors": False, "skip_nonfinite": 2},
    },
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A folder of runs that were left alone, one a variant."""
    return tmp_path_factory.mktemp("undisturbed")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("done", [1, 3, 5])
def test_resume_is_bit_identical(digits_config, folder, undisturbed, variant, done):
    """Three steps an epoch: stopped in the middle of one, at its last step, and in the next."""
    config = changed(digits_config, **VARIANTS[variant])
    complete = RunFolder(undisturbed / variant)
    expected = complete.read_metrics() if complete.metrics.exists() else train(config, complete)
    with pytest.raises(Interrupted, match="everything is saved"):
        train(config, folder, reporter=StopAt(done))
    assert not folder.weights.exists()
    rows = train(config, folder, resume=True)
    assert timeless(rows) == timeless(expected)
    assert_same(weights(folder), weights(complete))
    states = [checkpoint.load(each.last) for each in (folder, complete)]
    for kind, expected in (("ema", config.optim.ema), ("average", config.teachers_of("average"))):
        assert (states[0][kind] is not None) == bool(expected)
        if expected:
            assert_same(*(state[kind] for state in states))
    assert (states[0]["past"] is not None) == bool(config.teachers_of("past"))
    if states[0]["past"] is not None:
        assert torch.equal(*(state["past"] for state in states))
    assert folder.metrics.read_text().count("\n") == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_save_and_say_how_to_go_on(digits_config, folder, number):
    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as stop:
        train(digits_config, folder, reporter=StopAt(2, number))
    assert stop.value.signal == number
    assert checkpoint.load(folder.last)["step"] == 2
    assert signal.getsignal(number) is before


def test_resuming_a_finished_run_changes_nothing(digits_config, folder):
    rows = train(digits_config, folder)
    before = weights(folder)
    assert train(digits_config, folder, resume=True) == rows
    assert_same(weights(folder), before)


def test_resume_under_another_config_names_the_keys(digits_config, folder):
    train(changed(digits_config, optim={"epochs": 1}), folder)
    with pytest.raises(sb.UserError, match=r"optim\.lr: 0\.05 -> 0\.1; optim\.epochs: 1 -> 2"):
        train(changed(digits_config, optim={"lr": 0.1}), folder, resume=True)


def test_the_machine_may_change_between_runs(digits_config, folder):
    train(changed(digits_config, optim={"epochs": 2}), folder)
    train(changed(digits_config, runtime={"log_every": 7}), folder, resume=True)


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_crash_right_after_the_last_checkpoint_loses_nothing(digits_config, folder, monkeypatch, epochs):
    config = changed(digits_config, optim={"epochs": epochs})
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "write_metrics", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        patch.setattr(RunFolder, "keep_best", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(changed(config), folder)
    rows = train(config, folder, resume=True)
    assert folder.metrics.read_text().count("\n") == 1 + epochs
    best = checkpoint.load(folder.best)
    assert best["epoch"] == min(range(epochs), key=lambda i: rows[i]["val/top1/main"]) + 1


def test_a_signal_during_the_last_validation_is_not_swallowed(digits_config, folder):
    class AtTheEnd(Silent):
        def epoch(self, row):
            if row["epoch"] == 2:
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match="the end of epoch 2"):
        train(digits_config, folder, reporter=AtTheEnd())
    assert folder.weights.exists()


def test_a_run_stopped_before_its_first_checkpoint_starts_over_with_resume(digits_config, folder):
    folder.root.mkdir()
    folder.write_config(recipe.dump(digits_config))
    train(digits_config, folder, resume=True)
    assert folder.weights.exists()


def test_resume_when_images_went_missing_is_refused(digits_config, folder):
    train(changed(digits_config, optim={"epochs": 1}), folder)
    state = checkpoint.load(folder.last)
    checkpoint.save(folder.last, {**state, "train_images": 170})
    with pytest.raises(sb.UserError, match="it has 170 training images, 'data' now 160"):
        train(changed(digits_config, optim={"epochs": 1}), folder, resume=True)


@pytest.mark.parametrize("stop", [2, 3])
def test_unreadable_batches_are_skipped_counted_and_survive_a_resume(digits_config, photos, tmp_path, stop):
    for place in (photos / "train").rglob("*.png"):
        if place.parent.name == "ant":
            place.write_bytes(b"no image")
    data = {"name": "folder", "root": str(photos), "image_size": 16, "resize": 16, "batch_size": 2, "workers": 0}
    config = changed(digits_config, data={**data, "limit": 0, "on_corrupt": "skip"}, optim={"epochs": 2, "lr": 0.01})
    lines = []

    class Listener(StopAt):
        def say(self, line):
            lines.append(line)

    complete, folder = RunFolder(tmp_path / "complete"), RunFolder(tmp_path / "run")
    expected = train(config, complete, reporter=Listener(-1))
    assert expected[-1]["step"] == 12
    assert any("unreadable images left out so far: 4, such as" in line for line in lines)
    with pytest.raises(Interrupted):
        train(config, folder, reporter=StopAt(stop))
    assert timeless(train(config, folder, resume=True)) == timeless(expected)
    assert_same(weights(folder), weights(complete))


def test_a_resumed_run_keeps_the_facts_of_its_start(digits_config, folder):
    with pytest.raises(Interrupted):
        train(digits_config, folder, reporter=StopAt(2))
    started = json.loads(folder.environment.read_text())
    train(digits_config, folder, resume=True)
    facts = json.loads(folder.environment.read_text())
    assert {key: facts[key] for key in started} == started
    assert len(facts["resumed"]) == 1


def test_a_moved_data_folder_does_not_stop_a_resume(digits_config, folder):
    train(changed(digits_config, optim={"epochs": 1}), folder)
    train(changed(digits_config, optim={"epochs": 1}, data={"root": "elsewhere", "workers": 1}), folder, resume=True)
