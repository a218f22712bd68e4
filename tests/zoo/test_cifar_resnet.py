import math

import pytest
import timm
import torch
from torch import nn

import sidebranch as sb
from sidebranch.zoo.cifar_resnet import BasicBlock


def parameters(module):
    return sum(each.numel() for each in module.parameters())


@pytest.mark.parametrize(("depth", "main", "together"), [(32, 470_004, 2_147_644), (110, 1_733_812, 7_770_108)])
def test_parameter_counts_are_the_papers(depth, main, together):
    net = sb.attach(timm.create_model(f"cifar_resnet{depth}", num_classes=100))
    assert parameters(net.backbone) == main
    assert parameters(net) == together


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110])
def test_layout_of_every_depth(depth):
    net = sb.attach(timm.create_model(f"cifar_resnet{depth}", num_classes=10))
    n = (depth - 2) // 6
    assert [len(stage) for stage in (net.backbone.layer1, net.backbone.layer2, net.backbone.layer3)] == [n, n, n]
    assert net.forks == {"b1": "layer2", "b2": "layer1"}
    assert len(net.branches["b1"].layer3) == n
    assert net.branches["b1"].fc.in_features == 128
    assert len(net.branches["b2"].layer2) == (9 if depth == 110 else n)
    assert len(net.branches["b2"].layer3) == (9 if depth == 110 else math.ceil(n / 2))


def test_depth_1202_has_the_published_layout():
    with torch.device("meta"):
        net = sb.attach(timm.create_model("cifar_resnet1202", num_classes=100))
    assert len(net.backbone.layer3) == 200
    assert [len(net.branches["b2"].layer2), len(net.branches["b2"].layer3)] == [100, 100]
    assert len(net.branches["b1"].layer3) == 200


@pytest.mark.parametrize("mode", [True, False])
def test_forward_and_backward(mode):
    net = sb.attach(timm.create_model("cifar_resnet20", num_classes=100, in_chans=1)).train(mode)
    out = net(torch.randn(2, 1, 8, 8))
    assert [each.shape for each in out.logits] == [(2, 100)] * 3
    sb.dhm()(out, torch.tensor([0, 1])).total.backward()
    assert all(each.grad is not None and each.grad.isfinite().all() for each in net.parameters())


def test_shortcut_across_a_stride_pools_and_appends_zeros():
    block = BasicBlock(4, 6, stride=2).eval()
    nn.init.zeros_(block.bn2.weight)
    x = torch.rand(2, 4, 8, 8)
    out = block(x)
    torch.testing.assert_close(out[:, :4], nn.functional.avg_pool2d(x, 2))
    assert out[:, 4:].abs().sum() == 0
    assert not any("downsample" in name or "shortcut" in name for name, _ in block.named_parameters())


def test_blocks_are_post_activation():
    block = BasicBlock(4, 4).eval()
    nn.init.zeros_(block.bn2.weight)
    x = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(block(x), x.relu())


def test_init_is_normal_by_fan_out_in_backbone_and_branches():
    net = sb.attach(timm.create_model("cifar_resnet110", num_classes=10))
    for root in (net.backbone.layer3, net.branches["b1"].layer3, net.branches["b2"].layer2):
        weights = torch.cat([each.weight.flatten() for each in root.modules() if isinstance(each, nn.Conv2d)][2:])
        width = root[-1].conv2.out_channels
        assert weights.std().item() == pytest.approx(math.sqrt(2 / (9 * width)), rel=0.01)
        assert weights.mean().abs() < 1e-3
        norms = [each for each in root.modules() if isinstance(each, nn.BatchNorm2d)]
        assert all((each.weight == 1).all() and (each.bias == 0).all() for each in norms)


def test_timm_s_interface():
    model = timm.create_model("cifar_resnet20", num_classes=10).eval()
    x = torch.randn(2, 3, 32, 32)
    features = model.forward_features(x)
    assert features.shape == (2, 64, 8, 8)
    assert torch.equal(model.forward_head(features), model(x))
    assert model.forward_head(features, pre_logits=True).shape == (2, 64)
    assert model.get_classifier() is model.fc
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)
    assert timm.is_model("cifar_resnet1202")


def test_a_shipped_file_loads_into_timm(tmp_path):
    from safetensors.torch import save_file

    model = timm.create_model("cifar_resnet20", num_classes=4).eval()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    again = timm.create_model(
        "cifar_resnet20", num_classes=4, checkpoint_path=str(tmp_path / "model.safetensors")
    ).eval()
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(x), again(x))
