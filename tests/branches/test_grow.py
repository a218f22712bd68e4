"""Branches grown from a backbone's own tail."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from growing import WHOLE, Staged, little
from torch import nn

import sidebranch as sb
from sidebranch.branches import grow
from sidebranch.branches.trace import trace

# About one of every kind of structure; benchmarks/coverage.py tries all families.
QUICK = {
    "resnet18": 32,
    "resnetv2_50": 64,
    "regnetx_002": 64,
    "densenet121": 64,
    "efficientnet_b0": 64,
    "mobilenetv3_small_050": 64,
    "convnext_atto": 64,
    "repvgg_a0": 64,
    "inception_v3": 96,
    "eca_nfnet_l0": 64,
    "mobilevitv2_050": 64,
    "levit_128s": 224,
    "swin_tiny_patch4_window7_224": 224,
    "vit_tiny_patch16_224": 224,
}


@pytest.mark.parametrize(("name", "size"), QUICK.items())
def test_a_family_grows_two_branches_and_trains(name, size):
    backbone = little(name)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    grown = grow(backbone, input_size=(3, size, size))
    net = sb.BranchedModel(backbone, [each.branch for each in grown])
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        assert torch.equal(net.eval()(images).main, backbone(images))
        assert [tuple(each.shape) for each in net(images[:1]).logits] == [(1, 7)] * 3
    loss = sb.dhm()(net.train()(images), torch.tensor([0, 6])).total
    loss.backward()
    assert loss.isfinite()
    assert all(parameter.grad is not None for parameter in net.branches.parameters())
    assert next(backbone.parameters()).grad is not None
    released = net.release()
    assert released is backbone
    assert before.keys() == backbone.state_dict().keys()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in backbone.modules())


@pytest.mark.parametrize(("name", "size"), QUICK.items())
def test_a_whole_copy_of_the_tail_gives_the_backbones_logits_bit_for_bit(name, size):
    backbone = little(name).eval()
    copies = grow(backbone, growth=WHOLE, input_size=(3, size, size))
    net = sb.BranchedModel(backbone, [each.branch for each in copies]).eval()
    with torch.no_grad():
        out = net(torch.randn(3, 3, size, size))
    assert all(torch.equal(out.main, logits) for logits in out.logits)


@pytest.mark.parametrize("name", ["resnet34", "resnet50", "resnet101", "resnet152"])
def test_what_grows_on_the_papers_resnets_is_what_they_published(name):
    with torch.device("meta"):
        auto = sb.attach(timm.create_model(name), "auto")
        paper = sb.attach(timm.create_model(name), "paper")
    assert auto.forks == paper.forks
    for branch in ("b1", "b2"):
        shapes = [[tuple(each.shape) for each in net.branches[branch].state_dict().values()] for net in (auto, paper)]
        assert sorted(shapes[0]) == sorted(shapes[1])


def test_half_of_the_blocks_rounded_up_stay():
    b1, b2 = grow(little("resnet50"))
    assert b1.blocks == (3, 3)
    assert b2.blocks == (5, 9)
    assert grow(little("resnet50"), growth=sb.Growth(keep=1 / 3))[1].blocks == (3, 9)  # 2 of 6, and 1 of 3
    assert not any(path.startswith("layer3.3") for path in b2.branch.body.state_dict())


def test_the_nearest_is_wider_and_the_shared_stages_are_not_copied():
    b1, b2 = grow(little("resnet18"), growth=sb.Growth(width=1.5))
    assert b1.branch.body.get_submodule("layer4.1.conv2").weight.shape == (768, 768, 3, 3)
    assert b1.branch.body.get_submodule("layer4.0.conv1").weight.shape == (768, 256, 3, 3)
    assert b1.branch.body.get_submodule("fc").weight.shape == (7, 768)
    assert not any(path.split(".")[0] in ("conv1", "layer1", "layer2") for path in b2.branch.body.state_dict())


def test_a_branch_that_pools_sees_averaged_features():
    plain, pooled = (grow(little("resnet18"), growth=sb.Growth(pool=pool))[0].branch.body.eval() for pool in (1, 2))
    pooled.load_state_dict(plain.state_dict())
    features = torch.randn(2, 256, 5, 5)
    averaged = torch.nn.functional.avg_pool2d(features, 2, ceil_mode=True)
    assert averaged.shape[-1] == 3
    torch.testing.assert_close(pooled(features), plain(averaged))


def test_depthwise_and_grouped_convolutions_are_widened_too():
    mobile = grow(little("mobilenetv2_050"))[0]
    assert mobile.width == 2
    depthwise = mobile.branch.body.get_submodule("blocks.5.0.conv_dw")
    assert depthwise.groups == depthwise.in_channels == depthwise.out_channels
    grouped = grow(little("resnext50_32x4d"))[0].branch.body.get_submodule("layer4.1.conv2")
    assert (grouped.groups, grouped.in_channels) == (32, 2048)


def test_a_convolution_that_gives_the_logits_before_they_are_pooled_is_not_widened():
    b1 = grow(torchvision.models.squeezenet1_1(num_classes=4))[0]
    assert b1.width == 2
    assert b1.branch.body(torch.randn(1, 256, 13, 13)).shape == (1, 4)


def test_what_cannot_be_widened_says_which_module_stops_it_and_goes_on():
    b1, _ = grow(little("eca_nfnet_l0"))
    assert b1.width == 1
    assert "b1 is as wide as main: it cannot be widened at 'stages.3.0" in b1.notes[0]
    assert "ScaledStdConv2d" in b1.notes[0]
    with pytest.warns(UserWarning, match="it cannot be widened at 'stages.3.0"):
        sb.attach(little("eca_nfnet_l0"))


def test_the_same_seed_gives_the_same_branches():
    def branches(seed):
        torch.manual_seed(1)
        backbone = little("convnext_atto")
        torch.manual_seed(seed)
        return sb.attach(backbone, growth=sb.Growth(keep=0.5)).branches.state_dict()

    first, again, other = branches(5), branches(5), branches(6)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["b1.stages.3.blocks.0.conv_dw.weight"], other["b1.stages.3.blocks.0.conv_dw.weight"])


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "convnext_atto", "vit_tiny_patch16_224"])
def test_fresh_weights_are_of_the_backbones_kind(name):
    backbone = little(name)
    _, b2 = grow(backbone)
    for path, new in b2.branch.body.named_parameters():
        old, new = backbone.get_parameter(path).detach(), new.detach()
        if bool((old == old.flatten()[0]).all()):
            assert torch.equal(old, new), path
        else:
            assert not torch.equal(old, new), path
            if old.numel() > 2000:
                assert float(new.std()) == pytest.approx(float(old.std()), rel=0.1), path
                assert float(new.mean()) == pytest.approx(float(old.mean()), abs=0.1 * float(old.std())), path


def test_wider_weights_follow_the_fan_if_the_backbones_did():
    resnet = little("resnet18")  # He's, by the fan out
    wide = grow(resnet)[0].branch.body.get_submodule("layer4.1.conv2").weight
    assert float(wide.detach().std()) == pytest.approx((2 / (9 * 1024)) ** 0.5, rel=0.02)
    convnext = little("convnext_atto")  # 0.02, whatever the fan
    wide = grow(convnext)[0].branch.body.get_submodule("stages.3.blocks.0.mlp.fc1").weight
    assert float(wide.detach().std()) == pytest.approx(0.02, rel=0.05)


def test_branches_of_a_trained_backbone_do_not_inherit_its_norms():
    backbone = little("resnet18")
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.1, 0.9)
            module.running_mean.fill_(3.0)
    body = grow(backbone)[1].branch.body
    norm = body.get_submodule("layer4.0.bn1")
    assert torch.equal(norm.weight, torch.ones_like(norm.weight))
    assert torch.equal(norm.running_mean, torch.zeros_like(norm.running_mean))
    copied = grow(backbone, growth=WHOLE)[1].branch.body.get_submodule("layer4.0.bn1")
    assert torch.equal(copied.running_mean, torch.full_like(copied.running_mean, 3.0))


def test_forks_may_be_given_in_any_order():
    b1, b2, b3 = grow(little("resnet18"), at=["layer1", "layer3.0", "layer2"])
    assert [each.branch.at for each in (b1, b2, b3)] == ["layer3.0", "layer2", "layer1"]
    assert [each.branch.name for each in (b1, b2, b3)] == ["b1", "b2", "b3"]
    net = sb.attach(little("resnet18"), at=["layer1", "layer3"])
    assert net.forks == {"b1": "layer3", "b2": "layer1"}


def test_more_branches_fork_after_earlier_stages():
    assert [each.branch.at for each in grow(little("resnet18"), count=3)] == ["layer3", "layer2", "layer1"]


def test_transformers_fork_after_three_quarters_and_half_of_their_blocks():
    assert [each.branch.at for each in grow(little("vit_tiny_patch16_224"))] == ["blocks.8", "blocks.5"]


def test_channels_and_sizes_follow_the_backbone():
    backbone = timm.create_model("resnet18", num_classes=3, in_chans=1)
    net = sb.attach(backbone)
    assert net(torch.randn(2, 1, 40, 56)).logits[1].shape == (2, 3)
    small = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=3)
    with pytest.warns(UserWarning, match="widened"):
        net = sb.attach(small, input_size=(3, 64, 64))
    assert net(torch.randn(2, 3, 64, 64)).logits[2].shape == (2, 3)
    with pytest.warns(UserWarning, match="widened"):
        net = sb.attach(timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=3))
    assert net(torch.randn(2, 3, 64, 64)).logits[2].shape == (2, 3)


def test_a_torchvision_model_grows_without_being_told_a_size():
    net = sb.attach(torchvision.models.shufflenet_v2_x0_5(num_classes=4))
    assert net(torch.randn(2, 3, 64, 64)).names == ("main", "b1", "b2")


def test_branches_have_the_backbones_device_dtype_and_mode():
    backbone = little("resnet18").double().eval()
    net = sb.attach(backbone, "auto")
    assert {each.dtype for each in net.branches.parameters()} == {torch.float64}
    assert not any(each.training for each in net.branches["b1"].modules())
    with torch.device("meta"):
        net = sb.attach(timm.create_model("convnext_base"))
    assert {each.device.type for each in net.parameters()} == {"meta"}


def test_a_grown_model_is_copied_and_scripted_about_like_any_other():
    net = sb.attach(little("resnet18"), "auto").eval()
    twin = copy.deepcopy(net)
    twin.load_state_dict(net.state_dict())
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(net(images)["b1"], twin(images)["b1"])


def test_functional_dropout_follows_the_mode_of_the_branch():
    def run(net, x):
        return net.head(F.dropout(net.late(net.early(x)), 0.5, net.training))

    backbone = Staged(run).train()
    body = grow(backbone, at=["block1"], growth=WHOLE, input_size=(3, 8, 8))[0].branch.body
    features = torch.randn(4, 6, 4, 4)
    body.train()
    assert not torch.equal(body(features), body(features))
    body.eval()
    assert torch.equal(body(features), body(features))


def test_sizes_read_before_the_fork_do_not_fix_the_batch():
    def run(net, x):
        count, _, height, _ = x.shape
        features = net.late(net.early(x))
        return net.fc(features.reshape(count, 8, (height // 4) ** 2).mean(2))

    backbone = Staged(run).eval()
    (b1,) = grow(backbone, at=["block1"], growth=WHOLE, input_size=(3, 8, 8))
    net = sb.BranchedModel(backbone, [b1.branch]).eval()
    for count in (1, 2, 5):
        out = net(torch.randn(count, 3, 8, 8))
        assert torch.equal(out.main, out["b1"])


def test_branches_fork_after_in_place_activations():
    """As VGG is made: plain convolutions, each followed by an activation that changes its output."""

    def stage(inputs, outputs):
        return [nn.Conv2d(inputs, outputs, 3, 1, 1), nn.ReLU(inplace=True), nn.MaxPool2d(2)]

    layers = [*stage(3, 4), *stage(4, 6), *stage(6, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)]
    with pytest.warns(UserWarning, match="b2 is as deep as main: no block that follows '1' repeats"):
        net = sb.attach(nn.Sequential(*layers), input_size=(3, 32, 32))
    assert net.forks == {"b1": "4", "b2": "1"}
    assert net(torch.randn(2, 3, 32, 32)).logits[2].shape == (2, 5)


def test_shape_dependent_control_flow_is_followed():
    def run(net, x):
        x = net.early(x)
        for _ in range(len(x.shape) - 3):
            x = net.late(x) if x.shape[-1] > 2 else x
        return net.head(x)

    assert grow(Staged(run), at=["block1"], input_size=(3, 8, 8))[0].branch.at == "block1"


def goes_past(net, x):
    early = net.early(x)
    return net.head(net.late(early) + net.stem(x).mean())


def runs_twice(net, x):
    return net.head(net.late(net.block1(net.early(x))))


def changes_in_place(net, x):
    early = net.early(x)
    early += 1
    return net.head(net.late(early))


def gives_two(net, x):
    logits = net.head(net.late(net.early(x)))
    return (logits, logits) if net.training else logits


@pytest.mark.parametrize(
    ("run", "at", "message"),
    [
        (None, "blok1", "no fork at 'blok1', which is no module of the backbone; did you mean 'block1'"),
        (goes_past, "block1", "no fork at 'block1': a path from the images to the logits bypasses it"),
        (runs_twice, "block1", "no fork at 'block1': the forward pass runs it 2 times"),
        (changes_in_place, "block1", "no fork at 'block1': a later operation changes its output in place"),
        (gives_two, "block1", "Staged gives a tuple in training mode.*without auxiliary outputs"),
        (lambda net, x: net.late(net.early(x)), "block1", "not logits .N, K.; give it a classifier"),
        (lambda net, x: net.head(net.late(net.early(x))[:, :3]), "block1", "does not take images of 3x8x8"),
        (
            lambda net, x: net.head(net.late(net.early(x))) if x.mean() > 0 else None,
            "block1",
            "depends on values; give branches of your own",
        ),
    ],
)
def test_a_place_that_is_no_fork_is_refused_with_its_reason(run, at, message):
    with pytest.raises(sb.UserError, match=message):
        grow(Staged(run), at=[at], input_size=(3, 8, 8))


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda: sb.attach(little("tnt_s_patch16_224")), "TNT has no 2 forks"),
        (lambda: sb.attach(little("resnet18"), "auto", count=0), "number of branches is 0"),
        (lambda: sb.attach(little("resnet18"), "paper", at=["layer3"]), "`at` and `growth` need branches='auto'"),
        (lambda: sb.attach(little("resnet18"), at=["layer3", "layer3"]), "two branches fork at one place"),
        (lambda: sb.attach(little("vgg11"), "paper"), "branches='auto' grows some"),
        (lambda: sb.attach(torchvision.models.googlenet(init_weights=False)), "aux_logits=False"),
        (lambda: sb.Growth(keep=0), "keep 0 of the blocks"),
        (lambda: sb.Growth(width=99), "width is 99"),
        (lambda: grow(little("resnet18"), kind="narrow", growth=sb.Growth(pool=2)), "leave growth out"),
        (lambda: sb.Growth(pool=0), "squares of side 0"),
        (
            lambda: grow(little("vit_tiny_patch16_224"), growth=sb.Growth(pool=2)),
            "branches that pool need feature maps",
        ),
        (lambda: sb.Growth(init="copied"), "choose from: fresh, copy"),  # pyright: ignore[reportArgumentType]
        (lambda: sb.Growth(init="copy"), "give width 1"),
        (lambda: sb.attach(little("vit_tiny_patch16_224"), input_size=(3, 64, 64)), "does not take images of 3x64x64"),
    ],
)
def test_bad_wishes_get_one_clear_line(attempt, message):
    with pytest.raises(sb.UserError, match=message) as raised:
        attempt()
    assert "\n" not in str(raised.value)


def test_the_trace_is_on_the_meta_device_and_leaves_the_backbone_alone():
    backbone = little("resnet18").train()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    traced = trace(backbone, (3, 64, 64))
    assert {each.device.type for each in traced.root.parameters()} == {"meta"}
    assert type(backbone).forward is not type(traced.root).forward
    assert backbone.training
    assert all(torch.equal(before[key], value) for key, value in backbone.state_dict().items())
