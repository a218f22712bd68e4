"""Stems adapted to small images."""

import pytest
import torch
from growing import little
from torch import nn

import sidebranch as sb


@pytest.mark.parametrize(("name", "downsamplings"), [("resnet18", 3), ("resnet26t", 3), ("efficientnet_b0", 4)])
def test_a_stem_for_small_images_keeps_their_resolution(name, downsamplings):
    backbone = little(name)
    assert sb.small_input(backbone) is backbone
    features = backbone.forward_features(torch.randn(1, 3, 32, 32))
    assert features.shape[-1] == 32 // 2**downsamplings
    first = next(each for each in backbone.modules() if isinstance(each, nn.Conv2d))
    assert (first.kernel_size, first.stride) == ((3, 3), (1, 1))
    assert sb.attach(backbone)(torch.randn(2, 3, 32, 32)).main.shape == (2, 7)
    again = sb.small_input(little(name))
    again.load_state_dict(backbone.state_dict())


@pytest.mark.parametrize(("name", "message"), [("convnext_atto", "patches"), ("vgg11_bn", "no strided convolution")])
def test_a_stem_that_cannot_be_adapted_is_refused(name, message):
    with pytest.raises(sb.UserError, match=message):
        sb.small_input(little(name))


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_a_stem_is_adapted_whatever_it_pads_with(mode):
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 7, 2, 3, padding_mode=mode)
            self.pool = nn.MaxPool2d(3, 2, 1)
            self.block = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1))
            self.fc = nn.Linear(8, 5)

        def forward(self, images):
            return self.fc(self.block(self.pool(self.stem(images))).mean((2, 3)))

    assert sb.small_input(Network()).stem(torch.randn(1, 3, 32, 32)).shape == (1, 8, 32, 32)
