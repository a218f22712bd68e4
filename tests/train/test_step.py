"""What a step does beyond the plain one: pieces, mixing, steps left out, rates by layer; and what a run watches."""

import json
import shutil
from collections import namedtuple
from dataclasses import replace

import pytest
import timm
import torch

import sidebranch as sb
from sidebranch.config.schema import OptimConfig
from sidebranch.distributed import unused_gradients
from sidebranch.evaluation.of_run import evaluate_run
from sidebranch.network import build_network, with_synced_batchnorm
from sidebranch.runs import checkpoint
from sidebranch.runs.console import Silent
from sidebranch.runs.folder import RunFolder
from sidebranch.train.loop import train
from sidebranch.train.optimizer import build_optimizer
from training import changed, weights


class Listener(Silent):
    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)


@pytest.fixture
def photos_config(digits_config, photos):
    """Without batch norm."""
    data = {"name": "folder", "root": str(photos), "image_size": 32, "resize": 36, "batch_size": 5, "workers": 0}
    model = {"name": "test_convnext", "branches": "auto"}
    return changed(digits_config, model=model, data={**data, "limit": 0}, runtime={"channels_last": "no"})


def test_pieces_add_up_to_the_whole_batch(photos_config, tmp_path):
    runs = {}
    for pieces in (1, 2, 4):
        folder = RunFolder(tmp_path / str(pieces))
        rows = train(changed(photos_config, optim={"accumulate": pieces}), folder)
        runs[pieces] = rows[-1]["train/loss"], rows[-1]["train/top1/b1"], weights(folder)
    for loss, error, state in (runs[2], runs[4]):
        assert loss == pytest.approx(runs[1][0], abs=1e-5)
        assert error == runs[1][1]
        for key, value in state.items():
            torch.testing.assert_close(value, runs[1][2][key], atol=1e-5, rtol=1e-4)


def poison(monkeypatch, calls):
    """Makes the images of some training passes not a number, and the statistics of batch norm with them."""
    forward = sb.BranchedModel.forward
    count = [0]

    def poisoned(self, images, **options):
        if self.training:
            count[0] += 1
        return forward(self, images * float("nan") if self.training and count[0] in calls else images, **options)

    monkeypatch.setattr(sb.BranchedModel, "forward", poisoned)


def test_steps_that_are_not_finite_may_be_left_out(digits_config, folder, monkeypatch):
    poison(monkeypatch, {2, 5})
    listener = Listener()
    rows = train(changed(digits_config, optim={"skip_nonfinite": 2}), folder, reporter=listener)
    assert len(rows) == 2
    left_out = [line for line in listener.lines if line.startswith("skipped")]
    assert "skipped epoch 1, step 2: not finite in supervision of main" in left_out[0]
    assert left_out[1].endswith("(2 of at most 2)")
    assert all(value.isfinite().all() for value in weights(folder).values())
    assert rows[-1]["val/loss/main"] < 10


@pytest.mark.parametrize("allowed", [0, 1])
def test_more_of_them_than_allowed_stop_the_run(digits_config, folder, monkeypatch, allowed):
    poison(monkeypatch, {2, 3})
    with pytest.raises(
        sb.UserError, match=rf"not finite at epoch 1, step {2 + allowed}, first in: supervision of main"
    ):
        train(changed(digits_config, optim={"skip_nonfinite": allowed}), folder)


def test_mixed_images_train_on_mixed_labels(digits_config, folder, monkeypatch):
    seen = []
    call = sb.Objective.forward

    def watched(self, outputs, targets, **options):
        seen.append(targets)
        return call(self, outputs, targets, **options)

    monkeypatch.setattr(sb.Objective, "forward", watched)
    train(changed(digits_config, data={"mixup": 1.0}, optim={"epochs": 1}), folder)
    for targets in seen:
        assert targets.shape[1] == 10
        torch.testing.assert_close(targets.sum(1), torch.ones(len(targets)))
        assert ((targets > 0).sum(1) <= 2).all()
    assert any(((targets > 0).sum(1) == 2).any() for targets in seen)


@pytest.mark.parametrize("policy", ["randaugment", "trivialaugment"])
def test_distorted_images_train_resume_and_are_only_for_training(photos_config, tmp_path, policy):
    distorted = {"policy": policy, "erase": 0.5, "repeats": 2}
    config = changed(photos_config, data=distorted)
    plain, complete = RunFolder(tmp_path / "plain"), RunFolder(tmp_path / "complete")
    rows, others = train(config, complete), train(photos_config, plain)
    assert rows[0]["train/loss"] != others[0]["train/loss"]
    assert rows[0]["step"] == others[0]["step"]
    found = evaluate_run(complete).errors["main"]["loss"]
    assert found == rows[-1]["val/loss/main"]


def test_validation_at_another_size(photos_config, folder):
    train(changed(photos_config, data={"eval_size": 64, "resize": 64}), folder)
    assert checkpoint.load(folder.last)["inputs"]["input_size"] == [3, 64, 64]
    assert evaluate_run(folder).trained.epoch == 2


def test_a_network_of_one_size_says_so_before_training(photos_config, folder):
    config = changed(photos_config, model={"name": "test_vit", "options": {"img_size": 32}}, data={"eval_size": 36})
    with pytest.raises(sb.UserError, match="test_vit does not take images of 3x36x36"):
        train(config, folder)


def test_rates_fall_from_layer_to_layer_and_vectors_do_not_decay(photos_config):
    config = changed(photos_config, optim={"name": "adamw", "layer_decay": 0.5, "decay_vectors": False})
    net = build_network(config, 3, (3, 32, 32))
    optimizer = build_optimizer(config.optim, net)
    found = {id(each): group for group in optimizer.param_groups for each in group["params"]}
    assert len(found) == len(list(net.parameters()))
    scales = [found[id(each)]["lr_scale"] for each in net.backbone.parameters()]
    assert scales[0] == min(scales) < scales[-1] == 1.0
    for each in net.parameters():
        group = found[id(each)]
        assert group["weight_decay"] == (0.0 if each.ndim <= 1 else config.optim.weight_decay)
    for each in net.branches.parameters():
        assert found[id(each)].get("lr_scale", 1.0) == 1.0


def test_a_layer_s_rate_is_what_moves_it(photos_config, folder):
    config = changed(photos_config, optim={"layer_decay": 1e-9, "momentum": 0.0, "weight_decay": 0.0, "epochs": 1})
    before = build_network(config, 3, (3, 32, 32)).state_dict()
    train(config, folder)
    after = weights(folder)
    torch.testing.assert_close(after["backbone.stem.0.weight"], before["backbone.stem.0.weight"])
    assert not torch.equal(after["backbone.head.fc.weight"], before["backbone.head.fc.weight"])


def test_rates_by_layer_need_a_backbone_in_order(digits_config, folder):
    with pytest.raises(sb.UserError, match=r"optim\.layer_decay needs a backbone whose layers timm has put in order"):
        train(changed(digits_config, model={"name": "cifar_resnet20"}, optim={"layer_decay": 0.5}), folder)


def test_synced_batch_norm_is_the_same_network(digits_config):
    net = build_network(digits_config, 10, (1, 8, 8)).eval()
    images = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        expected = net(images)
        synced = with_synced_batchnorm(net).eval()
        found = synced(images)
    assert synced.names == ("main", "b1", "b2")
    for one, other in zip(expected.logits, found.logits, strict=True):
        assert torch.equal(one, other)
    assert not any(type(module) is torch.nn.BatchNorm2d for module in synced.modules())


def test_the_run_keeps_the_numbers_of_the_classes(photos_config, folder):
    train(changed(photos_config, optim={"epochs": 1}), folder)
    assert json.loads(folder.classes.read_text()) == {"ant": 0, "bee": 1, "cat": 2}


def test_a_disk_without_room_is_refused_before_training(digits_config, folder, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 10**6))
    with pytest.raises(sb.UserError, match=r"the disk of '.*run' has 1 MB left, .* take up to \d+ MB"):
        train(digits_config, folder)
    assert not folder.root.exists()


def test_slow_data_are_named_once(digits_config, folder, monkeypatch):
    from sidebranch.data.loaders.in_memory import InMemoryLoader
    from sidebranch.train import loop

    batches = InMemoryLoader.batches
    clock = [0.0]

    def slow(self, epoch=0, start=0):
        for batch in batches(self, epoch, start):
            clock[0] += 1000.0
            yield batch

    real = loop.time.perf_counter
    monkeypatch.setattr(loop.time, "perf_counter", lambda: real() + clock[0])
    monkeypatch.setattr(InMemoryLoader, "batches", slow)
    monkeypatch.setattr(loop, "MANY_STEPS", 2)
    listener = Listener()
    train(replace(digits_config, method="baseline"), folder, reporter=listener)
    warned = [line for line in listener.lines if "waiting for images" in line]
    assert len(warned) == 1
    assert "% of epoch 1 was spent waiting for images; more --data.workers" in warned[0]


class Bucket:
    def __init__(self, parameters):
        self._parameters = parameters

    def parameters(self):
        return self._parameters

    def buffer(self):
        return torch.cat([each.detach().flatten() for each in self._parameters])


def test_gradients_of_branches_that_are_out_are_not_sent(little_net, monkeypatch):
    sent = []
    monkeypatch.setattr(unused_gradients, "allreduce_hook", lambda group, bucket: sent.append(bucket))
    ours = unused_gradients.UnusedGradients()
    out, live = (Bucket(list(body.parameters())) for body in little_net.branches.values())
    mixed = Bucket([*out.parameters(), *live.parameters()])
    ours.unused = set(out.parameters())
    assert torch.equal(unused_gradients._reduce(ours, out).wait(), out.buffer())
    for bucket in (live, mixed):
        unused_gradients._reduce(ours, bucket)
    assert sent == [live, mixed]
    assert ours.sent == live.buffer().nbytes + mixed.buffer().nbytes


def test_lamb_clips_no_gradient_by_itself():
    """`optim.clip` does, where it is set; timm's default would clip at 1."""
    optimizer = build_optimizer(OptimConfig(name="lamb"), sb.attach(timm.create_model("cifar_resnet8")))
    assert {group["max_grad_norm"] for group in optimizer.param_groups} == {None}


def test_the_temperature_may_change_over_a_training(digits_config, tmp_path):
    """To the same value it trains alike; to another, every step but the first differs."""
    made = {"stays": {"temperature": 2.0}, "to itself": {"temperature": 2.0, "temperature_end": 2.0}}
    made["cools"] = {"temperature": 2.0, "temperature_end": 0.5}
    losses = {
        name: [row["train/loss"] for row in train(changed(digits_config, objective=each), RunFolder(tmp_path / name))]
        for name, each in made.items()
    }
    assert losses["stays"] == losses["to itself"] != losses["cools"]
