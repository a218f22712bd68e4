"""Which branches, what they learn, and on which images they are measured."""

from dataclasses import replace

import pytest
import timm
import torch
from safetensors.torch import load_file

import sidebranch as sb
from sidebranch.cli import main
from sidebranch.data.augmentation.crops import FolderTransform, cut
from sidebranch.data.datasets import read_dataset
from sidebranch.device import Choices
from sidebranch.evaluation.of_run import evaluate_reference, evaluate_run
from sidebranch.network import build_network
from sidebranch.runs import checkpoint
from sidebranch.train.loop import train
from sidebranch.train.setup import build_objective, may_fuse
from sidebranch.train.signals import Interrupted
from training import StopAt, changed, weights


def test_one_branch_alone_trains_ships_and_is_evaluated(digits_config, folder):
    config = replace(changed(digits_config, branches={"only": "b2"}), method="baseline")
    rows = train(config, folder)
    assert {key for key in rows[-1] if key.startswith("val/top1")} == {"val/top1/main"}
    shipped = load_file(folder.weights)
    assert {key.split(".")[0] for key in shipped} == {"stem", "branch"}
    both = sb.attach(timm.create_model("cifar_resnet8", num_classes=10, in_chans=1))
    assert sum(each.numel() for key, each in shipped.items() if key.startswith("branch")) == sum(
        each.numel() for each in both.branches["b2"].state_dict().values()
    )
    alone = sb.extract(both, "b2", (1, 8, 8)).eval()
    alone.load_state_dict(shipped)
    net = build_network(config, 10, (1, 8, 8)).eval()
    net.load_state_dict(weights(folder))
    images = torch.randn(3, 1, 8, 8)
    assert torch.equal(alone(images), net(images).main)
    assert evaluate_run(folder).errors["main"]["top1"] == rows[-1]["val/top1/main"]


def test_branches_by_name_are_the_only_ones_that_train(digits_config, folder):
    rows = train(changed(digits_config, branches={"use": ("b2",)}, optim={"epochs": 1}), folder)
    assert {key.split("/")[-1] for key in rows[-1] if key.startswith("val/top1")} == {"main", "b2", "ensemble"}
    assert not any(key.startswith("branches.b1") for key in weights(folder))


@pytest.mark.parametrize("as_names", [True, False])
def test_any_two_arrays_train(digits_config, as_names):
    names = ("main", "b1", "b2")
    if as_names:
        arrays = {"supervision": {"main": 1.0, "b1": 0.5}, "mimicry": {"b1->main": 2.0, "main->b2": 0.3}}
    else:
        arrays = {"supervision": (1.0, 0.5, 0.0), "mimicry": ((0.0, 0.0, 0.3), (2.0, 0.0, 0.0), (0.0, 0.0, 0.0))}
    objective = build_objective(changed(digits_config, objective=arrays))
    assert objective.arrays(names) == ((1.0, 0.5, 0.0), ((0, 0, 0.3), (2.0, 0, 0), (0, 0, 0)))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"supervision": {"b3": 1.0}}, "supervision names no classifier 'b3'; did you mean"),
        ({"supervision": (1.0,)}, "supervision has 1 weights for the 3 classifiers"),
        ({"mimicry": {"b1>main": 1.0}}, "mimicry names no pair 'b1>main', teacher->student; did you mean 'b1->main'"),
        ({"mimicry": {"teacher->main": 1.0}}, "mimicry names no pair 'teacher->main'"),
    ],
)
def test_arrays_that_do_not_fit(digits_config, folder, arrays, message):
    with pytest.raises(sb.UserError, match=message):
        train(changed(digits_config, objective=arrays), folder)
    assert not folder.root.exists()


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"branches": {"only": "b2"}}, "one branch alone, which is --method baseline, not dhm"),
        ({"branches": {"kind": "narrow", "width": 1.0}}, "branches.kind narrow has its own form"),
        ({"data": {"val_limit": 501}}, "data.val_limit is 501, but there are only 500"),
        ({"data": {"interpolation": "bicubic", "backend": "dali"}}, "need data.backend draft or torchvision"),
    ],
)
def test_choices_that_cannot_work(digits_config, folder, groups, message):
    with pytest.raises(sb.UserError, match=message):
        train(changed(digits_config, **groups), folder)


def test_a_fixed_random_subset_of_the_validation_images(digits_config, folder):
    config = changed(digits_config, data={"val_limit": 50}, optim={"epochs": 1})
    first, complete = read_dataset(config.data, 0), read_dataset(digits_config.data, 0)
    other = read_dataset(config.data, 1)
    assert len(first.val) == 50
    assert torch.equal(first.val.images, other.val.images)
    kept = [
        next(n for n, each in enumerate(complete.val.images) if torch.equal(each, image)) for image in first.val.images
    ]
    assert kept == sorted(kept) != list(range(50))
    assert torch.equal(first.val.labels, complete.val.labels[kept])
    train(config, folder)
    assert '"val": 50' in folder.environment.read_text()


def test_a_run_and_a_plain_reference_need_no_training_images(digits_config, folder, photos, tmp_path):
    data = {"name": "folder", "root": str(photos), "image_size": 32, "resize": 36, "batch_size": 4, "workers": 0}
    plain = replace(digits_config, method="baseline")
    config = changed(plain, model={"name": "resnet18"}, data=data, optim={"epochs": 1})
    train(changed(config, data={"limit": 0}), folder)
    before = evaluate_run(folder).errors
    (photos / "train").rename(tmp_path / "elsewhere")
    assert evaluate_run(folder).errors == before
    net = timm.create_model("resnet18", num_classes=3)  # its keys are torchvision's
    torch.save({f"module.{key}": value for key, value in net.state_dict().items()}, tmp_path / "plain.pth")
    assert set(evaluate_reference(folder.config, str(tmp_path / "plain.pth"))) == {"main"}
    arguments = [
        str(folder.config),
        "--weights",
        str(tmp_path / "plain.pth"),
        "--output",
        str(tmp_path / "out.safetensors"),
    ]
    assert main(["export", *arguments]) == 0
    assert torch.equal(load_file(tmp_path / "out.safetensors")["fc.weight"], net.fc.weight)
    (photos / "val" / "ant").rename(photos / "val" / "antelope")
    with pytest.raises(sb.UserError, match=r"not trained on the class 'antelope' of .*; did you mean 'ant'"):
        evaluate_run(folder)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("training", [True, False])
def test_squashed_images_are_the_papers_transform(interpolation, training):
    """The cheap decoder cuts the same box out of an image as torchvision's transforms do."""
    from PIL import Image
    from torchvision.transforms import v2

    ramp = torch.linspace(0, 255, 120).expand(60, 120)
    image = Image.fromarray(torch.stack([ramp, ramp.flip(1), ramp], -1).to(torch.uint8).numpy())
    transform = FolderTransform(size=32, resize=48, squash=True, interpolation=interpolation, scale=False, flip=False)
    torch.manual_seed(3)
    exact = transform.build(training)(image)
    torch.manual_seed(3)
    cheap = cut(image, transform.crop(*image.size, training), 32, interpolation)
    assert (exact.float() - cheap.float()).abs().max() <= 2
    how = v2.InterpolationMode(interpolation)
    if not training:
        by_hand = v2.Compose([v2.Resize([48, 48], how), v2.CenterCrop(32), v2.PILToTensor()])
        assert torch.equal(exact, by_hand(image))


def test_a_branch_of_a_resnet_starts_as_the_backbone_does():
    for zero in (True, False):
        net = sb.attach(timm.create_model("resnet18", num_classes=5, zero_init_last=zero))
        last = [each.weight for path, each in net.named_modules() if path.endswith(".bn2")]
        assert all(bool((each == (0 if zero else 1)).all()) for each in last)


@pytest.mark.parametrize(
    "groups",
    [
        {"branches": {"start_epoch": 1}},
        {"sampling": {"kind": "bernoulli", "p": 0.5, "drops": "branch", "per": "step"}},
        {"optim": {"new_layers_epochs": 1}},
        {},
    ],
)
def test_weights_whose_first_gradient_comes_late_train_on_any_device(digits_config, folder, monkeypatch, groups):
    """With the choices made for CUDA: torch's fused SGD takes momentum buffers of all weights, or of none."""
    asked, cuda = [], torch.device("cuda")

    def as_on_cuda(config, choices, device):
        asked.append(may_fuse(config, choices, cuda))
        return asked[-1]

    monkeypatch.setattr("sidebranch.train.setup.may_fuse", as_on_cuda)
    train(changed(digits_config, **groups), folder)
    assert asked == [not groups]


def test_one_kernel_does_not_share_momentum_with_a_gradient_scaler(digits_config):
    """A first step that overflows would leave torch's kernel with momentum that nobody wrote."""
    cuda = torch.device("cuda")
    scaled, plain = (Choices(precision, True, False, "") for precision in ("16-mixed", "bf16-mixed"))
    adam = changed(digits_config, optim={"name": "adamw"})
    assert not may_fuse(digits_config, scaled, cuda)
    assert may_fuse(digits_config, plain, cuda)
    assert may_fuse(changed(digits_config, optim={"momentum": 0.0, "nesterov": False}), scaled, cuda)
    assert may_fuse(adam, scaled, cuda)
    assert not may_fuse(changed(adam, optim={"clip": 1.0}), scaled, cuda)
    assert not may_fuse(adam, plain, torch.device("cpu"))


def test_a_resumed_run_takes_its_own_kernels_not_the_checkpoint_s(digits_config, folder, monkeypatch):
    config = changed(digits_config, branches={"start_epoch": 1})
    with monkeypatch.context() as patch:
        patch.setattr("sidebranch.train.setup.may_fuse", lambda *_: True)
        with pytest.raises(Interrupted):
            train(config, folder, reporter=StopAt(2))
    assert checkpoint.load(folder.last)["optimizer"]["param_groups"][0]["fused"]
    train(config, folder, resume=True)
