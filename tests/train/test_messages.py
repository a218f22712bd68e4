"""Edges of training: skipped steps, lines for the user, settings that act before the first step."""

import math
import os
from dataclasses import replace

import pytest
import torch
from test_step import Listener, poison

import sidebranch as sb
from sidebranch.cli import main
from sidebranch.network import build_backbone, build_network
from sidebranch.runs import checkpoint
from sidebranch.runs.console import Silent
from sidebranch.runs.folder import RunFolder
from sidebranch.study.grid import run_grid
from sidebranch.train import loop
from sidebranch.train.loop import train
from sidebranch.train.optimizer import build_optimizer
from training import changed


def test_a_skipped_step_leaves_the_metrics_finite(digits_config, folder, monkeypatch):
    poison(monkeypatch, {2, 5})
    rows = train(changed(digits_config, optim={"skip_nonfinite": 2}), folder)
    for row in rows:
        assert all(math.isfinite(value) for value in row.values())


def test_the_loss_is_the_objective_and_its_label_part_has_a_column(digits_config, folder, tmp_path):
    row = train(changed(digits_config, optim={"epochs": 1}), folder)[0]
    labels = sum(row[f"train/loss/{name}"] for name in ("main", "b1", "b2"))
    assert row["train/label_loss"] == pytest.approx(labels)
    assert row["train/loss"] > 2 * row["train/label_loss"]  # six mimicry terms beside three label terms
    config = replace(changed(digits_config, optim={"epochs": 1}), method="dsl")
    alone = train(config, RunFolder(tmp_path / "dsl"))[0]
    assert alone["train/loss"] == pytest.approx(alone["train/label_loss"], rel=1e-6)


def test_top_5_of_few_classes_is_left_out(digits_config, photos, folder, tmp_path):
    data = {"name": "folder", "root": str(photos), "image_size": 16, "resize": 16, "batch_size": 4, "workers": 0}
    few = train(changed(digits_config, data={**data, "limit": 0}, optim={"epochs": 1}), folder)
    assert not any("top5" in key for key in few[0])
    assert main(["eval", str(folder.root)]) == 0
    many = train(changed(digits_config, optim={"epochs": 1}), RunFolder(tmp_path / "many"))
    assert "val/top5/main" in many[0]


def test_a_batch_larger_than_the_data_and_settings_without_effect_are_named(digits_config, folder):
    listener = Listener()
    config = changed(digits_config, data={"limit": 40}, optim={"epochs": 1}, sampling={"p": 0.3})
    train(config, folder, reporter=listener)
    assert "data.batch_size 64 is larger than the 40 training images: an epoch is one step of 40" in listener.lines[0]
    assert "`sampling.p` has no effect with `sampling.kind fixed`" in listener.lines[0]


def test_an_absurd_validation_loss_is_named_once(digits_config, folder, monkeypatch):
    monkeypatch.setattr(loop, "ABSURD", 0.1)
    listener = Listener()
    train(digits_config, folder, reporter=listener)
    lines = [line for line in listener.lines if "where guessing gives 2.3" in line]
    assert len(lines) == 1


def test_deterministic_kernels_are_chosen_before_the_devices_first_use(digits_config, folder, monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    launch, seen = loop.launch, []

    def launching(*arguments, **options):
        seen.append((torch.are_deterministic_algorithms_enabled(), os.environ.get("CUBLAS_WORKSPACE_CONFIG")))
        return launch(*arguments, **options)

    monkeypatch.setattr(loop, "launch", launching)
    train(changed(digits_config, runtime={"deterministic": True}, optim={"epochs": 1}), folder)
    assert seen == [(True, ":4096:8")]


def test_resume_in_another_precision_is_refused(digits_config, folder):
    train(changed(digits_config, optim={"epochs": 1}), folder)
    other = changed(digits_config, optim={"epochs": 1}, runtime={"precision": "bf16-mixed"})
    with pytest.raises(sb.UserError, match=r"runtime\.precision: 32-true -> bf16-mixed"):
        train(other, folder, resume=True)


def test_a_grid_goes_on_after_a_kill_before_the_first_checkpoint(digits_config, tmp_path, monkeypatch):
    """As `sidebranch demo` is."""
    config = changed(digits_config, optim={"epochs": 1})
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run_grid(config, ("dhm",), (0,), tmp_path, Silent())
    assert RunFolder(tmp_path / "dhm-seed0").is_used()
    (folder,) = run_grid(config, ("dhm",), (0,), tmp_path, Silent())
    assert folder.weights.exists()


@pytest.mark.filterwarnings("ignore:b1 is as wide as main:UserWarning")
@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
def test_timms_parameters_without_decay_do_not_decay(digits_config, layer_decay):
    config = changed(digits_config, optim={"name": "adamw", "decay_vectors": False, "layer_decay": layer_decay})
    config = changed(config, model={"name": "test_vit", "options": {"img_size": 32}, "branches": "auto"})
    net = build_network(config, 5, (3, 32, 32))
    optimizer = build_optimizer(config.optim, net)
    decay = {id(each): group["weight_decay"] for group in optimizer.param_groups for each in group["params"]}
    names = net.backbone.no_weight_decay()
    assert {"pos_embed", "cls_token"} <= set(names)
    for name, each in net.named_parameters():
        spared = each.ndim <= 1 or name.removeprefix("backbone.") in names
        assert decay[id(each)] == (0 if spared else config.optim.weight_decay), name


def test_weights_that_cannot_be_downloaded_get_the_remedy(digits_config, monkeypatch):
    def unreachable(*_, **__):
        raise OSError("We couldn't connect to the hub")

    monkeypatch.setattr("timm.models._builder.load_pretrained", unreachable)
    model = changed(digits_config, model={"name": "resnet18", "pretrained": True}).model
    with pytest.raises(sb.UserError, match="cannot load the pretrained weights of 'resnet18' .*couldn't.*HF_HOME"):
        build_backbone(model, 10, 3)
    none = replace(model, name="cifar_resnet20")
    with pytest.raises(sb.UserError, match="timm has no pretrained weights for 'cifar_resnet20'"):
        build_backbone(none, 10, 3)


def test_a_wrong_image_size_names_the_flags_that_cure_it(digits_config, folder):
    config = changed(replace(digits_config, method="baseline"), model={"name": "vit_tiny_patch16_224"})
    with pytest.raises(sb.UserError, match="--data.image_size 224 --data.resize 256; small images: --model.sm"):
        train(config, folder)
