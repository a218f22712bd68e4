import warnings

import pytest
import timm
import torch
from torch import nn

import sidebranch as sb
from sidebranch.zoo import block_branch

NETWORKS = {
    "cifar_resnet32": (3, 32, 32),
    "cifar_resnet110": (3, 32, 32),
    "wrn_16_8": (3, 32, 32),
    "densenet_40_12": (3, 32, 32),
    "cifar_mobilenet": (3, 32, 32),
    "reid_mobilenet": (3, 64, 32),
    "resnet18": (3, 64, 64),
    "resnet50": (3, 64, 64),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_published_branches_keep_the_rules(name):
    net = sb.attach(timm.create_model(name, num_classes=5))
    for check in sb.check_branches(net, NETWORKS[name]):
        assert check.broken == ()


def test_a_report_says_what_was_measured():
    net = sb.attach(timm.create_model("cifar_resnet32", num_classes=5))
    near, far = sb.check_branches(net, (3, 32, 32))
    assert (near.name, near.at, far.name, far.at) == ("b1", "layer2", "b2", "layer1")
    assert near.branch.blocks == near.main.blocks == {"BasicBlock"}
    assert (near.branch.downsamplings, near.main.downsamplings) == (1, 1)
    assert (far.branch.downsamplings, far.main.downsamplings) == (2, 2)
    assert (near.branch.width, near.main.width) == (128, 64)
    assert (far.branch.depth, far.main.depth) == (16, 20)


def test_the_published_bc_densenet_breaks_rule_3_itself():
    net = sb.attach(timm.create_model("densenet_bc_100_12", num_classes=5))
    near, far = sb.check_branches(net, (3, 32, 32))
    assert near.broken == ()
    assert len(far.broken) == 1
    assert far.broken[0].startswith("rule 3: b2 has")


def test_checking_leaves_the_network_as_it_was():
    net = sb.attach(timm.create_model("cifar_resnet20", num_classes=5)).train()
    net.backbone.layer1.eval()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    sb.check_branches(net, (3, 32, 32))
    assert net.training
    assert not net.backbone.layer1.training
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert not any(each._forward_hooks for each in net.branches.modules())


def broken(branch, name="cifar_resnet20"):
    backbone = timm.create_model(name, num_classes=5)
    with pytest.warns(UserWarning, match="rules of a branch") as warned:
        sb.attach(backbone, [branch(backbone)])
    assert len(warned) == 1
    return str(warned[0].message)


def test_attach_warns_once_of_every_rule_that_is_broken():
    def flat(_):
        body = nn.Sequential(
            nn.Conv2d(32, 64, 3, 1, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 5)
        )
        return sb.SideBranch("b1", "layer2", body)

    message = broken(flat)
    assert "rule 1: b1 is made of 3x3 convolutions, main's tail of BasicBlock" in message
    assert "rule 2: b1 down-samples 0 times, main's tail 1" in message
    assert "rule 3: b1, nearest the top, has 64 channels, main's tail 64" in message


@pytest.mark.parametrize("convolution", [False, True])
@pytest.mark.parametrize(("name", "at", "channels"), [("cifar_resnet20", "layer1", 16), ("resnet18", "layer3", 256)])
def test_pooled_heads_work_on_any_fork_and_break_the_rules(name, at, channels, convolution):
    def head(_):
        return sb.pooled_head("b1", at, channels, 5, convolution=convolution, hidden=32)

    message = broken(head, name)
    assert "rule 1" in message
    assert "rule 2" in message
    backbone = timm.create_model(name, num_classes=5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = sb.attach(backbone, [head(backbone)])
    linear = [each for each in net.branches["b1"] if isinstance(each, nn.Linear)]
    assert len(linear) == 2
    assert any(isinstance(each, nn.Conv2d) for each in net.branches["b1"]) is convolution
    sb.dhm()(net(torch.randn(2, 3, 32, 32)), torch.tensor([0, 1])).total.backward()
    assert all(each.grad is not None for each in net.parameters())


def test_a_pooled_head_of_nothing_is_refused():
    with pytest.raises(sb.UserError, match="at least 1"):
        sb.pooled_head("b1", "layer1", 0, 5)


@pytest.mark.parametrize("kind", ["narrow", "shallow"])
@pytest.mark.parametrize(
    ("name", "forks"),
    [
        ("cifar_resnet32", ("layer1", "layer2")),
        ("wrn_16_8", ("layer1", "layer2")),
        ("densenet_40_12", ("transition1", "transition2")),
        ("cifar_mobilenet", ("layer2", "layer4")),
        ("resnet18", ("layer1", "layer3")),
    ],
)
def test_narrow_and_shallow_blocks_at_any_fork(name, forks, kind):
    for at in forks:
        backbone = timm.create_model(name, num_classes=5)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            net = sb.attach(backbone, [block_branch(backbone, "b1", at, kind)])
        (check,) = sb.check_branches(net, (3, 32, 32))
        assert check.branch.blocks <= check.main.blocks
        assert check.branch.downsamplings == check.main.downsamplings
        if kind == "narrow":
            assert check.branch.depth == check.main.depth
            assert check.branch.width * 2 == check.main.width or name == "densenet_40_12"
        else:
            assert check.branch.depth < check.main.depth
        out = net(torch.randn(2, 3, 32, 32))
        sb.dks()(out, torch.tensor([0, 1])).total.backward()
        assert all(each.grad is not None for each in net.branches.parameters())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: block_branch(timm.create_model("cifar_resnet20"), "b1", "layer3", "narrow"), "'layer3' is no fork"),
        (lambda: block_branch(timm.create_model("cifar_resnet20"), "b1", "layer1", "thin"), "narrow, shallow"),
        (
            lambda: block_branch(timm.create_model("vgg11"), "b1", "features.3", "narrow"),
            "VGG is none of them",
        ),
    ],
)
def test_block_branches_that_cannot_be_built(call, message):
    with pytest.raises(sb.UserError, match=message):
        call()
