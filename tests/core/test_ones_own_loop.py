"""Edges of the loss and of the forward pass that someone else's loop may meet."""

import copy

import pytest
import timm
import torch
from torch import nn

import sidebranch as sb
from networks import Little, little_branches


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_labels_of_any_integer_dtype(little_net, images, labels, dtype):
    outputs = little_net(images)
    assert torch.equal(sb.dhm()(outputs, labels.to(dtype)).total, sb.dhm()(outputs, labels).total)


@pytest.mark.parametrize("wrong", [-100, -1, 10])
def test_labels_beyond_the_classes_are_refused_on_a_cpu(little_net, images, labels, wrong):
    labels[2] = wrong
    with pytest.raises(sb.UserError, match=f"a target is {wrong}, but the logits have 10 classes, 0 to 9"):
        sb.dhm()(little_net(images), labels)


def test_booleans_are_no_labels(little_net, images):
    with pytest.raises(sb.UserError, match="need integer class indices"):
        sb.dhm()(little_net(images), torch.ones(6, dtype=torch.bool))


@pytest.mark.parametrize("kept", [1 << 24, 0])
def test_backward_any_number_of_times(monkeypatch, kept):
    """The gradient is kept from the forward pass, or computed again."""
    monkeypatch.setattr("sidebranch.core.loss.KEPT", kept)
    logits = [torch.randn(4, 5, requires_grad=True) for _ in range(2)]
    total = sb.dhm()(sb.Outputs(("main", "b1"), tuple(logits)), torch.tensor([0, 1, 2, 3])).total
    total.backward(retain_graph=True)
    once = [each.grad.clone() for each in logits]
    for times in (2, 3, 4):
        total.backward(retain_graph=True)
        for each, first in zip(logits, once, strict=True):
            torch.testing.assert_close(each.grad, times * first)


@pytest.mark.parametrize("rows", [0, -1])
def test_rows_are_at_least_one(little_net, images, rows):
    with pytest.raises(sb.UserError, match=f"rows is {rows}; the branches need at least 1 image"):
        little_net(images, rows=rows)


def test_heads_are_closed_after_an_exception(little_net, images):
    little_net.watch_features()
    body, little_net.branches["b1"] = little_net.branches["b1"], nn.Conv2d(1, 1, 1)
    with pytest.raises(RuntimeError):
        little_net(images)
    for each in (*little_net._heads.values(), *little_net._taps.values()):
        assert not each.is_open
        assert getattr(each, "features", None) is None
    little_net.branches["b1"] = body
    assert [each.shape for each in little_net(images).features] == [(6, 8), (6, 16), (6, 8)]


def test_features_of_a_branch_that_is_one_layer():
    net = sb.BranchedModel(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3)), [sb.SideBranch("b1", "0", nn.Linear(8, 3))])
    net.watch_features()
    assert net.classifiers == {"main": "backbone.1", "b1": "branches.b1"}
    assert [each.shape for each in net(torch.randn(2, 4)).features] == [(2, 8), (2, 8)]


def test_necks_and_triplets_work_in_ones_own_loop(little_net, images):
    little_net.watch_features(necks="batch_norm")
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    outputs = little_net(images)
    loss = sb.dhm()(outputs, labels).total + sb.TripletLoss(0.3)(outputs, labels)
    loss.backward()
    assert little_net.necks["b2"].weight.grad is not None
    plain = Little()
    plain.load_state_dict(little_net.shipped_state_dict())
    torch.testing.assert_close(plain.eval()(images), little_net.eval()(images).main)
    with pytest.raises(sb.UserError, match=r"call net\.watch_features\(\) before training"):
        sb.TripletLoss()(sb.Outputs(("main",), (torch.zeros(2, 3),)), labels[:2])


class TestObjectiveIsAModule:
    def test_the_users_teacher_keeps_its_mode_and_gradients(self):
        teacher = nn.Sequential(nn.Linear(4, 3), nn.Dropout())
        objective = sb.kd(teacher)
        assert teacher.training
        assert all(each.requires_grad for each in teacher.parameters())
        assert objective.teacher is not teacher
        objective.train()
        assert not objective.teacher.training

    def test_it_has_no_state_and_no_parameters(self):
        model = nn.ModuleDict({"loss": sb.kd(nn.Linear(4, 3)), "net": nn.Linear(4, 3)})
        assert set(model.state_dict()) == {"net.weight", "net.bias"}
        assert len(list(model.parameters())) == 2
        model.load_state_dict(nn.ModuleDict({"loss": sb.dhm(), "net": nn.Linear(4, 3)}).state_dict())

    def test_its_teacher_follows_where_it_goes(self):
        model = nn.ModuleDict({"loss": sb.kd(nn.Linear(4, 3))})
        model.to(torch.float64)
        assert model["loss"].teacher.weight.dtype == torch.float64
        model.to("meta")
        assert model["loss"].teacher.weight.is_meta

    def test_copies_have_their_own_teacher(self):
        objective = sb.kd(nn.Linear(4, 3))
        twin = copy.deepcopy(objective)
        assert twin.teacher is not objective.teacher
        outputs = sb.Outputs(("main",), (torch.randn(2, 3),))
        images, labels = torch.randn(2, 4), torch.tensor([0, 1])
        totals = [each(outputs, labels, images=images).total for each in (objective, twin)]
        assert torch.equal(*totals)


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU())
        self.fc = nn.Linear(16, 10)

    def forward(self, images):
        return self.fc(self.layers(images))


class Tokens(nn.Module):
    def forward(self, tokens):
        return tokens.mean(1) @ torch.ones(tokens.shape[2], 5)


@pytest.mark.parametrize(
    ("backbone", "at", "body", "size"),
    [
        (Mlp, "layers.2", nn.Linear(32, 10), (1, 8, 8)),
        (lambda: timm.create_model("test_vit", num_classes=5, img_size=32), "blocks.2", Tokens(), None),
        (
            lambda: timm.create_model("test_resnet", num_classes=5),
            "layer4",
            nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(5)),
            (3, 32, 32),
        ),
    ],
)
def test_attach_takes_every_branch_that_the_model_takes(backbone, at, body, size, recwarn):
    """The papers' rules are about convolutions; where they say nothing, there is no advice."""
    net = sb.attach(backbone(), [sb.SideBranch("b1", at, body)], input_size=size)
    shape = size or (3, 32, 32)
    assert net(torch.randn(2, *shape))["b1"].shape[0] == 2
    assert not [each for each in recwarn if "rules" in str(each.message)]


def test_attach_still_advises_where_it_can():
    with pytest.warns(UserWarning, match="the papers' rules of a branch"):
        sb.attach(Little(), little_branches()[::-1], input_size=(1, 8, 8))
