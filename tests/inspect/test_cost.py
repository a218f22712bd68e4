"""What branches cost, counted by hand."""

import pytest
import timm
import torch
from torch import nn

import sidebranch as sb
from sidebranch.inspect.cost import anatomy, costs


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, 1, 1, bias=False)
        self.top = nn.Conv2d(4, 6, 3, 2, 1, bias=False)
        self.fc = nn.Linear(6, 5)

    def forward(self, x):
        return self.fc(self.top(self.stem(x)).mean((2, 3)))


def test_parameters_multiply_adds_and_kept_bytes_are_those_counted_by_hand():
    body = nn.Sequential(nn.Conv2d(4, 2, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 5))
    net = sb.BranchedModel(Plain(), [sb.SideBranch("b1", "stem", body)])
    main, b1 = costs(net, (3, 8, 8))
    assert main.parameters == 4 * 27 + 6 * 36 + 35
    assert main.macs == 64 * 4 * 27 + 16 * 6 * 36 + 30
    # Kept for the backward pass: the stem's output for the next convolution, the pooled features for the linear layer.
    assert main.activations == 4 * (4 * 64 + 6)
    assert (b1.at, b1.parameters, b1.macs) == ("stem", 8 + 15, 64 * 8 + 10)
    assert b1.activations == 4 * 2  # average pooling keeps nothing


def test_a_networks_anatomy():
    with torch.device("meta"):
        net = sb.attach(timm.create_model("resnet50"))
    shown = anatomy(net)
    assert shown.input_size == (3, 224, 224)
    assert [(each.name, each.at) for each in shown.costs] == [("main", ""), ("b1", "layer3"), ("b2", "layer2")]
    assert shown.costs[0].macs == pytest.approx(4.09e9, rel=0.001)
    assert shown.costs[1].width == "x2"
    assert shown.costs[2].depth == "17/29"
    assert shown.times_baseline == pytest.approx(2.03, abs=0.01)
    layer2 = next(each for each in shown.places if each.at == "layer2")
    assert (layer2.shape, layer2.channels, layer2.cells) == ((512, 28, 28), 512, 784)
    assert anatomy(net, (3, 64, 64)).costs[0].macs < shown.costs[0].macs / 10


def test_channels_may_come_last():
    with torch.device("meta"):
        net = sb.attach(timm.create_model("swin_tiny_patch4_window7_224"))
    place = next(each for each in anatomy(net).places if each.at == "layers.2")
    assert (place.shape, place.channels, place.cells) == ((14, 14, 384), 384, 196)
