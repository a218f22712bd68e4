"""What leaves is what was trained: each format is read back by its own runtime in a process of its own."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import sidebranch as sb
from sidebranch.cli import main
from sidebranch.config.data import DataConfig
from sidebranch.config.method import ModelConfig
from sidebranch.config.schema import Config, OptimConfig, RuntimeConfig
from sidebranch.deploy import ship as shipping
from sidebranch.deploy.formats import WRITERS
from sidebranch.deploy.ship import export
from sidebranch.deploy.shipped import ship, validation_images
from sidebranch.runs.folder import RunFolder
from sidebranch.train.loop import train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = RunFolder(tmp_path_factory.mktemp("export") / "run")
    data = DataConfig(limit=160, padding=1, val_limit=100)
    optim = OptimConfig(lr=0.05, epochs=1, schedule="cosine")
    runtime = RuntimeConfig("cpu", precision="32-true")
    train(Config(method="dhm", model=ModelConfig("cifar_resnet8"), data=data, optim=optim, runtime=runtime), folder)
    return folder


@pytest.mark.parametrize(
    ("kind", "classifier"),
    [("timm", "main"), ("onnx", "main"), ("onnx", "b1"), ("onnx", "ensemble"), ("pt2", "b2"), ("onnx-int8", "main")],
)
def test_an_export_is_the_training_network(run, tmp_path, kind, classifier):
    shipped = ship(run, "last", classifier)
    found = export(shipped, kind, tmp_path / "out", {"main": 50.0}, {})
    assert found.agreement == 100 or kind == "onnx-int8"
    assert found.difference < (0.2 if kind == "onnx-int8" else 1e-5)
    assert found.before == pytest.approx(found.after, abs=3)
    assert found.milliseconds.keys() == {"1", "32"}
    assert sorted(each.name for each in tmp_path.iterdir()) == ["out"]
    about = json.loads((tmp_path / "out" / "sidebranch.json").read_text())
    assert about["classes"] == [str(digit) for digit in range(10)]
    assert about["output"] == ("probabilities" if classifier == "ensemble" else "logits")
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"# cifar_resnet8, {classifier}" in card
    assert "| main | 50.00 |" in card


def test_a_branch_leaves_with_its_stem_and_not_a_weight_more(run):
    net = ship(run, "last", "main").network
    for name, at in net.forks.items():
        own = sum(each.numel() for each in ship(run, "last", name).module.parameters())
        stem, backbone = 0, dict(net.backbone.named_children())
        for path, module in backbone.items():
            stem += sum(each.numel() for each in module.parameters())
            if path == at:
                break
        assert own == stem + sum(each.numel() for each in net.branches[name].parameters())


def test_the_ensemble_is_the_mean_of_probabilities(run):
    net = ship(run, "last", "ensemble").network
    images = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        wanted = sum(logits.softmax(-1) for logits in net(images).logits) / len(net.names)
        torch.testing.assert_close(sb.Ensemble(net)(images), wanted)


def test_images_are_taken_from_all_over_the_validation_set(run):
    dataset = ship(run, "last", "main").dataset
    order = dataset.val.labels.sort().indices
    dataset = replace(dataset, val=dataset.val.take(order))  # by class, as in a folder
    images, labels = validation_images(dataset, 20)
    assert len(images) == 20
    assert set(labels.tolist()) == set(range(10))


def test_photos_in_and_probabilities_out(run, tmp_path):
    import onnxruntime

    shipped = ship(run, "last", "main")
    export(shipped, "onnx", tmp_path / "out", {}, {}, preprocessing=True)
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), dtype=np.uint8)
    (found,) = session.run(None, {"images": pixels})
    mean, std = (torch.tensor(shipped.about[each]).view(-1, 1, 1) for each in ("mean", "std"))
    images = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std
    np.testing.assert_allclose(found, shipped.probabilities(images), atol=1e-5)
    known = session.get_modelmeta().custom_metadata_map
    assert json.loads(known["classes"])[3] == "3"


def test_an_export_that_differs_leaves_nothing(run, tmp_path, monkeypatch):
    shipped = ship(run, "last", "main")

    def wrong(shipped, folder):
        with torch.no_grad():
            next(shipped.module.parameters()).mul_(1.5)
        right(shipped, folder)

    right = WRITERS["onnx"]
    monkeypatch.setitem(WRITERS, "onnx", wrong)
    with pytest.raises(sb.UserError, match="the onnx export differs from the training network by .*; nothing was kept"):
        export(shipped, "onnx", tmp_path / "out", {}, {})
    assert not list(tmp_path.iterdir())
    monkeypatch.setitem(WRITERS, "onnx", lambda shipped, folder: (folder / "model.onnx").write_text("none"))
    with pytest.raises(sb.UserError, match="a fresh process could not read the onnx export back: .*nothing was kept"):
        export(ship(run, "last", "main"), "onnx", tmp_path / "out", {}, {})
    assert not list(tmp_path.iterdir())


def test_the_command_says_what_it_found_and_what_is_wrong(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        shipping, "_compare", lambda shipped, *_: shipping.Comparison(9, 0, 100, 1, 1, 1, 1, 1, {"1": 1, "32": 2})
    )
    out = str(tmp_path / "out")
    assert main(["export", str(run.root), "--format", "pt2", "--classifier", "b1", "--output", out]) == 0
    text = capsys.readouterr().out
    assert "b1, pt2" in text
    assert "main, pt2" in text
    for words, message in (
        (["--format", "pt2", "--output", out], "exists; give another --output"),
        (["--format", "timm", "--classifier", "b1"], "timm has no network for b1"),
        (["--format", "onnx", "--classifier", "b3"], "no classifier 'b3'; did you mean 'b2' or 'b1'"),
        (["--format", "pt2", "--with-preprocessing"], "is for --format onnx, not pt2"),
        (["--classifier", "b1"], "b1 leaves by --format onnx or pt2"),
    ):
        assert main(["export", str(run.root), *words]) == 2
        assert message in capsys.readouterr().err
