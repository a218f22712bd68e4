import copy
import os

import pytest
import timm
import torch
from timm.utils.model_ema import ModelEmaV3
from torch import nn
from torch.utils.checkpoint import checkpoint

import sidebranch as sb
from forked import run_ranks
from networks import Little, little_branches


def gradients(net):
    return {name: each.grad.clone() for name, each in net.named_parameters() if each.grad is not None}


def step(net, images, labels, **forward):
    net.zero_grad(set_to_none=True)
    loss = sb.dhm()(net(images, **forward), labels)
    loss.total.backward()
    return gradients(net)


def by_hand(net, images):
    """The logits without taps: stage by stage."""
    first = net.backbone.stage1(images)
    second = net.backbone.stage2(first)
    main = net.backbone.fc(net.backbone.stage3(second).mean((2, 3)))
    return sb.Outputs(("main", "b1", "b2"), (main, net.branches["b1"](second), net.branches["b2"](first)))


def test_the_backbone_is_the_module_that_came_in():
    backbone = Little()
    keys = list(backbone.state_dict())
    net = sb.attach(backbone, little_branches())
    assert net.backbone is backbone
    assert list(net.backbone.state_dict()) == keys
    assert list(net.branches) == ["b1", "b2"]
    assert net.names == ("main", "b1", "b2")


def test_main_is_bit_identical_to_the_backbone_and_to_a_fresh_model_with_its_weights(tmp_path):
    net = sb.attach(timm.create_model("cifar_resnet20", num_classes=7)).eval()
    images = torch.randn(3, 3, 32, 32)
    fresh = timm.create_model("cifar_resnet20", num_classes=7).eval()
    fresh.load_state_dict(net.backbone.state_dict())
    with torch.no_grad():
        main = net(images).main
        assert torch.equal(main, net.backbone(images))
        assert torch.equal(main, fresh(images))


def test_outputs_are_the_same_type_in_training_and_evaluation(little_net, images):
    for mode in (True, False):
        out = little_net.train(mode)(images)
        assert out.names == ("main", "b1", "b2")
        assert out.main is out.logits[0]
        assert out["b2"] is out.logits[2]
        assert all(each.shape == (6, 10) for each in out.logits)


def test_logits_and_gradients_equal_those_without_taps(little_net, images, labels):
    little_net.eval()
    tapped = step(little_net, images, labels)
    little_net.zero_grad(set_to_none=True)
    sb.dhm()(by_hand(little_net, images), labels).total.backward()
    for name, grad in gradients(little_net).items():
        torch.testing.assert_close(tapped[name], grad, rtol=1e-6, atol=1e-7)
    assert len(tapped) == len(list(little_net.parameters()))


def test_a_branch_left_out_is_not_computed(little_net, images, labels):
    calls = []
    little_net.branches["b1"].register_forward_hook(lambda *_: calls.append("b1"))
    out = little_net(images, live=("main", "b2"))
    assert out.names == ("main", "b2")
    assert out.network == ("main", "b1", "b2")
    assert calls == []
    grads = step(little_net, images, labels, live=("main", "b2"))
    assert not any(name.startswith("branches.b1") for name in grads)
    assert little_net(images, live=()).names == ("main",)


def test_nothing_is_held_after_the_pass(little_net, images):
    little_net(images)
    assert all(tap.feature is None and not tap.is_open for tap in little_net._taps.values())
    little_net.backbone(images)
    assert all(tap.feature is None for tap in little_net._taps.values())
    with pytest.raises(RuntimeError):
        little_net(torch.randn(6, 2, 8, 8))
    assert all(tap.feature is None and not tap.is_open for tap in little_net._taps.values())


def test_two_branches_may_fork_at_one_place(images):
    near = little_branches()[0]
    twin = sb.SideBranch("b2", near.at, copy.deepcopy(near.body))
    out = sb.attach(Little(), [near, twin])(images)
    assert torch.equal(out["b1"], out["b2"])


def test_deepcopy_taps_its_own_backbone(little_net, images, labels):
    twin = copy.deepcopy(little_net)
    with torch.no_grad():
        for each in twin.backbone.parameters():
            each.zero_()
    twin.eval(), little_net.eval()
    assert not torch.equal(twin(images)["b1"], little_net(images)["b1"])
    fresh = copy.deepcopy(little_net)
    for name, grad in step(fresh, images, labels).items():
        torch.testing.assert_close(grad, step(little_net, images, labels)[name])


def test_state_dict_survives_a_file(little_net, images, tmp_path):
    torch.save(little_net.state_dict(), tmp_path / "net.pth")
    twin = sb.attach(Little(), little_branches())
    twin.load_state_dict(torch.load(tmp_path / "net.pth", weights_only=True))
    for mine, its in zip(little_net.eval()(images).logits, twin.eval()(images).logits, strict=True):
        assert torch.equal(mine, its)


def test_timm_s_ema_averages_and_runs(little_net, images, labels):
    ema = ModelEmaV3(little_net, decay=0.5)
    before = little_net.branches["b1"][0].weight.detach().clone()
    step(little_net, images, labels)
    torch.optim.SGD(little_net.parameters(), 0.1).step()
    ema.update(little_net)
    after = little_net.branches["b1"][0].weight.detach()
    torch.testing.assert_close(ema.module.branches["b1"][0].weight, (before + after) / 2)
    assert ema.module(images).names == little_net.names


@pytest.mark.parametrize("live", [None, ("main", "b1")])
def test_compiled_branches_are_reached_by_the_features(little_net, images, labels, live):
    little_net.eval()
    expected = step(little_net, images, labels, live=live)
    torch._dynamo.reset()
    compiled = torch.compile(little_net, fullgraph=True, backend="aot_eager")
    compiled.zero_grad(set_to_none=True)
    for _ in range(2):
        out = compiled(images, live=live)
    sb.dhm()(out, labels).total.backward()
    found = gradients(little_net)
    assert set(found) == set(expected)
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-4, atol=1e-6)
    stem = found["backbone.stage1.0.weight"].clone()
    little_net.zero_grad(set_to_none=True)
    compiled(images, live=live).main.sum().backward()
    assert not torch.allclose(little_net.backbone.stage1[0].weight.grad, stem)


def test_checkpointing_a_stage_keeps_the_gradients(images, labels):
    class Checkpointed(Little):
        def forward(self, images):
            first = self.stage1(images)
            second = checkpoint(self.stage2, first, use_reentrant=False)
            return self.fc(checkpoint(self.stage3, second, use_reentrant=False).mean((2, 3)))

    plain = sb.attach(Little(), little_branches()).eval()
    saving = sb.attach(Checkpointed(), little_branches()).eval()
    saving.load_state_dict(plain.state_dict())
    expected = step(plain, images, labels)
    for name, grad in step(saving, images, labels).items():
        torch.testing.assert_close(grad, expected[name])


def test_release_gives_the_backbone_back_as_it_came(little_net, images):
    kept = []
    handle = little_net.backbone.stage2.register_forward_hook(lambda *_: kept.append(1))
    backbone = little_net.release()
    assert all(not each._forward_hooks for name, each in backbone.named_modules() if name != "stage2")
    assert len(backbone.stage2._forward_hooks) == 1
    handle.remove()
    torch.save(backbone, os.devnull)


def test_an_in_place_change_after_the_fork_is_refused(images):
    class InPlace(Little):
        def forward(self, images):
            second = self.stage2(self.stage1(images))
            return self.fc(self.stage3(torch.relu_(second.sub_(0.5))).mean((2, 3)))

    net = sb.attach(InPlace(), little_branches())
    with pytest.raises(sb.UserError, match="in-place operation after 'stage2'"):
        net(images)


def test_a_module_that_runs_twice_is_no_fork(images):
    class Twice(Little):
        def forward(self, images):
            self.stage1(images)
            return super().forward(images)

    with pytest.raises(sb.UserError, match="runs 'stage1' more than once"):
        sb.attach(Twice(), little_branches())(images)


def test_a_module_that_does_not_run_is_no_fork(images):
    backbone = Little()
    backbone.spare = nn.Identity()
    net = sb.attach(backbone, [sb.SideBranch("b1", "spare", nn.Identity())])
    with pytest.raises(sb.UserError, match="does not run the module 'spare'"):
        net(images)


class Paired(nn.Module):
    def forward(self, x):
        return x, x


def test_outputs_that_are_no_tensors_are_refused(images):
    backbone = Little()
    backbone.stage2.append(Paired())
    with pytest.raises(sb.UserError, match="'stage2' gives a tuple"):
        sb.attach(backbone, little_branches()[:1])(images)
    with pytest.raises(sb.UserError, match="backbone gives a tuple"):
        sb.attach(Paired(), [])(images)


@pytest.mark.parametrize(
    ("branches", "message"),
    [
        ([sb.SideBranch("b1", "stge2", nn.Identity())], "did you mean 'stage2'"),
        ([sb.SideBranch("main", "stage2", nn.Identity())], "cannot be called 'main'"),
        ([sb.SideBranch("b1", "stage2", nn.Identity())] * 2, "cannot be called 'b1'"),
        ([sb.SideBranch("b.1", "stage2", nn.Identity())], "cannot be called 'b.1'"),
        ("papers", "give 'paper', 'auto' or a list"),
        ("paper", "no side branches were published for Little"),
    ],
)
def test_branches_that_cannot_be_attached(branches, message):
    with pytest.raises(sb.UserError, match=message):
        sb.attach(Little(), branches)


def test_names_that_are_not_there(little_net, images):
    with pytest.raises(sb.UserError, match="did you mean 'b2' or 'b1'"):
        little_net(images, live=("b3",))
    with pytest.raises(sb.UserError, match=r"such as \('main', 'b1'\)"):
        little_net(images, live="b1")
    with pytest.raises(sb.UserError, match="no classifier 'b9'"):
        little_net(images)["b9"]


def test_inference_mode_works_and_leaves_training_alone(little_net, images, labels):
    with torch.inference_mode():
        out = little_net(images)
        sb.dks(weight=0.123)(out, labels)
    loss = sb.dks(weight=0.123)(little_net(images), labels)
    loss.total.backward()


def compile_together():
    net, images, labels = sb.attach(Little(), little_branches()).eval(), torch.randn(4, 1, 8, 8), torch.arange(4)
    said = {"average": torch.randn(4, 10)}
    taught = sb.Objective([1, 1, 1], [[0, 1, 1]] * 5, teachers=["average", "ensemble"], divergence="decoupled")
    for objective, given in ((sb.dhm(), {}), (taught, said)):

        def total(images, labels, objective=objective, given=given):
            return objective(net(images), labels, taught=given).total

        compiled = torch.compile(total, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(images, labels), total(images, labels))


def test_network_and_loss_compile_together(tmp_path):
    """In another process: the checks of shapes that the tests put around functions do not compile."""
    assert run_ranks(1, tmp_path, compile_together) == ([0], [""])


def test_published_branches_take_the_backbone_s_device_and_dtype():
    double = sb.attach(timm.create_model("cifar_resnet20").double())
    assert double(torch.randn(2, 3, 8, 8, dtype=torch.float64))["b2"].dtype == torch.float64
    meta = sb.attach(timm.create_model("cifar_resnet20").to("meta"))
    assert {each.device.type for each in meta.parameters()} == {"meta"}


def test_outputs_unpack_by_place_and_by_name(images):
    outputs = sb.attach(Little(), little_branches())(images)
    main, b1, b2 = outputs
    assert main is outputs["main"]
    assert b1 is outputs["b1"]
    assert b2 is outputs[2]


def test_a_released_network_says_so(images):
    net = sb.attach(Little(), little_branches())
    net.release()
    with pytest.raises(sb.UserError, match="this network was released"):
        net(images)


@pytest.mark.parametrize("training", [True, False])
def test_the_backbones_mode_is_the_networks(training):
    net = sb.attach(Little().train(training), little_branches())
    assert {each.training for each in net.modules()} == {training}


def test_timms_optimisers_spare_the_backbones_parameters():
    backbone = timm.create_model("vit_tiny_patch16_224", num_classes=3, depth=2, img_size=32)
    net = sb.BranchedModel(backbone)
    assert net.no_weight_decay() == {f"backbone.{name}" for name in backbone.no_weight_decay()}
    assert "backbone.pos_embed" in net.no_weight_decay()
    assert sb.BranchedModel(Little()).no_weight_decay() == set()


@pytest.mark.parametrize(
    ("backbone", "branches", "message"),
    [
        (nn.DataParallel(Little()), None, "attach to the plain network first"),
        (Little(), [nn.Identity()], "your own branches are a list"),
        (Little(), {"b1": nn.Identity()}, "your own branches are a list"),
        (Little(), sb.SideBranch("b1", "stage1", nn.Identity()), "your own branches are a list"),
    ],
)
def test_what_cannot_be_attached_is_said_in_a_line(backbone, branches, message):
    with pytest.raises(sb.UserError, match=message):
        sb.attach(backbone, branches)


def test_a_backbone_without_a_classifier_is_refused():
    with pytest.raises(sb.UserError, match="no classifier .num_classes is 0"):
        sb.attach(timm.create_model("resnet10t", num_classes=0))
