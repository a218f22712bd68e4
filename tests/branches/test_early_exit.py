"""Early exit: each image gets the answer of the first sure classifier, and no part is computed for those that left."""

import pytest
import timm
import torch

import sidebranch as sb
from sidebranch.core.exits import MEASURES
from sidebranch.inspect.cost import costs


def names_of(net):
    return {name: place for place, name in enumerate(net.names)}


def slow(net, early, images):
    """The definition: all classifiers for all images, then the first that is sure."""
    with torch.no_grad():
        outputs = net(images)
    all_of_them = {name: outputs.logits[names_of(net)[name]].softmax(-1) for name in early.exits}
    found, exits = [], []
    for image in range(len(images)):
        for place, name in enumerate(early.exits):
            answer = all_of_them[name][image]
            if place == len(early.exits) - 1 or answer.max() >= early.policy.thresholds[name]:
                found.append(answer)
                exits.append(place)
                break
    return torch.stack(found), torch.tensor(exits)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    net = sb.attach(timm.create_model("cifar_resnet8", num_classes=10)).eval()
    for module in net.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=2.0)
    return net


@pytest.mark.parametrize("thresholds", [{"b2": 0.6, "main": 0.7}, {"b2": 0.0}, {}, {"b1": 0.5, "b2": 0.9}])
def test_it_gives_the_answers_of_its_definition(net, thresholds):
    early, images = sb.EarlyExit(net, thresholds, input_size=(3, 32, 32)), torch.randn(40, 3, 32, 32)
    found = early(images)
    wanted, exits = slow(net, early, images)
    torch.testing.assert_close(found.probabilities, wanted, atol=1e-5, rtol=1e-4)
    assert torch.equal(found.exits, exits)


def test_exits_are_in_the_order_of_their_cost_and_costs_are_of_what_ran(net):
    early = sb.EarlyExit(net, {"b2": 0.6, "main": 0.7}, input_size=(3, 32, 32))
    assert early.exits == ("b2", "main", "b1")
    images = torch.randn(40, 3, 32, 32)
    found = early(images)
    assert len(set(found.exits.tolist())) == 3  # the images were chosen so that some leave everywhere
    seen = []
    hooks = [
        part.register_forward_hook(lambda part, inputs, out, name=name: seen.append((name, len(inputs[0]))))
        for name, part in (*early.trunks.items(), *early.heads.items())
    ]
    early(images)
    [hook.remove() for hook in hooks]
    after = [int((found.exits >= place).sum()) for place in range(3)]
    assert seen == [
        ("images to layer1", 40),
        ("b2", 40),
        ("layer1 to layer2", after[1]),
        ("main", after[1]),
        ("b1", after[2]),
    ]
    macs = [step.macs for step in early.steps]
    assert early.macs(found) == pytest.approx(sum(cost * count for cost, count in zip(macs, after, strict=True)) / 40)
    assert sum(macs) == sum(cost.macs for cost in costs(net, (3, 32, 32)))


@pytest.mark.parametrize("averaged", [False, True])
@pytest.mark.parametrize("measure", MEASURES)
def test_any_rule_gives_what_it_gives_on_all_logits(net, measure, averaged):
    thresholds = {"b2": 0.3, "main": 0.4} if measure == "margin" else {"b2": 0.6, "main": 0.55}
    policy = sb.ExitPolicy(thresholds, (), {"b2": 1.3, "b1": 0.8}, measure, averaged)
    early, images = sb.EarlyExit(net, policy, input_size=(3, 32, 32)), torch.randn(40, 3, 32, 32)
    found = early(images)
    with torch.no_grad():
        outputs = net(images)
    wanted = early.policy.replay(torch.stack([outputs.logits[names_of(net)[name]] for name in early.exits]))
    assert len(wanted.exits.unique()) > 1
    torch.testing.assert_close(found.probabilities, wanted.probabilities, atol=1e-5, rtol=1e-4)
    assert torch.equal(found.exits, wanted.exits)


def test_no_image_costs_more_than_the_budget(net):
    whole = sb.EarlyExit(net, {"b2": 0.6}, input_size=(3, 32, 32))
    macs = [step.macs for step in whole.steps]
    early = sb.EarlyExit(net, input_size=(3, 32, 32), max_cost=macs[0] + macs[1])
    assert early.exits == ("b2", "main")
    assert sorted(early.heads) == ["b2", "main"]
    found = early(torch.randn(5, 3, 32, 32))
    assert found.exits.tolist() == [1] * 5  # without thresholds, all go as far as the budget
    cheap = sb.EarlyExit(net, input_size=(3, 32, 32), max_cost=macs[0])
    assert list(cheap.trunks) == ["images to layer1"]
    with pytest.raises(sb.UserError, match="max_cost is 10 multiply-adds; the cheapest exit, b2, needs"):
        sb.EarlyExit(net, input_size=(3, 32, 32), max_cost=10)


def test_it_compiles(net):
    early, images = sb.EarlyExit(net, {"b2": 0.6, "main": 0.7}, input_size=(3, 32, 32)), torch.randn(20, 3, 32, 32)
    compiled = torch.compile(early, backend="eager")
    for batch in (images, images[:7]):
        torch.testing.assert_close(compiled(batch).probabilities, early(batch).probabilities)


def test_some_exits_alone_and_what_is_wrong(net):
    early = sb.EarlyExit(net, {"b2": 0.6}, exits=["main", "b2"], input_size=(3, 32, 32))
    assert early.exits == ("b2", "main")
    assert "b1" not in early.heads
    only = sb.EarlyExit(net, {}, exits=["main"], input_size=(3, 32, 32))
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(only(images).probabilities, net(images).main.softmax(-1))
    with pytest.raises(sb.UserError, match="no classifier 'b7'; did you mean 'b2' or 'b1'"):
        sb.EarlyExit(net, {"b7": 0.5})
    with pytest.raises(sb.UserError, match="the threshold of b2 is 60; a confidence is between 0 and 1"):
        sb.EarlyExit(net, {"b2": 60}, input_size=(3, 32, 32))


@pytest.mark.parametrize("name", ["test_vit", "test_efficientnet"])
def test_it_follows_other_families(name):
    net = sb.attach(timm.create_model(name, num_classes=5), growth=sb.Growth(keep=1.0, width=1.0)).eval()
    shape = net.backbone.pretrained_cfg["input_size"]
    early = sb.EarlyExit(net, dict.fromkeys(net.names, 0.25))
    images = torch.randn(6, *shape)
    wanted, exits = slow(net, early, images)
    found = early(images)
    torch.testing.assert_close(found.probabilities, wanted, atol=1e-5, rtol=1e-4)
    assert torch.equal(found.exits, exits)
