"""Roots that move over the blocks of a stage (DHM section 3.2)."""

import pytest
import timm
import torch
from torch import nn

import sidebranch as sb
from networks import Little, little_branches


class Deep(Little):
    """`Little`, its first stage two blocks of one shape."""

    def __init__(self):
        super().__init__()
        self.again = nn.Sequential(nn.Conv2d(4, 4, 3, 1, 1), nn.BatchNorm2d(4), nn.ReLU())

    def forward(self, images):
        return self.fc(self.stage3(self.stage2(self.again(self.stage1(images)))).mean((2, 3)))


@pytest.fixture
def net():
    near, far = little_branches()
    return sb.BranchedModel(Deep(), [near, sb.SideBranch("b2", ["stage1", "again"], far.body)]).eval()


def test_a_branch_emerges_from_the_last_of_its_places_unless_told_otherwise(net, images):
    assert net.places == {"b1": ("stage2",), "b2": ("stage1", "again")}
    assert net.forks == {"b1": "stage2", "b2": "again"}
    seen = []
    net.branches["b2"].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    out, told = net(images), net(images, roots={"b2": "stage1"})
    first = net.backbone.stage1(images)
    assert torch.equal(seen[0], net.backbone.again(first))
    assert torch.equal(seen[1], first)
    assert torch.equal(out.main, told.main)
    assert torch.equal(out["b1"], told["b1"])
    assert not torch.equal(out["b2"], told["b2"])


def test_a_root_that_is_no_place_of_the_branch_is_refused(net, images):
    with pytest.raises(sb.UserError, match="'stage2' is no place of branch 'b2'"):
        net(images, roots={"b2": "stage2"})
    with pytest.raises(sb.UserError, match="'stage2' is no place of branch 'b3'"):
        net(images, roots={"b3": "stage2"})
    with pytest.raises(sb.UserError, match="'b1' forks nowhere"):
        sb.BranchedModel(Little(), [sb.SideBranch("b1", [], nn.Identity())])


def test_released_models_have_no_hooks_at_any_place(net):
    backbone = net.release()
    assert not any(each._forward_hooks for each in backbone.modules())


PLACES = {"b1": ("x", "y", "z"), "b2": ("u",)}


def test_roots_are_drawn_from_the_given_distribution():
    sampler = sb.MovingRoots({"b1": [0.2, 0.0, 0.8]}, per="step")
    drawn = [sampler(PLACES, seed=0, epoch=0, step=step) for step in range(2000)]
    assert all(each.keys() == {"b1"} for each in drawn)  # b2 has one place
    share = sum(each["b1"] == "x" for each in drawn) / len(drawn)
    assert share == pytest.approx(0.2, abs=0.03)
    assert not any(each["b1"] == "y" for each in drawn)
    even = [sb.MovingRoots(per="step")(PLACES, seed=0, epoch=0, step=step)["b1"] for step in range(3000)]
    assert [even.count(place) / 3000 for place in "xyz"] == pytest.approx([1 / 3] * 3, abs=0.03)


def test_roots_are_a_function_of_seed_epoch_and_step():
    sampler = sb.MovingRoots()
    assert len({sampler(PLACES, seed=1, epoch=3, step=step)["b1"] for step in range(50)}) == 1
    assert len({sampler(PLACES, seed=1, epoch=epoch, step=0)["b1"] for epoch in range(50)}) == 3
    assert sampler(PLACES, seed=1, epoch=3, step=0) == sb.MovingRoots()(PLACES, seed=1, epoch=3, step=7)


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda: sb.MovingRoots({"b1": [0.5, 0.6]}), "must be at least 0 and sum to 1"),
        (lambda: sb.MovingRoots({"b1": []}), "must be at least 0 and sum to 1"),
        (lambda: sb.MovingRoots(per="year"), "choose from: epoch, step"),  # pyright: ignore[reportArgumentType]
        (lambda: sb.MovingRoots({"b9": [1.0]})(PLACES, seed=0, epoch=0, step=0), "no branch 'b9'"),
        (lambda: sb.MovingRoots({"b1": [1.0]})(PLACES, seed=0, epoch=0, step=0), "has 3 places .* and 1 prob"),
    ],
)
def test_distributions_that_cannot_be(attempt, message):
    with pytest.raises(sb.UserError, match=message):
        attempt()


def test_the_blocks_of_a_stage_that_give_one_shape_are_places():
    backbone = timm.create_model("cifar_resnet20", num_classes=10)
    net = sb.attach(backbone)
    branches = [sb.SideBranch(name, net.forks[name], net.branches[name]) for name in net.forks]
    moved = sb.movable(branches, net.release())
    assert [each.places for each in moved] == [
        ("layer2.0", "layer2.1", "layer2"),
        ("layer1.0", "layer1.1", "layer1"),
    ]
    out = sb.BranchedModel(backbone, moved)(torch.randn(2, 3, 32, 32), roots={"b1": "layer2.0", "b2": "layer1.1"})
    assert out.logits[2].shape == (2, 10)
