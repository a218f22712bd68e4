"""Branches by name and kind, and one of them on its own."""

import pytest
import timm
import torch

import sidebranch as sb

IMAGES = torch.randn(3, 3, 32, 32)


@pytest.mark.parametrize("kind", ["narrow", "shallow", "shallow_wide", "ap_2fc", "ap_conv_2fc"])
@pytest.mark.parametrize(
    ("name", "branches"), [("cifar_resnet20", "paper"), ("cifar_resnet20", "auto"), ("resnet18", "paper")]
)
def test_branches_of_every_kind_are_made_at_the_same_forks(name, branches, kind):
    plain = sb.attach(timm.create_model(name, num_classes=7), branches)
    net = sb.attach(timm.create_model(name, num_classes=7), branches, kind=kind)
    assert net.forks == plain.forks
    outputs = net(IMAGES)
    assert [each.shape for each in outputs.logits] == [(3, 7)] * 3
    sizes = [sum(each.numel() for each in body.parameters()) for body in net.branches.values()]
    assert sizes != [sum(each.numel() for each in body.parameters()) for body in plain.branches.values()]


def test_thinned_branches_are_alike_whether_published_or_grown():
    for kind in ("narrow", "shallow", "shallow_wide"):
        nets = [sb.attach(timm.create_model("cifar_resnet32"), kind=kind, branches=each) for each in ("paper", "auto")]
        sizes = [[sum(each.numel() for each in body.parameters()) for body in net.branches.values()] for net in nets]
        assert sizes[0] == sizes[1], kind


@pytest.mark.parametrize(("branches", "use"), [("paper", ["b2"]), ("auto", ["b2"]), ("paper", ["b1", "b3"])])
def test_branches_by_name(branches, use):
    net = sb.attach(timm.create_model("resnet18", num_classes=7), branches, use=use)
    assert net.names == ("main", *use)
    assert net(IMAGES).names == ("main", *use)
    everything = sb.attach(timm.create_model("resnet18", num_classes=7), branches, count=3 if "b3" in use else 2)
    assert all(net.forks[name] == everything.forks[name] for name in use)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"use": ["b4"]}, "no branch 'b4' was published for this network; did you mean"),
        ({"use": ["main"], "branches": "auto"}, "no branch can be called 'main'"),
        ({"use": "b1"}, r"give a list of names, such as \['b1'\]"),
        ({"use": ["b3"], "at": ["layer2", "layer1"]}, "there is no branch b3: branches fork at 2 places"),
        ({"kind": "thin"}, "the kind of branches is 'thin'; choose from: blocks, narrow"),
    ],
)
def test_branches_that_there_are_not(arguments, message):
    with pytest.raises(sb.UserError, match=message):
        sb.attach(timm.create_model("resnet18"), **arguments)


@pytest.mark.parametrize("name", ["cifar_resnet20", "wrn_16_8", "densenet_40_12", "cifar_mobilenet", "resnet18"])
@pytest.mark.parametrize("branch", ["b1", "b2"])
def test_one_classifier_alone_gives_its_logits(name, branch):
    images = torch.randn(2, 3, 16, 16)
    net = sb.attach(timm.create_model(name, num_classes=5)).eval()
    alone = sb.extract(net, branch, (3, 16, 16))
    with torch.no_grad():
        torch.testing.assert_close(alone(images), net(images)[branch])
    body = sum(each.numel() for each in net.branches[branch].parameters())
    stem = sum(each.numel() for each in alone.parameters()) - body
    last = net.forks[branch]
    before = [path for path, _ in net.backbone.named_children()]
    kept = before[: before.index(last) + 1]
    assert stem == sum(each.numel() for path in kept for each in net.backbone.get_submodule(path).parameters())
    assert not alone.training
    assert net(images).names == ("main", "b1", "b2")


@pytest.mark.parametrize(
    "name", ["mobilenetv3_small_050", "convnext_atto", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"]
)
@pytest.mark.filterwarnings("ignore:b1 is as wide as main")
def test_one_classifier_of_other_backbones(name):
    net = sb.attach(timm.create_model(name, num_classes=5)).eval()
    images = torch.randn(1, 3, 224, 224)
    alone = sb.extract(net, "b2")
    with torch.no_grad():
        torch.testing.assert_close(alone(images), net(images)["b2"], rtol=1e-4, atol=1e-5)
    assert sum(each.numel() for each in alone.parameters()) < sum(each.numel() for each in net.parameters())
    assert sb.extract(net, "main") is not net.backbone
    with pytest.raises(sb.UserError, match="no classifier 'b3'"):
        sb.extract(net, "b3")
