import csv
import itertools
import json
from dataclasses import replace

import pytest
import timm
import torch

import sidebranch as sb
from sidebranch.config import recipe
from sidebranch.evaluation.of_run import evaluate_run
from sidebranch.network import build_network
from sidebranch.runs.console import Silent
from sidebranch.runs.folder import RunFolder
from sidebranch.train.loop import train
from sidebranch.train.signals import Interrupted
from training import StopAt, assert_same, changed, timeless, weights


def test_a_run_folder_holds_what_was_promised(digits_config, folder):
    rows = train(digits_config, folder)
    assert {each.name for each in folder.root.iterdir()} >= {
        "config.yaml",
        "environment.json",
        "metrics.csv",
        "checkpoints",
        "model.safetensors",
    }
    assert any(each.name.startswith("events.out.tfevents") for each in folder.root.iterdir())
    assert folder.best.exists()
    assert recipe.load(folder.config) == digits_config
    facts = json.loads(folder.environment.read_text())
    assert torch.__version__.startswith(facts["packages"]["torch"])
    assert facts["parameters"]["training"] > facts["parameters"]["shipped"] == 75_002
    with open(folder.metrics, newline="") as file:
        written = list(csv.DictReader(file))
    assert [float(row["val/top1/main"]) for row in written] == [row["val/top1/main"] for row in rows]
    assert {key.split("/")[-1] for key in written[0] if key.startswith("val/top1/")} == {"main", "b1", "b2", "ensemble"}
    pairs = [f"val/kl/{p}->{q}" for p, q in itertools.permutations(("main", "b1", "b2"), 2)]
    pairs += ["val/differ/main-b1", "val/differ/main-b2", "val/differ/b1-b2"]
    assert all(float(written[-1][key]) >= 0 for key in pairs)


def test_training_learns(digits_config, folder):
    config = changed(digits_config, data={"limit": 0}, optim={"epochs": 6, "lr": 0.02})
    rows = train(config, folder)
    assert rows[-1]["val/top1/main"] < 40
    assert rows[-1]["val/top1/ensemble"] < 40


def test_the_shipped_file_is_the_backbone_and_loads_into_timm(digits_config, folder):
    train(digits_config, folder)
    shipped = timm.create_model("cifar_resnet8", num_classes=10, in_chans=1, checkpoint_path=str(folder.weights)).eval()
    net = build_network(digits_config, 10, (1, 8, 8)).eval()
    net.load_state_dict(weights(folder))
    images = torch.randn(5, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(shipped(images), net(images).main)
        assert torch.equal(shipped(images), net.backbone(images))


@pytest.mark.parametrize("which", ["last", "best"])
def test_evaluation_gives_the_errors_of_the_run(digits_config, folder, which):
    rows = train(digits_config, folder)
    found = evaluate_run(folder, which)
    row = rows[found.trained.epoch - 1]
    if which == "best":
        assert row["val/top1/main"] == min(row["val/top1/main"] for row in rows)
    for name, values in found.errors.items():
        for what, value in values.items():
            assert value == row[f"val/{what}/{name}"]


def test_baseline_trains_main_alone(digits_config, folder):
    rows = train(replace(digits_config, method="baseline"), folder)
    assert {key for key in rows[0] if key.startswith("val/top1")} == {"val/top1/main"}
    assert not any(name.startswith("branches") for name in weights(folder))


def test_methods_start_from_the_same_backbone(digits_config):
    states = [
        build_network(replace(digits_config, method=method), 10, (1, 8, 8)).backbone.state_dict()
        for method in ("baseline", "dhm")
    ]
    assert_same(*states)


def test_a_loss_that_is_not_finite_stops_with_step_and_term(digits_config, folder, monkeypatch):
    one = changed(digits_config, optim={"epochs": 1})
    train(one, folder)
    kept = weights(folder)
    forward = sb.BranchedModel.forward

    def poisoned(self, images, **options):
        out = forward(self, images, **options)
        if self.training:
            poisoned.calls += 1
            if poisoned.calls == 2:
                out.logits = (out.logits[0], out.logits[1] * float("nan"), out.logits[2])
        return out

    poisoned.calls = 0
    monkeypatch.setattr(sb.BranchedModel, "forward", poisoned)
    fresh = RunFolder(folder.root.parent / "other")
    with pytest.raises(sb.UserError, match="epoch 1, step 2, first in: supervision of b1, mimicry of main by b1"):
        train(changed(digits_config, runtime={"log_every": 100}), fresh)
    assert not fresh.last.exists()
    assert_same(weights(folder), kept)


def test_a_full_disk_keeps_the_last_good_checkpoint(digits_config, folder, monkeypatch):
    with pytest.raises(Interrupted):
        train(digits_config, folder, reporter=StopAt(3))
    kept = folder.last.read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(sb.UserError, match="No space left on device.*the file that was there is unchanged"):
        train(digits_config, folder, resume=True)
    assert folder.last.read_bytes() == kept
    assert [each.name for each in folder.last.parent.iterdir() if each.name.endswith(".tmp")] == []


def test_deterministic_kernels_train_and_give_the_same_bits(digits_config, folder):
    config = changed(digits_config, runtime={"deterministic": True}, optim={"epochs": 1})
    plain = RunFolder(folder.root.parent / "plain")
    assert timeless(train(config, folder)) == timeless(train(changed(digits_config, optim={"epochs": 1}), plain))
    assert_same(weights(folder), weights(plain))
    assert not torch.are_deterministic_algorithms_enabled()


def test_compiled_training_runs(digits_config, folder):
    torch._dynamo.reset()
    complete = {"batch_size": 125, "limit": 250}  # of 500 validation images too: one size of batch, compiled once
    config = changed(digits_config, data=complete, optim={"epochs": 1})
    compiled = train(changed(config, runtime={"compile": True}), folder)
    plain = train(config, RunFolder(folder.root.parent / "plain"))
    assert compiled[0]["train/loss"] == pytest.approx(plain[0]["train/loss"], rel=1e-2)
    assert not any("_orig_mod" in name for name in weights(folder))


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"model": {"name": "cifar_resnet33"}}, "no model 'cifar_resnet33'; did you mean 'cifar_resnet32'"),
        ({"model": {"options": {"colour": 3}}}, "timm cannot create 'resnet18'.*colour"),
        ({"model": {"name": "vgg11", "branches": "paper"}}, "no side branches were published for VGG; branches='auto'"),
        ({"data": {"limit": 5000}}, "data.limit is 5000, but there are only 1297"),
        ({"data": {"batch_size": 200, "drop_last": True}}, "drop_last leaves nothing"),
        ({"data": {"name": "folder", "root": "/nowhere"}}, "no folder '/nowhere'"),
        ({"sampling": {"kind": "bernoulli", "p": 3.0}}, "sampling.p is 3.0"),
        ({"sampling": {"kind": "categorical", "sets": {"b1": 0.3}}}, "sum to 1"),
        ({"sampling": {"kind": "categorical", "sets": {"b1": 0.5, "b9": 0.5}}}, "no branch 'b9'"),
        (
            {"model": {"name": "vit_tiny_patch16_224"}},
            "VisionTransformer does not take images of 1x8x8",
        ),
        ({"model": {"options": {"foo": 1}}}, "timm cannot create 'resnet18'.*foo"),
        ({"optim": {"epochs": 0}}, "optim.epochs is 0"),
        ({"branches": {"batch_fraction": 0.0}}, "branches.batch_fraction is 0.0"),
        ({"branches": {"start_epoch": 3, "stop_epoch": 2}}, "branches.stop_epoch is 2"),
        ({"objective": {"mimicry_ramp": -1}}, "objective.mimicry_ramp is -1"),
        ({"runtime": {"accelerator": "cuda"}}, "runtime: .*[Cc][Uu][Dd][Aa]"),
    ],
)
def test_a_config_that_cannot_work(digits_config, folder, groups, message):
    if "options" in groups.get("model", {}):
        digits_config = changed(digits_config, model={"name": "resnet18"})
    with pytest.raises(sb.UserError, match=message):
        train(changed(digits_config, **groups), folder)
    assert not folder.is_used()


def test_own_networks_do_not_swallow_unknown_options(digits_config, folder):
    config = changed(digits_config, model={"options": {"drop_rate": 0.3}})
    with pytest.raises(sb.UserError, match="timm cannot create 'cifar_resnet8'.*drop_rate"):
        train(config, folder)


def test_a_network_that_does_not_take_the_images_is_refused_before_training(digits_config, folder):
    config = changed(replace(digits_config, method="baseline"), model={"name": "vit_tiny_patch16_224"})
    with pytest.raises(sb.UserError, match="vit_tiny_patch16_224 does not take images of 1x8x8"):
        train(config, folder)


def test_sampling_leaves_a_baseline_alone(digits_config, folder):
    sampled = changed(digits_config, sampling={"kind": "categorical", "sets": {"b1": 1.0}}, optim={"epochs": 1})
    train(replace(sampled, method="baseline"), folder)


def test_a_wrecked_network_is_neither_kept_nor_shipped(digits_config, folder):
    wild = changed(replace(digits_config, method="baseline"), optim={"lr": 1e30, "epochs": 1}, data={"limit": 64})
    with pytest.raises(sb.UserError, match="epoch 1, step 1, first in: validation of main; none was saved"):
        train(wild, folder)
    assert not folder.root.exists()


def test_clipping_a_gradient_that_is_not_finite_ends_in_the_same_message(digits_config, folder):
    wild = changed(digits_config, optim={"lr": 1e30, "clip": 1.0})
    with pytest.raises(sb.UserError, match="not finite at epoch 1"):
        train(wild, folder)


def test_a_folder_is_not_shared_by_two_runs(digits_config, folder):
    folder.claim(resume=False)
    with pytest.raises(sb.UserError, match="belongs to another run"):
        train(digits_config, folder)
    assert folder.is_used()


def test_a_start_that_comes_to_nothing_leaves_nothing(digits_config, folder, monkeypatch):
    def refuse(*_, **__):
        raise sb.UserError("cannot read the image")

    monkeypatch.setattr("sidebranch.data.loaders.in_memory.InMemoryLoader.batches", refuse)
    with pytest.raises(sb.UserError, match="cannot read the image"):
        train(digits_config, folder)
    assert not folder.root.exists()


def test_when_no_image_can_be_read_it_says_so(digits_config, photos, folder):
    for place in (photos / "val").rglob("*.png"):
        place.write_bytes(b"")
    data = {"name": "folder", "root": str(photos), "image_size": 16, "resize": 16, "batch_size": 4, "workers": 0}
    config = changed(digits_config, data={**data, "limit": 0, "on_corrupt": "skip"})
    with pytest.raises(sb.UserError, match="no validation image could be read"):
        train(config, folder)


def test_a_file_system_without_locks_is_named_and_trained_on(digits_config, folder, monkeypatch):
    lines = []

    class Listening(Silent):
        def say(self, line):
            lines.append(line)

    def refuse(*_, **__):
        raise NotImplementedError

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    assert len(train(changed(digits_config, optim={"epochs": 1}), folder, reporter=Listening())) == 1
    assert any("this file system has no locks" in line for line in lines)
