"""A config with every field wrong in turn: one line that names it, and nothing is left behind."""

from dataclasses import fields, is_dataclass

import pytest
import yaml
from sampled import one_in

from sidebranch.cli import main
from sidebranch.config.compare import as_dict
from sidebranch.config.schema import Config

GOOD = {
    "model": {"name": "cifar_resnet8"},
    "data": {"name": "digits", "batch_size": 64, "limit": 64, "padding": 1, "flip": False},
    "optim": {"epochs": 1, "schedule": "constant"},
    "runtime": {"accelerator": "cpu", "precision": "32-true"},
}
# What is of the right type and still cannot be.
BEYOND = {
    "seed": -1,
    "base": "no/such",
    "method": "dmh",
    "model.name": "cifar_resnet33",
    "model.branches": "grown",
    "branches.count": 9,
    "model.options": {"colour": 1},
    "model.last_stride": 3,
    "published.epoch": "first",
    "branches.use": ["b9"],
    "branches.only": "b2",  # with method dhm
    "branches.kind": "thin",
    "branches.at": ["no.such"],
    "branches.keep": -1.0,
    "branches.width": 0.0,
    "branches.pool": 0,
    "branches.init": "copied",
    "branches.roots": "top",
    "branches.batch_fraction": 1.5,
    "branches.start_epoch": -1,
    "branches.stop_epoch": -1,
    "objective.supervision": {"b9": 1.0},
    "teacher.students": "everyone",
    "objective.direction": "sideways",
    "objective.mimicry": -1.0,
    "objective.mimicry_ramp": -1,
    "objective.temperature": 0.0,
    "objective.temperature_end": -1.0,
    "objective.label_smoothing": 1.0,
    "objective.triplet": -1.0,
    "objective.triplet_margin": -1.0,
    "sampling.kind": "poisson",
    "sampling.p": 2.0,
    "sampling.drops": "all",
    "sampling.per": "minute",
    "sampling.roots": {"b1": [1.0]},
    "data.name": "digit",
    "data.batch_size": 0,
    "data.limit": 10**6,
    "data.val_limit": 10**6,
    "data.padding": -1,
    "data.padding_mode": "white",
    "data.validate_on": "train",
    "objective.average": 1.0,
    "objective.decoupled": [1.0, -1.0],
    "objective.divergence": "euclidean",
    "data.corrupt_rate": 2.0,
    "data.corrupt_mode": "all",
    "data.image_size": 0,
    "data.image_width": -1,
    "data.instances": -1,
    "data.eval_size": -1,
    "data.resize": 0,
    "data.interpolation": "nearest",
    "data.policy": "more",
    "data.magnitude": 31,
    "data.erase": 2.0,
    "data.repeats": 0,
    "data.backend": "opencv",
    "data.workers": -1,
    "data.on_corrupt": "hope",
    "data.mixup": -1.0,
    "data.cutmix": -1.0,
    "optim.name": "adagrad",
    "optim.lr": 0.0,
    "optim.epochs": 0,
    "optim.momentum": 1.0,
    "optim.weight_decay": -1.0,
    "optim.layer_decay": 0.0,
    "optim.betas": [0.9, 1.0],
    "optim.schedule": "steps",
    "optim.warmup": 1.0,
    "optim.milestones": [0],
    "optim.gamma": -0.1,
    "optim.ema": 1.0,
    "optim.clip": -1.0,
    "optim.accumulate": 0,
    "optim.skip_nonfinite": -1,
    "optim.new_layers_epochs": 5,
    "eval.metric": "manhattan",
    "eval.chunk": 0,
    "runtime.accelerator": "gpu0",
    "runtime.devices": 0,
    "runtime.num_nodes": 0,
    "runtime.precision": "8",
    "runtime.channels_last": "maybe",
    "runtime.compile": "fast",
    "runtime.replicas": 0,
    "runtime.checkpoint_minutes": -1.0,
    "runtime.keep_every": -1,
    "runtime.logger": "paper",
    "runtime.log_every": 0,
}


def leaves(kind=Config, prefix=""):
    for field in fields(kind):
        value = getattr(kind(), field.name)
        if is_dataclass(value):
            yield from leaves(type(value), f"{field.name}.")
        else:
            yield prefix + field.name, value


FIELDS = dict(leaves())


def test_no_field_is_forgotten():
    may_be_anything = {"about", "name", "differs", "published.table", "published.results", "data.root"}
    may_be_anything |= {f"teacher.{name}" for name in ("run", "model", "weights", "sha256")}  # read by method kd only
    may_be_anything |= {"model.weights", "model.sha256"}  # a path of the user's, read when training starts
    may_be_anything |= {"objective.teachers"}  # their names are the network's
    may_be_anything |= {"sampling.sets"}  # without effect unless sampling is categorical
    switches = {key for key, value in FIELDS.items() if isinstance(value, bool)}
    assert set(FIELDS) == set(BEYOND) | may_be_anything | switches


def attempt(tmp_path, capsys, key, value):
    group, _, name = key.rpartition(".")
    config = as_dict(Config()) and {each: dict(fields) for each, fields in GOOD.items()}
    (config.setdefault(group, {}) if group else config)[name] = value
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump(config))
    status = main(["train", str(path), "--output", str(tmp_path / "run")])
    message = capsys.readouterr().err.strip()
    assert status == 2
    assert len(message.splitlines()) == 1, message
    assert not (tmp_path / "run").exists()
    return message


@pytest.mark.parametrize("key", one_in(3, FIELDS))
def test_a_field_of_another_type(tmp_path, capsys, key):
    wrong = "text" if isinstance(FIELDS[key], dict) else {"wrong": [1]}
    message = attempt(tmp_path, capsys, key, wrong)
    assert key.rpartition(".")[2] in message


@pytest.mark.parametrize("key", one_in(3, BEYOND))
def test_a_field_beyond_its_range(tmp_path, capsys, key):
    message = attempt(tmp_path, capsys, key, BEYOND[key])
    value = BEYOND[key]
    shown = next(iter(value)) if isinstance(value, (dict, list)) else value
    assert key in message or str(shown) in message
