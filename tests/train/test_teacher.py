"""Knowledge distillation from an outside network."""

from dataclasses import replace

import pytest
import timm
import torch
from safetensors.torch import save_file

import sidebranch as sb
from sidebranch.config import recipe
from sidebranch.config.method import TeacherConfig
from sidebranch.runs.folder import RunFolder
from sidebranch.train.loop import train
from sidebranch.train.setup import build_objective
from sidebranch.train.teacher import Converted, build_teacher
from sidebranch.zoo.reference import reference_name
from training import changed

IMAGES = {"input_size": [1, 8, 8], "mean": [0.305], "std": [0.376], "classes": list("0123456789")}


@pytest.fixture
def teaching(digits_config, tmp_path):
    """A config with a teacher that was trained."""
    short = changed(digits_config, optim={"epochs": 1})
    train(replace(short, method="baseline", seed=7), RunFolder(tmp_path / "teacher"))
    return replace(changed(short, teacher={"run": str(tmp_path / "teacher"), "students": "all"}), method="kd")


def test_a_run_s_network_teaches_and_is_known_by_its_hash(teaching, folder, tmp_path):
    rows = train(teaching, folder)
    assert rows[-1]["train/loss"] > rows[-1]["train/loss/main"]
    assert "sha256: " in folder.config.read_text()
    train(teaching, folder, resume=True)
    other = replace(changed(teaching, optim={"epochs": 1}), method="baseline", seed=8)
    train(other, RunFolder(tmp_path / "other"))
    swapped = changed(teaching, teacher={"run": str(tmp_path / "other")})
    with pytest.raises(sb.UserError, match=r"cannot resume .* teacher.sha256"):
        train(swapped, folder, resume=True)


def test_the_teacher_s_probabilities_are_the_loss_s_last_row(teaching):
    teacher = build_teacher(teaching.teacher, IMAGES)
    images, labels = torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 3])
    net = sb.attach(timm.create_model("cifar_resnet20", in_chans=1)).eval()
    loss = build_objective(teaching, [teacher])(net(images), labels, images=images)
    taught = teacher(images).softmax(-1)
    for column, logits in enumerate(net(images).logits):
        expected = -(taught * logits.log_softmax(-1)).sum(-1).mean()
        torch.testing.assert_close(loss.mimicry[-1, column], expected)
    loss.total.backward()


@pytest.mark.parametrize("header", [None, {"format": "pt"}])
def test_a_timm_network_s_own_images_are_known_whatever_its_file_says(header, tmp_path):
    network = timm.create_model("resnet10t", num_classes=10, in_chans=1)
    save_file(network.state_dict(), tmp_path / "teacher.safetensors", header)
    given = TeacherConfig(model="resnet10t", weights=str(tmp_path / "teacher.safetensors"))
    teacher = build_teacher(given, IMAGES)
    assert isinstance(teacher, Converted)
    assert teacher.size == tuple(network.pretrained_cfg["input_size"][1:])


def test_several_networks_teach_a_row_each_as_much_as_their_mean_probability(teaching, folder, tmp_path):
    train(replace(changed(teaching, optim={"epochs": 1}), method="baseline", seed=8), RunFolder(tmp_path / "other"))
    both = changed(teaching, teacher={"run": (str(tmp_path / "teacher"), str(tmp_path / "other"))})
    train(both, folder)
    config = recipe.load(folder.config)
    assert len(set(config.teacher.sha256.split(","))) == 2
    train(config, folder, resume=True)
    teachers = [build_teacher(each, IMAGES) for each in config.teacher.each]
    images, labels = torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 3])
    net = sb.attach(timm.create_model("cifar_resnet20", in_chans=1)).eval()
    loss = build_objective(config, teachers)(net(images), labels, images=images)
    logits = net(images).main
    labels_alone = torch.nn.functional.cross_entropy(logits, labels)
    for row, each in zip(loss.mimicry[-2:], teachers, strict=True):
        taught = each(images).softmax(-1)
        torch.testing.assert_close(row[0], -(taught * logits.log_softmax(-1)).sum(-1).mean())
    taught = torch.stack([each(images).softmax(-1) for each in teachers]).mean(0)
    of_main = changed(config, teacher={"students": "main"})
    total = build_objective(of_main, teachers)(net(images), labels, images=images).total
    torch.testing.assert_close(total, labels_alone - (taught * logits.log_softmax(-1)).sum(-1).mean())
    weights = {"teacher1->main": 0.7, "teacher2->b1": 0.2}
    own = build_objective(changed(config, objective={"mimicry": weights}), teachers)
    assert own.arrays(("main", "b1"))[1] == ((0, 0), (0, 0), (0.7, 0), (0, 0.2))
    assert own.described(("main", "b1"))["teachers"] == ["main", "b1", "teacher1", "teacher2"]
    swapped = changed(config, teacher={"run": tuple(reversed(config.teacher.run))})
    with pytest.raises(sb.UserError, match="are not those that the config names"):
        train(swapped, folder, resume=True)


def test_the_teacher_s_images_are_converted_to_its_own_normalisation_and_size():
    seen = []
    network = torch.nn.Module()
    network.forward = lambda images: seen.append(images.clone()) or images.flatten(1)
    pixels = torch.rand(2, 3, 8, 8)
    scale, own = ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)), ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    images = (pixels - torch.tensor(scale[0]).view(-1, 1, 1)) / torch.tensor(scale[1]).view(-1, 1, 1)
    Converted(network, scale, own, None)(images)
    expected = (pixels - torch.tensor(own[0]).view(-1, 1, 1)) / torch.tensor(own[1]).view(-1, 1, 1)
    torch.testing.assert_close(seen[0], expected)
    out = Converted(network, scale, own, (16, 16))(images)
    assert seen[1].shape == (2, 3, 16, 16)
    assert not out.is_inference()


@pytest.mark.parametrize("kind", ["safetensors", "reference"])
def test_a_timm_name_with_weights_teaches(teaching, tmp_path, kind):
    net = sb.attach(timm.create_model("cifar_resnet32", in_chans=1, num_classes=10)).eval()
    if kind == "safetensors":
        save_file(net.backbone.state_dict(), path := tmp_path / "weights.safetensors")
    else:
        state = {f"module.{reference_name(key)}": value for key, value in net.state_dict().items()}
        torch.save({"state_dict": state}, path := tmp_path / "weights.pth")
    config = changed(teaching, teacher={"run": "", "model": "cifar_resnet32", "weights": str(path)})
    images = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(build_teacher(config.teacher, IMAGES)(images), net(images).main)


def test_only_students_that_are_named_learn_from_it(teaching):
    teacher = build_teacher(teaching.teacher, IMAGES)
    arrays = {}
    for students, deep in (("main", False), ("main", True), ("branches", True), ("all", False)):
        config = changed(teaching, teacher={"students": students, "deep_supervision": deep})
        arrays[students, deep] = build_objective(config, [teacher]).arrays(("main", "b1", "b2"))
        assert config.has_branches == (students != "main" or deep)
    assert arrays["main", True] == ((1, 1, 1), (*[(0, 0, 0)] * 3, (1, 0, 0)))
    assert arrays["branches", True] == ((1, 1, 1), (*[(0, 0, 0)] * 3, (0, 1, 1)))
    assert arrays["all", False] == ((1, 0, 0), (*[(0, 0, 0)] * 3, (1, 1, 1)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"run": ""}, "method kd needs a teacher: --teacher.run"),
        ({"run": "no/run"}, "teacher.run 'no/run' is no finished run"),
        ({"model": "resnet18"}, "give one of them"),
        ({"run": "", "model": "resnet18", "weights": "gone.pth"}, "teacher.weights 'gone.pth' is no file"),
        ({"sha256": "00"}, "are not those that the config names"),
    ],
)
def test_teachers_that_cannot_teach(teaching, folder, settings, message):
    with pytest.raises(sb.UserError, match=message):
        train(changed(teaching, teacher=settings), folder)
    assert not folder.root.exists()


def test_weights_of_another_network_and_other_classes_are_refused(teaching, tmp_path):
    path = str(tmp_path / "teacher" / "model.safetensors")
    other = changed(teaching, teacher={"run": "", "model": "cifar_resnet32", "weights": path})
    with pytest.raises(sb.UserError, match=r"no weights of the teacher's network, CifarResNet .*layer1.1"):
        build_teacher(other.teacher, IMAGES)
    with pytest.raises(sb.UserError, match=r"trained on other classes: 10 \(0, 1, 2, ...\), not 10 \(a, "):
        build_teacher(teaching.teacher, IMAGES | {"classes": list("abcdefghij")})


def test_a_file_without_a_header_is_for_images_as_timm_s_networks_take_them(teaching, tmp_path):
    net = timm.create_model("test_resnet", in_chans=1, num_classes=10).eval()
    save_file(net.state_dict(), path := tmp_path / "weights.safetensors")
    config = changed(teaching, teacher={"run": "", "model": "test_resnet", "weights": str(path)})
    teacher = build_teacher(config.teacher, IMAGES)
    assert teacher.size == net.pretrained_cfg["input_size"][1:]
    assert teacher.factor.flatten()[0] == pytest.approx(IMAGES["std"][0] / net.pretrained_cfg["std"][0])
