"""The public code's checkpoints: names both ways, every key once, a round trip, a network in their naming."""

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

import sidebranch as sb
from sidebranch.zoo.reference import our_name, read_reference, reference_name

NAMES = ["cifar_resnet32", "wrn_16_8", "densenet_40_12", "densenet_bc_100_12", "resnet18", "resnet50"]


def reference_state(net, prefix=""):
    return {prefix + reference_name(key): value.clone() for key, value in net.state_dict().items()}


@pytest.mark.parametrize(
    ("reference", "ours"),
    [
        ("conv1.weight", "backbone.conv1.weight"),
        ("layer1.0.bn2.running_mean", "backbone.layer1.0.bn2.running_mean"),
        ("layer4.0.downsample.1.weight", "backbone.layer4.0.downsample.1.weight"),
        ("layer3_head2.1.conv2.weight", "branches.b2.layer3.1.conv2.weight"),
        ("layer4_head1.0.downsample.0.weight", "branches.b1.layer4.0.downsample.0.weight"),
        ("fc_head1.bias", "branches.b1.fc.bias"),
        ("bn_head2.running_var", "branches.b2.bn.running_var"),
        ("transition2_head2.conv.weight", "branches.b2.transition2.conv.weight"),
        ("layer3.0.shortcut.weight", "backbone.layer3.0.shortcut.weight"),
    ],
)
def test_names_both_ways(reference, ours):
    assert our_name(reference) == ours
    assert reference_name(ours) == reference


@pytest.mark.parametrize("name", NAMES)
def test_names_are_those_of_the_public_code(name):
    with torch.device("meta"):
        net = sb.attach(timm.create_model(name, num_classes=10))
    keys = [reference_name(key) for key in net.state_dict()]
    assert len(set(keys)) == len(keys)
    heads = {key.split(".")[0] for key in keys if "_head" in key}
    imagenet = {"layer3_head2", "layer4_head2", "fc_head2", "layer4_head1", "fc_head1"}
    cifar = {"layer2_head2", "layer3_head2", "fc_head2", "layer3_head1", "fc_head1"}
    norms = {"bn_head1", "bn_head2"}
    wanted = {"resnet18": imagenet, "resnet50": imagenet, "cifar_resnet32": cifar, "wrn_16_8": cifar | norms}
    assert heads == wanted.get(name, cifar | norms | {"transition2_head2"})
    if name.startswith("densenet"):
        assert {"conv1.weight", "transition1.bn.weight", "transition2.conv.weight", "bn.weight", "fc.bias"} <= set(keys)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("name", ["cifar_resnet20", "resnet18"])
def test_round_trip_through_a_file(name, prefix, wrapped, tmp_path):
    net, other = (sb.attach(timm.create_model(name, num_classes=4)).eval() for _ in range(2))
    state = reference_state(net, prefix)
    saved = {"epoch": 3, "arch": "x", "state_dict": state, "best_prec1": 0.5, "optimizer": {}} if wrapped else state
    torch.save(saved, tmp_path / "reference.pth")
    assert sb.load_reference(other, str(tmp_path / "reference.pth")) is other
    x = torch.randn(2, 3, 32, 32)
    for one, two in zip(net(x).logits, other(x).logits, strict=True):
        assert torch.equal(one, two)


class ReferenceBlock(nn.Module):
    """A basic block in the public code's naming, written from the papers alone."""

    def __init__(self, cin, cout, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(cout)
        self.conv2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(cout)
        self.stride, self.grow = stride, cout - cin

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride == 2 or self.grow:
            x = F.avg_pool2d(x, 2)
            zeros = torch.zeros(x.shape[0], self.grow, *x.shape[2:])
            x = torch.cat([x, zeros], 1)
        return F.relu(x + y)


class ReferenceNet(nn.Module):
    """ResNet-20 with two heads as the public code lays it out: one flat module, branches by suffix."""

    def __init__(self, classes):
        super().__init__()

        def blocks(n, cin, cout, stride):
            return nn.Sequential(
                *(ReferenceBlock(cin if i == 0 else cout, cout, stride if i == 0 else 1) for i in range(n))
            )

        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = blocks(3, 16, 16, 1)
        self.layer2 = blocks(3, 16, 32, 2)
        self.layer3 = blocks(3, 32, 64, 2)
        self.fc = nn.Linear(64, classes)
        self.layer2_head2 = blocks(3, 16, 32, 2)
        self.layer3_head2 = blocks(2, 32, 64, 2)
        self.fc_head2 = nn.Linear(64, classes)
        self.layer3_head1 = blocks(3, 32, 128, 2)
        self.fc_head1 = nn.Linear(128, classes)

    def forward(self, x):
        first = self.layer1(F.relu(self.bn1(self.conv1(x))))
        second = self.layer2(first)
        main = self.fc(F.adaptive_avg_pool2d(self.layer3(second), 1).flatten(1))
        near = self.fc_head1(F.adaptive_avg_pool2d(self.layer3_head1(second), 1).flatten(1))
        far = self.layer3_head2(self.layer2_head2(first))
        return main, near, self.fc_head2(F.adaptive_avg_pool2d(far, 1).flatten(1))


def test_a_network_in_the_public_code_s_naming_gives_the_same_logits(tmp_path):
    reference = nn.DataParallel(ReferenceNet(7))
    for each in reference.modules():
        if isinstance(each, nn.BatchNorm2d):
            each.running_mean.normal_()
            each.running_var.uniform_(0.5, 2)
    torch.save(reference.state_dict(), tmp_path / "reference.pth")
    net = sb.load_reference(sb.attach(timm.create_model("cifar_resnet20", num_classes=7)), tmp_path / "reference.pth")
    x = torch.randn(4, 3, 32, 32)
    for ours, theirs in zip(net.eval()(x).logits, reference.module.eval()(x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_counts_of_batches_may_be_missing_as_in_old_checkpoints():
    net = sb.attach(timm.create_model("cifar_resnet20"))
    state = {key: value for key, value in reference_state(net).items() if not key.endswith("num_batches_tracked")}
    sb.load_reference(sb.attach(timm.create_model("cifar_resnet20")), state)


def test_keys_that_do_not_fit_are_listed_and_nothing_is_loaded():
    net = sb.attach(timm.create_model("cifar_resnet20"))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    state = {key: value + 1 for key, value in reference_state(net, "module.").items()}
    del state["module.fc_head1.bias"]
    state["module.layer9.weight"] = torch.zeros(1)
    state["module.fc.weight"] = torch.zeros(3, 64)
    with pytest.raises(sb.UserError) as error:
        sb.load_reference(net, state)
    message = str(error.value)
    assert "missing: fc_head1.bias" in message
    assert "left over: layer9.weight" in message
    assert "of another shape: fc.weight is [3, 64], not [10, 64]" in message
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize("number", [np.float32(0.5), np.float64(0.5), np.int64(3), np.bool_(True)])
def test_numpys_numbers_beside_the_tensors_are_no_obstacle(number, tmp_path):
    """torchreid's engine writes one, `rank1`."""
    torch.save({"state_dict": {"module.fc.bias": torch.ones(2)}, "rank1": number}, tmp_path / "model.pth.tar-60")
    assert list(read_reference(tmp_path / "model.pth.tar-60")) == ["fc.bias"]


class Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemExit('executed')",))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: torch.save(Bomb(), path), "not safe to open"),
        (lambda path: torch.save({"x": np.array([Bomb()], dtype=object)}, path), "not safe to open"),
        (lambda path: path.write_bytes(b"PK damaged"), "damaged"),
        (lambda path: torch.save([1, 2], path), "holds a list, not a state dict"),
        (lambda path: None, "no checkpoint"),
    ],
)
def test_files_that_cannot_be_loaded(tmp_path, write, message):
    write(tmp_path / "reference.pth")
    with pytest.raises(sb.UserError, match=message):
        sb.load_reference(sb.attach(timm.create_model("cifar_resnet20")), tmp_path / "reference.pth")
