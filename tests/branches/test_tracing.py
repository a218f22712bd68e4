"""Tails of unusual forward passes: effects, constants, modes, hooks."""

import pytest
import torch
import torch.nn.functional as F
from growing import WHOLE, Staged, little
from torch import nn

import sidebranch as sb
from sidebranch.branches import grow


def unused_in_place(net, x):
    y = net.late(net.early(x)) - 1
    F.relu_(y)
    y.mul_(3)
    return net.head(y)


def view_in_place(net, x):
    y = net.late(net.early(x))
    y.flatten(1)[:, :8].zero_()
    return net.head(y)


def constant(net, x):
    return net.head(net.late(net.early(x))) * torch.tensor(2.0)


def by_device(net, x):
    return net.head(net.late(net.early(x))) + torch.arange(5, device=x.device)


@pytest.mark.parametrize("run", [unused_in_place, view_in_place, constant, by_device])
def test_effects_and_constants_are_part_of_the_tail(run):
    backbone = Staged(run).eval()
    (b1,) = grow(backbone, at=["block1"], growth=WHOLE, input_size=(3, 8, 8))
    out = sb.BranchedModel(backbone, [b1.branch]).eval()(torch.randn(3, 3, 8, 8))
    assert torch.equal(out.main, out["b1"])


def by_size(net, x):
    return net.head(net.late(net.early(x))) * (x.shape[2] / 8)


def test_a_tail_that_depends_on_the_image_size_is_grown_for_the_given_size():
    backbone = Staged(by_size).eval()
    for size in (8, 16):
        (b1,) = grow(backbone, at=["block1"], growth=WHOLE, input_size=(3, size, size))
        net = sb.BranchedModel(backbone, [b1.branch]).eval()
        out = net(torch.randn(3, 3, size, size))
        assert torch.equal(out.main, out["b1"])
        net.release()


def noisy(net, x):
    y = net.late(net.early(x))
    return net.head(y + torch.randn_like(y) if net.training else y)


def test_what_happens_in_training_only_is_noted():
    (b1,) = grow(Staged(noisy), at=["block1"], growth=WHOLE, input_size=(3, 8, 8))
    assert "runs the backbone's evaluation forward in training too" in b1.notes[0]


def test_a_frozen_backbone_grows_branches_that_train():
    backbone = little("resnet18").requires_grad_(False)
    net = sb.attach(backbone, "auto")
    assert all(each.requires_grad for each in net.branches.parameters())
    assert not any(each.requires_grad for each in backbone.parameters())


class Fixed(nn.Module):
    """Takes a number of channels that is written down out of a wider feature."""

    def __init__(self, channels):
        super().__init__()
        self.conv, self.channels = nn.Conv2d(channels, channels, 3, 1, 1), channels

    def forward(self, x):
        return self.conv(x)[:, : self.channels]


def test_a_module_that_would_ignore_its_new_channels_is_not_widened():
    stages = [nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1)), nn.Sequential(nn.Conv2d(4, 6, 3, 2, 1)), Fixed(6)]
    backbone = nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5))
    (b1,) = grow(backbone, at=["0"], input_size=(3, 16, 16))
    assert b1.width == 1
    assert "takes a fixed number of channels" in b1.notes[0]


def test_hooks_of_a_users_are_neither_called_nor_copied():
    backbone = little("resnet18").eval()
    seen = []
    for module in (backbone.layer2, backbone.layer4[1]):
        module.register_forward_hook(lambda *_: seen.append(1))
    net = sb.attach(backbone, "auto").eval()
    assert not seen
    net(torch.randn(1, 3, 32, 32))
    assert len(seen) == 2


def hooked():
    backbone = little("resnet18")
    backbone.register_forward_hook(lambda module, inputs, output: output * 2)
    return backbone


def patched():
    backbone = little("resnet18")
    backbone.forward = lambda x: x
    return backbone


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda: sb.attach(hooked(), "auto"), "forward hook"),
        (lambda: sb.attach(patched(), "auto"), "a forward hook or a patched forward"),
        (lambda: sb.attach(torch.compile(little("resnet18")), "auto"), "then compile the whole"),
        (lambda: sb.attach(little("resnet18"), at=["fc"]), "no fork at 'fc'"),
        (lambda: sb.attach(little("resnet18"), at="layer3"), "give a list of paths, such as .'layer3'."),
        (lambda: sb.attach(little("resnet18"), "auto", count=2.5), "number of branches is 2.5"),
        (lambda: sb.attach(little("resnet18"), "auto", input_size=32), "must be channels, height, width"),
        (lambda: sb.attach(little("resnet18"), "auto", input_size=(3, -1, 4)), "must be channels, height, width"),
        (lambda: sb.attach(nn.Sequential(nn.LazyLinear(3)), "auto"), "lazy layers"),
        (lambda: sb.attach(little("resnet18"), "paper", growth=sb.Growth(width=1)), "need branches='auto'"),
    ],
)
def test_backbones_and_wishes_that_cannot_be(attempt, message):
    with pytest.raises(sb.UserError, match=message):
        attempt()
