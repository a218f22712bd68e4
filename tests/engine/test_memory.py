import copy

import pytest
import timm
import torch
from torch import nn

import sidebranch as sb
from conftest import Little
from sidebranch.engine.memory import checkpoint_stages


def train(net, steps=3):
    optimizer = torch.optim.SGD(net.parameters(), 0.05)
    for moment in range(steps):
        torch.manual_seed(moment)
        images, labels = torch.randn(4, 3, 16, 16), torch.randint(5, (4,))
        optimizer.zero_grad()
        sb.dhm()(net(images), labels).total.backward()
        optimizer.step()
    return net.state_dict()


@pytest.mark.parametrize(
    ("name", "options"), [("cifar_resnet20", {}), ("wrn_16_8", {"drop_rate": 0.3}), ("resnet18", {})]
)
def test_training_with_checkpoints_is_training_without(name, options):
    plain = sb.attach(timm.create_model(name, num_classes=5, **options))
    saving = copy.deepcopy(plain)
    checkpoint_stages(saving)
    expected, found = train(plain), train(saving)
    assert list(found) == list(expected)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-6, msg=key)


def test_activations_inside_the_stages_are_not_kept():
    net = sb.attach(timm.create_model("cifar_resnet56", num_classes=5))
    images = torch.randn(4, 3, 16, 16)

    def kept(net):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
            net(images)
        return sum(sizes)

    before = kept(net)
    checkpoint_stages(net)
    assert kept(net) < before / 10


def test_a_copy_runs_its_own_weights():
    net = sb.attach(timm.create_model("cifar_resnet20", num_classes=5))
    checkpoint_stages(net)
    twin = copy.deepcopy(net)
    with torch.no_grad():
        for each in net.parameters():
            each.zero_()
    assert twin.eval()(torch.randn(2, 3, 16, 16)).main.abs().sum() > 0


def test_a_backbone_without_stages_is_refused():
    backbone = Little()
    backbone.stage1, backbone.stage2, backbone.stage3 = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1)
    with pytest.raises(sb.UserError, match=r"nn\.Sequential stages"):
        checkpoint_stages(sb.attach(backbone, []))
