"""Every network of the papers: counts, layouts, structure, a step."""

import copy
import math

import pytest
import timm
import torch
from torch import nn

import sidebranch as sb
from sidebranch.zoo import published

# K = 100 on CIFAR, 1000 on ImageNet: main, and with b1 and b2, counted in the public code; None where it has none.
PUBLISHED = {
    "cifar_resnet32": (470_004, 2_147_644),
    "cifar_resnet110": (1_733_812, 7_770_108),
    "wrn_16_8": (11_007_540, 47_874_556),
    "wrn_28_10": (36_536_884, 164_146_364),
    "densenet_40_12": (1_060_132, 3_749_364),
    "densenet_100_12": (7_084_852, 23_776_604),
    "densenet_bc_100_12": (800_032, 6_342_864),
    "resnet18": (11_689_512, 53_483_512),
    "resnet50": (25_557_032, 100_523_000),
    "resnet101": (44_549_160, 129_569_784),
}
# Where the papers give none, ours, so that a change is seen.
OURS = {
    "cifar_resnet1202": (19_427_124, 87_652_092),
    "wrn_28_4": (5_872_180, 26_343_548),
    "cifar_mobilenet": (3_309_476, 11_431_276),
    "reid_mobilenet": (3_309_476, 11_431_276),
    "resnet34": (21_797_672, 84_831_480),
    "resnet152": (60_192_808, 151_916_536),
}
COUNTS = PUBLISHED | OURS
IMAGENET = [name for name in COUNTS if name.startswith("resnet")]


def on_meta(name, **options):
    with torch.device("meta"):
        return sb.attach(timm.create_model(name, num_classes=1000 if name in IMAGENET else 100), **options)


def parameters(module):
    return sum(each.numel() for each in module.parameters())


def convolutions(module):
    return [each for each in module.modules() if isinstance(each, nn.Conv2d)]


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(name):
    net = on_meta(name)
    assert (parameters(net.backbone), parameters(net)) == COUNTS[name]
    assert net.names == ("main", "b1", "b2")


@pytest.mark.parametrize(
    "name", [name for name, (main, _) in COUNTS.items() if main < 30_000_000 and "1202" not in name]
)
def test_forward_and_backward_at_a_tiny_input(name):
    net = sb.attach(timm.create_model(name, num_classes=5))
    side = 32 if name in IMAGENET or name == "reid_mobilenet" else 8
    out = net(torch.randn(2, 3, side, side))
    assert [each.shape for each in out.logits] == [(2, 5)] * 3
    sb.dhm()(out, torch.tensor([0, 4])).total.backward()
    assert all(each.grad is not None and each.grad.isfinite().all() for each in net.parameters())


@pytest.mark.parametrize(
    ("name", "forks"),
    [
        ("cifar_resnet32", {"b1": "layer2", "b2": "layer1"}),
        ("wrn_28_10", {"b1": "layer2", "b2": "layer1"}),
        ("densenet_40_12", {"b1": "transition2", "b2": "transition1"}),
        ("reid_mobilenet", {"b1": "layer4", "b2": "layer3"}),
        ("resnet50", {"b1": "layer3", "b2": "layer2"}),
    ],
)
def test_forks(name, forks):
    assert on_meta(name).forks == forks


@pytest.mark.parametrize(
    ("name", "branch", "layout"),
    [
        ("wrn_16_8", "b1", {"layer3": (2, 1024)}),
        ("wrn_16_8", "b2", {"layer2": (2, 256), "layer3": (1, 512)}),
        ("wrn_28_4", "b2", {"layer2": (4, 128), "layer3": (2, 256)}),
        ("wrn_28_10", "b1", {"layer3": (4, 1280)}),
        ("resnet18", "b1", {"layer4": (2, 1024)}),
        ("resnet18", "b2", {"layer3": (1, 256), "layer4": (2, 512)}),
        ("resnet50", "b2", {"layer3": (3, 1024), "layer4": (2, 2048)}),
        ("resnet101", "b2", {"layer3": (12, 1024), "layer4": (2, 2048)}),
        ("resnet152", "b1", {"layer4": (3, 4096)}),
        ("reid_mobilenet", "b1", {"layer5": (2, 2048)}),
        ("reid_mobilenet", "b2", {"layer4": (4, 512), "layer5": (2, 1024)}),
    ],
)
def test_blocks_and_widths_of_branches(name, branch, layout):
    body = on_meta(name).branches[branch]
    found = {
        stage: (len(getattr(body, stage)), convolutions(getattr(body, stage))[-1].out_channels) for stage in layout
    }
    assert found == layout
    assert set(body.stage_names) == set(layout)


@pytest.mark.parametrize(
    ("name", "b1", "b2"),
    [("densenet_40_12", 12, (12, 6)), ("densenet_100_12", 32, (16, 16)), ("densenet_bc_100_12", 32, (16, 16))],
)
def test_layers_of_densenet_branches(name, b1, b2):
    net = on_meta(name)
    assert len(net.branches["b1"].layer3) == b1
    assert convolutions(net.branches["b1"].layer3)[-1].out_channels == 36
    assert (len(net.branches["b2"].layer2), len(net.branches["b2"].layer3)) == b2


def test_resnet18_has_a_third_branch():
    net = on_meta("resnet18", count=3)
    assert net.names == ("main", "b1", "b2", "b3")
    assert net.forks["b3"] == "layer1"
    layers = [net.branches["b3"].layer2, net.branches["b3"].layer3, net.branches["b3"].layer4]
    assert [(len(each), each[0].conv2.out_channels) for each in layers] == [(1, 128), (1, 256), (2, 512)]
    assert on_meta("resnet18", count=1).names == ("main", "b1")
    with pytest.raises(sb.UserError, match="count is 3; for this network 1 to 2"):
        on_meta("resnet50", count=3)


@pytest.mark.parametrize("name", ["resnet50d", "seresnet50", "resnext50_32x4d", "wide_resnet50_2", "resnet26"])
def test_other_resnets_are_not_taken_for_the_papers(name):
    with torch.device("meta"):
        assert published(timm.create_model(name)) is None


@pytest.mark.parametrize("name", [name for name in COUNTS if "1202" not in name and "152" not in name])
def test_a_branch_halves_the_resolution_as_often_as_main(name):
    net = on_meta(name).eval()
    sizes = {}

    def note(where):
        return lambda module, inputs, output: sizes.__setitem__(where, output.shape[2:]) if output.ndim == 4 else None

    last = net.backbone.layer4 if name in IMAGENET else getattr(net.backbone, net.backbone.stage_names[-1])
    last.register_forward_hook(note("main"))
    for branch, body in net.branches.items():
        getattr(body, body.stage_names[-1]).register_forward_hook(note(branch))
    net(torch.empty(1, 3, 64, 64, device="meta"))
    assert sizes["b1"] == sizes["b2"] == sizes["main"]


@pytest.mark.parametrize("name", ["wrn_16_8", "densenet_40_12", "densenet_bc_100_12", "cifar_mobilenet"])
def test_init_is_normal_by_fan_out(name):
    net = sb.attach(timm.create_model(name, num_classes=10))
    for root in (net.backbone, net.branches["b1"]):
        for each in convolutions(root):
            wanted = math.sqrt(2 / (math.prod(each.kernel_size) * each.out_channels))
            assert each.weight.std().item() == pytest.approx(wanted, rel=4 / math.sqrt(each.weight.numel()) + 0.01)
        norms = [each for each in root.modules() if isinstance(each, nn.BatchNorm2d)]
        assert all((each.weight == 1).all() and (each.bias == 0).all() for each in norms)


def test_wide_blocks_are_pre_activation_and_share_it_with_the_shortcut():
    block = timm.create_model("wrn_16_8").layer1[0].eval()
    x = torch.randn(2, 16, 8, 8)
    nn.init.zeros_(block.conv2.weight)
    torch.testing.assert_close(block(x), block.shortcut(block.bn1(x).relu()))
    assert block.shortcut.bias is None
    same = timm.create_model("wrn_16_8").layer1[1].eval()
    nn.init.zeros_(same.conv2.weight)
    x = torch.randn(2, 128, 8, 8)
    assert torch.equal(same(x), x)


def test_wide_dropout_stands_between_the_convolutions():
    net = sb.attach(timm.create_model("wrn_28_10", drop_rate=0.3, num_classes=5))
    for root in (net.backbone, *net.branches.values()):
        drops = [each for each in root.modules() if isinstance(each, nn.Dropout)]
        assert drops
        assert all(each.p == 0.3 for each in drops)
    block = copy.deepcopy(net.backbone.layer1[1]).train()
    block.dropout.p = 1.0
    x = torch.randn(2, 160, 4, 4)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize("name", ["wrn_16_2", "cifar_resnet8", "densenet_40_12"])
def test_misspelt_options_are_refused(name):
    with pytest.raises(TypeError, match="drop_rte"):
        timm.create_model(name, drop_rte=0.3)


def test_stems():
    for name in ("wrn_16_8", "densenet_40_12"):
        model = timm.create_model(name)
        stem = getattr(model, model.stage_names[0])
        assert (stem.out_channels, stem.stride, stem.kernel_size) == (16, (1, 1), (3, 3))
        assert isinstance(getattr(model, model.stage_names[1]), nn.Sequential)
    assert timm.create_model("densenet_bc_100_12").conv1.out_channels == 24
    assert timm.create_model("cifar_mobilenet").conv.stride == (1, 1)
    assert timm.create_model("reid_mobilenet").conv.stride == (2, 2)


def test_pre_activation_networks_end_in_norm_and_relu():
    for name in ("wrn_16_8", "densenet_40_12"):
        net = sb.attach(timm.create_model(name, num_classes=5)).eval()
        for tail in (net.backbone, *net.branches.values()):
            assert tail.bn is not None
        features = net.backbone.forward_features(torch.randn(1, 3, 16, 16))
        assert features.min() == 0


def test_dense_layers_append_and_transitions_compress():
    plain, compressed = timm.create_model("densenet_40_12"), timm.create_model("densenet_bc_100_12")
    x = torch.randn(1, 16, 8, 8)
    out = plain.layer1[0].eval()(x)
    assert torch.equal(out[:, :16], x)
    assert out.shape[1] == 28
    assert plain.transition1.conv.in_channels == plain.transition1.conv.out_channels
    assert compressed.transition1.conv.in_channels == 2 * compressed.transition1.conv.out_channels
    layer = compressed.layer1[0]
    assert (layer.conv1.kernel_size, layer.conv1.out_channels) == ((1, 1), 48)
    assert (layer.conv2.kernel_size, layer.conv2.out_channels) == ((3, 3), 12)
