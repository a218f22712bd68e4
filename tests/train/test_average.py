"""The moving average of the network, as its teacher."""

from dataclasses import replace

import pytest
import timm
import torch
from lightning.fabric import Fabric
from timm.utils.model_ema import ModelEmaV3

import sidebranch as sb
from networks import Little, little_branches
from sidebranch.data.datasets import read_dataset
from sidebranch.device import Choices
from sidebranch.runs import checkpoint
from sidebranch.runs.folder import RunFolder
from sidebranch.train import setup
from sidebranch.train.average import AverageTeacher
from sidebranch.train.loop import train
from training import assert_same, changed, timeless


def test_it_is_what_the_average_says():
    net = sb.attach(Little(), little_branches())
    average = ModelEmaV3(net, decay=0.9)
    images = torch.randn(4, 1, 8, 8)
    taught = AverageTeacher(("average", "average.b2"), average, net.eval())(images, ("main", "b1"), {})
    wanted = average.module(images)
    assert taught.keys() == {"average", "average.b2"}
    for found, name in zip(taught["average"], ("main", "b1"), strict=True):
        torch.testing.assert_close(found, wanted[name])
    torch.testing.assert_close(taught["average.b2"], wanted["b2"])
    assert not taught["average.b2"].requires_grad
    with pytest.raises(sb.UserError, match="no teacher 'average.b4'; did you mean"):
        AverageTeacher(("average.b4",), average, net)


def test_it_normalises_by_the_batch_where_the_network_does():
    """Before the first update both say the same, also where fresh running statistics would overflow in float16."""
    net = sb.attach(timm.create_model("cifar_resnet110", num_classes=10))
    average = ModelEmaV3(net, decay=0.9)
    net.backbone.bn1.eval()
    net.backbone.bn1.running_mean.fill_(0.5)
    average.module.backbone.bn1.running_mean.fill_(0.5)
    before = {name: each.clone() for name, each in average.module.named_buffers() if "tracked" not in name}
    images = torch.randn(4, 3, 32, 32)
    with torch.autocast("cpu", torch.float16):
        taught = AverageTeacher(("average",), average, net)(images, net.names, {})
        wanted = net(images)
    for found, logits in zip(taught["average"], wanted.logits, strict=True):
        torch.testing.assert_close(found, logits.detach())
        assert found.isfinite().all()
    assert_same({name: each for name, each in average.module.named_buffers() if name in before}, before)
    assert not any(each.training for each in average.module.modules())


def test_an_average_that_ships_teaches_too(digits_config, tmp_path):
    """Of the same decay, the one that is kept anyway and one of its own train alike."""
    teaching = {"objective": {"teachers": ["average"], "average": 0.9}}
    own = train(changed(digits_config, **teaching), RunFolder(tmp_path / "own"))
    shared = train(changed(digits_config, **teaching, optim={"ema": 0.9}), RunFolder(tmp_path / "shared"))
    plain = train(digits_config, RunFolder(tmp_path / "plain"))
    losses = [[row["train/loss"] for row in timeless(rows)] for rows in (own, shared, plain)]
    assert losses[0] == losses[1] != losses[2]


def test_a_method_without_further_teachers_keeps_no_average(digits_config, folder):
    train(replace(changed(digits_config, objective={"teachers": ["average"]}), method="dsl"), folder)
    assert checkpoint.load(folder.last)["average"] is None


def test_a_network_that_teaches_has_no_cuda_graphs(digits_config, folder, monkeypatch):
    """Its pass falls between the student's forward and backward pass."""
    seen = []
    monkeypatch.setattr(setup, "compile_network", lambda network, how: seen.append((network, how)))
    dataset, choices = read_dataset(digits_config.data, 0), Choices("32-true", False, "cuda_graphs", "")
    for optim, expected in (({}, ["cuda_graphs", True]), ({"ema": 0.9}, ["cuda_graphs", True])):
        config = changed(digits_config, objective={"teachers": ["average"]}, optim=optim)
        made = setup.build_networks(config, dataset, Fabric(accelerator="cpu"), choices, resuming=False)
        assert [how for _, how in seen] == expected
        assert seen[1][0] is made.average.module
        seen.clear()
    setup.build_networks(
        changed(digits_config, optim={"ema": 0.9}), dataset, Fabric(accelerator="cpu"), choices, resuming=False
    )
    assert [how for _, how in seen] == ["cuda_graphs"] * 2


def test_the_average_follows_every_update(digits_config, folder):
    """Without decay it is the network itself."""
    train(changed(digits_config, objective={"teachers": ["average"], "average": 0.0}), folder)
    state = checkpoint.load(folder.last)
    assert_same(state["average"], state["model"])
