"""Runs on networks that nobody wired by hand."""

import warnings
from dataclasses import replace

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_loop import changed

import sidebranch as sb
from sidebranch.deploy.export import export_run
from sidebranch.evaluation.of_run import evaluate_run
from sidebranch.network import build_network
from sidebranch.runs import checkpoint
from sidebranch.runs.console import Silent
from sidebranch.runs.folder import RunFolder
from sidebranch.train.loop import train

# ResNet-10 has one block a stage.
pytestmark = pytest.mark.filterwarnings("ignore:b2 is as deep as main")


class Lines(Silent):
    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "run")


def test_a_timm_model_trains_evaluates_and_exports(digits_config, folder, tmp_path):
    config = changed(digits_config, model={"name": "mobilenetv3_small_050", "small_input": True})
    rows = train(config, folder)
    assert {"val/top1/b1", "val/top1/b2"} <= rows[-1].keys()
    found = evaluate_run(folder)
    assert found.errors["b2"]["top1"] == rows[-1]["val/top1/b2"]
    name = export_run(folder, "last", tmp_path / "again.safetensors")
    with safe_open(folder.weights, "pt") as file:
        assert file.metadata()["small_input"] == "true"
    tensors, again = load_file(folder.weights), load_file(tmp_path / "again.safetensors")
    assert tensors.keys() == again.keys()
    assert all(torch.equal(value, again[key]) for key, value in tensors.items())
    plain = sb.small_input(timm.create_model(name, num_classes=10, in_chans=1))
    plain.load_state_dict(tensors)


def test_what_branches_could_not_be_made_is_said_in_the_run(digits_config, folder):
    config = changed(digits_config, model={"name": "lcnet_050", "small_input": True}, optim={"epochs": 1})
    lines = Lines()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(config, folder, reporter=lines)
    assert any("b1 is as wide as main: it cannot be widened at 'blocks.5.0.se" in line for line in lines.lines)


def pretrained(config, tmp_path, **more):
    """A config whose pretrained weights are a file: a ResNet-10 whose every weight and statistic was moved."""
    source = timm.create_model("resnet10t", num_classes=10, in_chans=1)
    state = {key: value + 0.01 if value.is_floating_point() else value for key, value in source.state_dict().items()}
    path = tmp_path / "weights.safetensors"
    save_file(state, path)
    overlay = {"file": str(path), "num_classes": 10}
    options = {"pretrained_cfg_overlay": overlay}
    config = changed(config, model={"name": "resnet10t", "pretrained": True, "options": options, **more})
    return config, state


def test_pretrained_weights_stay_and_branches_start_as_an_untrained_tail(digits_config, tmp_path):
    config, state = pretrained(digits_config, tmp_path)
    net = build_network(config, 10, (1, 8, 8))
    own = net.backbone.state_dict()
    assert all(torch.equal(own[key], value) for key, value in state.items() if "conv1.0" not in key)
    norm = net.branches["b1"].get_submodule("layer4.0.bn1")
    assert torch.equal(norm.weight, torch.ones_like(norm.weight))
    assert not norm.running_mean.any()
    again = build_network(config, 10, (1, 8, 8))
    assert all(torch.equal(one, other) for one, other in zip(net.parameters(), again.parameters(), strict=True))


def test_branches_may_start_as_copies_of_the_pretrained_tail(digits_config, tmp_path):
    config, _ = pretrained(digits_config, tmp_path)
    config = changed(config, branches={"init": "copy", "width": 1.0, "keep": 1.0})
    net = build_network(config, 10, (1, 64, 64)).eval()
    out = net(torch.randn(2, 1, 64, 64))
    assert all(torch.equal(out.main, logits) for logits in out.logits)


def test_the_first_phase_trains_the_new_layers_only(digits_config, folder, tmp_path):
    config, state = pretrained(digits_config, tmp_path)
    start = build_network(config, 10, (1, 8, 8)).state_dict()
    train(changed(config, optim={"epochs": 1, "new_layers_epochs": 1}), folder)
    end = checkpoint.load(folder.last)["model"]
    stood = [key for key in start if torch.equal(start[key], end[key])]
    assert {key for key in stood if "num_batches" not in key} >= {
        f"backbone.{key}" for key in state if not key.startswith("fc.") and "num_batches" not in key
    }
    for moved in ("backbone.fc.weight", "branches.b1.layer4.0.conv1.weight", "branches.b2.fc.bias"):
        assert moved not in stood
    both = RunFolder(tmp_path / "both")
    train(changed(config, optim={"epochs": 2, "new_layers_epochs": 1}), both)
    moved = checkpoint.load(both.last)["model"]["backbone.layer1.0.conv1.weight"]
    assert not torch.equal(moved, start["backbone.layer1.0.conv1.weight"])


def test_roots_that_move_are_drawn_in_training(digits_config, folder, monkeypatch):
    config = changed(
        digits_config, model={"name": "cifar_resnet20"}, branches={"roots": "stage"}, sampling={"per": "step"}
    )
    seen = []
    forward = sb.BranchedModel.forward

    def noting(self, images, **options):
        if self.training:
            seen.append(options["roots"])
        return forward(self, images, **options)

    monkeypatch.setattr(sb.BranchedModel, "forward", noting)
    train(config, folder)
    assert len({each["b1"] for each in seen}) > 1
    assert {each["b1"] for each in seen} <= {"layer2.0", "layer2.1", "layer2"}
    assert evaluate_run(folder).trained.epoch == 2


def test_a_baseline_has_no_roots_to_draw(digits_config, folder):
    config = replace(changed(digits_config, optim={"epochs": 1}), method="baseline")
    assert len(train(config, folder)) == 1


CHEAP = {
    "half of each batch": {"branches": {"batch_fraction": 0.5}},
    "branches sampled whole": {"sampling": {"kind": "bernoulli", "drops": "branch", "per": "step"}},
    "a first branch as wide as main": {"model": {"branches": "auto"}, "branches": {"width": 1.0}},
    "a late start and an early stop": {"branches": {"start_epoch": 1, "stop_epoch": 3}},
    "a ramp of the mimicry": {"objective": {"mimicry_ramp": 3}},
}


@pytest.mark.parametrize("setting", CHEAP)
def test_branches_that_cost_little_train_to_sane_accuracy(digits_config, folder, setting):
    config = changed(digits_config, data={"limit": 0}, optim={"epochs": 4, "lr": 0.02})
    rows = train(changed(config, **CHEAP[setting]), folder)
    assert rows[-1]["val/top1/main"] < 60  # guessing gives 90


def test_branches_that_rest_cost_nothing_and_log_nothing(digits_config, folder):
    config = changed(digits_config, branches={"start_epoch": 1}, optim={"epochs": 2})
    first, second = train(config, folder)
    assert "train/loss/b1" not in first
    assert {"train/loss/b1", "train/loss/b2"} <= second.keys()


def test_part_of_a_batch_goes_through_the_branches(digits_config, folder, monkeypatch):
    seen = []
    forward = sb.BranchedModel.forward

    def noting(self, *images, **options):
        out = forward(self, *images, **options)
        if self.training:
            seen.append([len(each) for each in out.logits])
        return out

    monkeypatch.setattr(sb.BranchedModel, "forward", noting)
    train(changed(digits_config, branches={"batch_fraction": 0.25}, optim={"epochs": 1}), folder)
    assert seen == [[64, 16, 16], [64, 16, 16], [32, 8, 8]]
