"""What leaves is what was trained: each format is read back by its own runtime in a process of its own."""

import json
import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

import sidebranch as sb
from sidebranch.cli import main
from sidebranch.config.data import DataConfig
from sidebranch.config.method import ModelConfig
from sidebranch.config.schema import Config, OptimConfig, RuntimeConfig
from sidebranch.deploy import ship as shipping
from sidebranch.deploy.formats import ABOUT, WRITERS
from sidebranch.deploy.run_exits import EarlyExit as RunExits
from sidebranch.deploy.ship import export
from sidebranch.deploy.shipped import ship, validation_images
from sidebranch.runs import checkpoint
from sidebranch.runs.folder import RunFolder
from sidebranch.train.loop import train
from training import changed


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


def policy_of(measure, logits):
    """Exits from which about half of the images leave."""
    exits, options = ["b2", "main", "b1"], {"measure": measure, "averaged": measure == "confidence"}
    rule = sb.ExitPolicy(exits=exits, temperatures={"b2": 1.7, "main": 0.8}, **options)
    seen = [logits[name].softmax(-1) for name in exits]
    sure = [float(rule.answer(torch.stack(seen[:count]))[1].quantile(0.5)) for count in (1, 2)]
    return replace(rule, thresholds=dict(zip(exits, sure, strict=False)))


def test_early_exit_leaves_as_a_file_an_exit_and_a_runner(run, tmp_path):
    whole = ship(run, "last", "ensemble")
    images, _ = validation_images(whole.dataset, 100)
    with torch.no_grad():
        outputs = whole.network(images)
    logits = dict(zip(outputs.names, outputs.logits, strict=True))
    policy = policy_of("confidence", logits)
    run.write_early_exit({"chosen": {"policy": asdict(policy)}})
    shipped = ship(run, "last", "early_exit")
    found = export(shipped, "onnx", tmp_path / "out", {"main": 50.0}, {})
    assert found.difference < 1e-5
    assert found.before == found.after
    names = {each.name for each in (tmp_path / "out").iterdir()}
    assert names >= {"exit0-b2.onnx", "exit1-main.onnx", "exit2-b1.onnx", "run.py", "README.md"}
    assert torch.equal(shipped.module(images).exits, shipped.answers(images).exits)
    assert found.macs == round(shipped.module.macs(shipped.module(images)))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "b2, then main, then b1" in card

    about = json.loads((tmp_path / "out" / ABOUT).read_text())
    for measure in ("margin", "agreement"):
        policy = policy_of(measure, logits)
        about["early_exit"] |= {"measure": measure, "averaged": False}
        for each in about["early_exit"]["exits"]:
            each["threshold"] = policy.thresholds.get(each["classifier"], 0.0)
        (tmp_path / "out" / ABOUT).write_text(json.dumps(about))
        probabilities, exits = RunExits(tmp_path / "out", providers=["CPUExecutionProvider"])(images.numpy())
        wanted = sb.EarlyExit(whole.network, policy, input_size=shipped.size).eval()(images)
        assert len(wanted.exits.unique()) > 1
        np.testing.assert_array_equal(exits, wanted.exits)
        np.testing.assert_allclose(probabilities, wanted.probabilities, atol=1e-5)


def test_early_exit_that_was_not_chosen_says_how(run):
    run.early_exit.unlink(missing_ok=True)
    with pytest.raises(sb.UserError, match="choose them first: sidebranch eval .* --early-exit"):
        ship(run, "last", "early_exit")


def test_a_stem_for_small_images_is_not_timm_s(run, tmp_path):
    shipped = ship(run, "last", "main")
    small = replace(shipped, config=changed(shipped.config, model={"small_input": True}))
    with pytest.raises(sb.UserError, match=r"has another stem than one of model\.small_input; take --format onnx"):
        export(small, "timm", tmp_path / "out", {}, {})
    assert not (tmp_path / "out").exists()


def test_exits_leave_with_the_weights_that_they_were_chosen_on(run):
    run.write_early_exit({"checkpoint": "best"})
    with pytest.raises(sb.UserError, match=r"chosen on its best checkpoint; export that one \(--checkpoint best\)"):
        ship(run, "last", "early_exit")
    run.early_exit.unlink()


def test_torchvision_s_own_network_takes_the_weights(tmp_path, digits_config, run, photos):
    data = DataConfig("folder", str(photos), image_size=32, resize=32, batch_size=4, workers=0)
    config = replace(changed(digits_config, model={"name": "resnet18"}, optim={"epochs": 1}), data=data)
    folder = RunFolder(tmp_path / "run")
    train(replace(config, method="baseline"), folder)
    found = export(ship(folder, "last", "main"), "torchvision", tmp_path / "out", {}, {})
    assert found.difference < 1e-5
    classes = len(ship(folder, "last", "main").dataset.classes)
    assert f"torchvision.models.resnet18(num_classes={classes})" in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(sb.UserError, match="torchvision has no network with the weights of cifar_resnet8, main"):
        export(ship(run, "last", "main"), "torchvision", tmp_path / "none", {}, {})


def test_photos_in_and_probabilities_out(run, tmp_path):
    import onnxruntime

    shipped = ship(run, "last", "main")
    export(shipped, "onnx", tmp_path / "out", {}, {}, preprocessing=True)
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), dtype=np.uint8)
    (found,) = session.run(None, {"images": pixels})
    mean, std = (torch.tensor(shipped.about[each]).view(-1, 1, 1) for each in ("mean", "std"))
    images = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std
    np.testing.assert_allclose(found, shipped.answers(images).probabilities, atol=1e-5)
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
    monkeypatch.chdir(tmp_path)
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
        (["--format", "timm", "--classifier", "b1"], "--format timm holds main; b1 leaves by --format onnx or pt2"),
        (["--format", "onnx", "--classifier", "b3"], "no classifier 'b3'; did you mean 'b2' or 'b1'"),
        (["--format", "pt2", "--with-preprocessing"], "is for --format onnx, not pt2"),
        (["--format", "pt2", "--classifier", "early_exit"], "leaves by --format onnx, a file an exit"),
        (["--classifier", "b1"], "b1 leaves by --format onnx or pt2"),
    ):
        assert main(["export", str(run.root), *words]) == 2
        assert message in capsys.readouterr().err


def test_what_leaves_a_stopped_run_says_so(run, tmp_path, capsys):
    """Weights of within an epoch have no row in metrics.csv; the card must not give them another epoch's errors."""
    stopped = tmp_path / "stopped"
    shutil.copytree(run.root, stopped)
    folder = RunFolder(stopped)
    checkpoint.save(folder.last, checkpoint.load(folder.last) | {"epoch": 0, "step": 1})
    assert main(["export", str(stopped), "--format", "timm", "--output", str(tmp_path / "out")]) == 0
    assert f"'{stopped}' was stopped: 0 of 1 epochs and 1 step; go on: " in capsys.readouterr().err
    card = (tmp_path / "out" / "README.md").read_text()
    assert "0 of 1 epochs and 1 step" in card
    assert "classifier of the run" not in card
    assert main(["export", str(stopped), "--output", str(tmp_path / "m.safetensors")]) == 0
    assert "was stopped" in capsys.readouterr().err
    assert main(["export", str(stopped), "--output", str(tmp_path / "m.safetensors")]) == 2
    assert "m.safetensors' exists; give another --output" in capsys.readouterr().err
    assert main(["eval", str(stopped)]) == 0
    assert "last checkpoint: 0 of 1 epochs and 1 step" in " ".join(capsys.readouterr().out.split())
    assert main(["export", str(run.root), "--output", str(tmp_path / "whole.safetensors")]) == 0
    assert "was stopped" not in capsys.readouterr().err
