"""What is easily mistaken in a loop of one's own is said in one line."""

import inspect

import pytest

import sidebranch as sb

FORWARD = inspect.unwrap(sb.Objective.forward)  # without the tests' own check of types


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda net, x, y: FORWARD(sb.dhm(), net.backbone(x), y), "all classifiers' outputs.* this is a Tensor"),
        (lambda net, x, y: FORWARD(sb.dhm(), net(x), y.tolist()), "targets are a list; give a tensor"),
        (lambda net, x, y: sb.dhm(teachers="average"), r"teachers is 'average'; give a list, such as \['average'\]"),
        (lambda net, x, y: sb.dhm(teachers=["a", "a"]), "name each once"),
        (lambda net, x, y: sb.dhm()(net(x), y, taught={"average": None}), "this objective has none"),
        (lambda net, x, y: sb.attach(net), "this network has side branches; attach to its backbone"),
        (lambda net, x, y: sb.attach("resnet18"), "a backbone is a module"),
        (lambda net, x, y: net(x, live="main"), r"such as \('main',\), not one"),
    ],
)
def test_it_is_refused(little_net, images, labels, attempt, message):
    with pytest.raises(sb.UserError, match=message) as raised:
        attempt(little_net, images, labels)
    assert "\n" not in str(raised.value)


def test_a_network_s_outputs_may_teach_as_they_are(little_net, images, labels):
    outputs = little_net(images)
    found = FORWARD(sb.mean_teacher(), outputs, labels, taught={"average": outputs})
    wanted = sb.mean_teacher()(outputs, labels, taught={"average": outputs.logits})
    assert found.total == wanted.total
