import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from safetensors import safe_open

import sidebranch as sb
from forked import ForkedCommand
from sidebranch.cli import main
from sidebranch.cli.running import exit_status
from sidebranch.config import recipe
from sidebranch.zoo.reference import reference_name

QUICK = [
    "--optim.epochs",
    "2",
    "--model.name",
    "cifar_resnet8",
    "--name",
    "digits-demo",
    "--data.limit",
    "160",
    "--data.batch_size",
    "64",
    "--runtime.accelerator",
    "cpu",
]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(capsys, *arguments):
    status = main(list(arguments))
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def test_train_eval_and_report_agree(capsys):
    status, out, _ = run(capsys, "train", "digits/demo", "--method", "dhm", *QUICK)
    assert status == 0
    folder = "runs/digits-demo-dhm-seed0"
    assert Path(folder, "model.safetensors").exists()
    assert "<svg" in Path(folder, "report.html").read_text()
    assert max(map(len, out.splitlines())) <= 80
    last = out.splitlines()[-3].split()
    status, out, _ = run(capsys, "eval", folder)
    assert status == 0
    errors = [float(found) for found in re.findall(r"(?:main|b1|b2|ensemble) +│ +([\d.]+)", out)]
    assert [f"{error:.2f}" for error in errors] == last[4:8]
    run(capsys, "train", "digits/demo", "--method", "baseline", *QUICK)
    status, out, _ = run(capsys, "report", "runs/digits-demo-baseline-seed0", folder, "--output", "page.html")
    assert status == 0
    assert ", baseline " in Path("page.html").read_text()


def test_a_config_repeats_its_run_and_never_overwrites_it(capsys):
    run(capsys, "train", "digits/demo", *QUICK)
    for again in ("runs/digits-demo-dhm-seed0/config.yaml", "runs/digits-demo-dhm-seed0"):
        assert run(capsys, "train", again)[0] == 0
    metrics = [Path(f"runs/digits-demo-dhm-seed0{suffix}/metrics.csv") for suffix in ("", "-2", "-3")]
    rows = [[line.split(",")[5:] for line in each.read_text().splitlines()] for each in metrics]
    assert rows[0] == rows[1] == rows[2]
    status, _, err = run(capsys, "train", "digits/demo", "--output", "runs/digits-demo-dhm-seed0")
    assert status == 2
    assert "has a run already; add --resume" in err


def test_resume_finds_the_run_by_recipe_or_by_folder(capsys):
    run(capsys, "train", "digits/demo", *QUICK)
    for name in ("digits/demo", "runs/digits-demo-dhm-seed0"):
        extra = QUICK if name == "digits/demo" else []
        status, out, _ = run(capsys, "train", name, *extra, "--resume")
        assert status == 0
        assert "run folder: runs/digits-demo-dhm-seed0\n" in out
    status, _, err = run(capsys, "train", "digits/demo", *QUICK, "--optim.lr", "0.5", "--resume")
    assert status == 2
    assert "with another config: optim.lr" in err
    status, _, err = run(capsys, "train", "digits/demo", "--seed", "7", "--resume")
    assert status == 2
    assert "nothing was saved in 'runs/digits-demo-dhm-seed7' yet; start without --resume" in err


def test_an_unfinished_run_is_pointed_out_and_found_by_resume(capsys):
    run(capsys, "train", "digits/demo", *QUICK)
    Path("runs/digits-demo-dhm-seed0/model.safetensors").unlink()
    _, out, _ = run(capsys, "train", "digits/demo", *QUICK)
    assert "'runs/digits-demo-dhm-seed0' has an unfinished run of this config: --resume" in out
    shutil.rmtree("runs/digits-demo-dhm-seed0-2")
    assert "run folder: runs/digits-demo-dhm-seed0-2\n" in out
    status, out, _ = run(capsys, "train", "digits/demo", *QUICK, "--resume")
    assert status == 0
    assert "run folder: runs/digits-demo-dhm-seed0\n" in out
    assert "already finished" in out
    Path("runs/digits-demo-dhm-seed0/model.safetensors").write_bytes(b"there")
    out = run(capsys, "train", "digits/demo", *QUICK)[1]
    assert "'runs/digits-demo-dhm-seed0' has a finished run of this config. This is a new run." in out


def test_ctrl_c_in_the_middle_saves_and_resume_goes_on():
    command = [sys.executable, "-m", "sidebranch", "train", "digits/demo", "--optim.epochs", "200", "--output", "run"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment) as process:
        for line in process.stdout:
            if line.strip().startswith("2/200"):
                process.send_signal(signal.SIGINT)
                break
        message = process.communicate()[1]
    assert process.returncode == 128 + signal.SIGINT
    told = r"sidebranch: stopped at .*epoch \d+.*; everything is saved; go on: sidebranch train run --resume\n"
    assert re.fullmatch(told, message)
    line = re.fullmatch(r".*go on: sidebranch (.*)\n", message)[1]
    assert main([*shlex.split(line), "--print-config"]) == 0
    assert Path("run/checkpoints/last.ckpt").exists()


def test_replicas_are_the_same_runs_as_alone(capfd, monkeypatch):
    monkeypatch.setattr(
        "sidebranch.study.replicas.subprocess", SimpleNamespace(Popen=ForkedCommand, PIPE=subprocess.PIPE)
    )
    command = ["train", "digits/demo", *QUICK]
    assert main([*command, "--runtime.replicas", "2", "--output", "both", "--seed", "3"]) == 0
    assert main([*command, "--output", "alone", "--seed", "4"]) == 0
    rows = [Path(folder, "metrics.csv").read_text().splitlines() for folder in ("both/seed4", "alone")]
    assert [line.split(",")[5:] for line in rows[0]] == [line.split(",")[5:] for line in rows[1]]
    assert Path("both/seed3/model.safetensors").exists()
    capfd.readouterr()
    assert main([*command, "--runtime.replicas", "2", "--output", "both", "--seed", "3", "--resume"]) == 0
    out = capfd.readouterr().out
    assert all(f"{seed} | already finished" in out for seed in (3, 4))
    assert max(map(len, out.splitlines())) <= 80


def test_demo_prints_the_table_and_writes_the_page(capsys, monkeypatch):
    short = (
        recipe.shipped()["digits/demo"]
        .read_text()
        .replace("epochs: 40", "epochs: 1")
        .replace("epochs: 60", "epochs: 1")
    )
    Path("short.yaml").write_text(short)
    monkeypatch.setattr(recipe, "find", lambda _: Path("short.yaml"))
    for _ in range(2):
        status, out, _ = run(capsys, "demo", "--seeds", "2", "--output", "out")
        assert status == 0
        assert re.search(r"main \(shipped\) +│ +[\d.]+ ± [\d.]+ │ +[\d.]+ ± [\d.]+ │", out)
        assert re.search(r"parameters shipped +│ +269,434 │ +269,434 │", out)
        assert max(map(len, out.splitlines())) <= 80
    assert "<svg" in Path("out/report.html").read_text()


def test_recipes_lists_them_and_each_is_sound(capsys):
    status, out, _ = run(capsys, "recipes")
    assert status == 0
    assert max(map(len, out.splitlines())) <= 80
    for name in recipe.shipped():
        assert f"\n{name} " in out
    assert re.search(r"cifar100/resnet32 +DHM Table 1 +30\.31 +30\.17 +27\.40", out)


def test_print_config_is_the_recipe_with_the_flags(capsys):
    words = ["train", "cifar100/resnet32-short", "--optim.lr", "0.07", "--print-config"]
    status, short, _ = run(capsys, *words)
    assert status == 0
    assert "lr: 0.07" in short
    assert "limit: 10000" in short
    assert "momentum" not in short
    status, full, _ = run(capsys, *words, "--full")
    assert "momentum: 0.9" in full
    configs = []
    for text in (short, full):
        Path("printed.yaml").write_text(text)
        configs.append(recipe.load(Path("printed.yaml")))
    assert configs[0] == configs[1]


@pytest.mark.parametrize("verb", [[], ["demo"], ["train"], ["eval"], ["export"], ["recipes"], ["report"], ["branches"]])
def test_help(capsys, verb):
    try:
        status = main([*verb, "--help"])
    except SystemExit as stop:
        status = stop.code
    assert status == 0
    assert "usage: sidebranch" in capsys.readouterr().out


def test_help_of_a_recipe_shows_its_values(capsys):
    with_recipe, without = (run(capsys, "train", *words, "--help")[1] for words in (["cifar100/wrn28-10"], []))
    passes = r"--optim.epochs EPOCHS passes over the training images. \(type: int, default: (\d+)\)"
    found = [re.search(passes, " ".join(text.split()))[1] for text in (with_recipe, without)]
    assert found == ["200", "40"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "no command 'trian'; did you mean 'train'?"),
        (["train"], "train needs a recipe first"),
        (["train", "--seed", "1"], "train needs a recipe first"),
        (["train", "cifar100/resnt32"], "no recipe 'cifar100/resnt32', .* did you mean 'cifar100/resnet32'"),
        (["train", "digits/demo", "--optim.lrr", "1"], "unknown argument '--optim.lrr'; did you mean '--optim.lr'"),
        (
            ["train", "digits/demo", "--optim.epoch", "1"],
            "unknown argument '--optim.epoch'; did you mean '--optim.epochs'",
        ),
        (["train", "digits/demo", "--optim.lr", "fast"], "optim.lr is fast; it must be float"),
        (
            ["train", "digits/demo", "--method", "dsn"],
            "method is dsn; it must be one of 'baseline', 'dsl', 'dks', 'dhm'",
        ),
        (["train", "digits/demo", "--data.name", "mnist"], "data.name is mnist; it must be one of 'digits'"),
        (["train", "digits/demo", "--model.name", "resnet_32"], "no model 'resnet_32'; did you mean"),
        (["train", "typo.yaml"], "typo.yaml: unknown key 'optim.lrr'; did you mean 'optim.lr'"),
        (["train", "top.yaml"], "top.yaml: unknown key 'metod'; did you mean 'method'"),
        (["train", "broken.yaml"], "broken.yaml"),
        (["train", "cifar100/resnet32", "--data.root", "nowhere"], "no cifar-100-python in 'nowhere'"),
        (["eval"], "the command lacks RUN; see --help"),
        (["eval", "nowhere"], "'nowhere' is no run folder"),
        (["eval", "nowhere", "--checkpoint", "first"], "last.*best"),
        (["report", "nowhere"], "'nowhere' is no run folder"),
        (["branches", "resnet5"], "no model 'resnet5'; did you mean"),
        (["branches", "resnet18", "--at", "layer9"], "no fork at 'layer9'.*did you mean 'layer"),
        (["branches", "resnet18", "--keep", "2"], "keep 2.0 of the blocks; it must be a share"),
        (["branches", "resnet18", "--input-size", "3", "0", "32"], "must be at least 1"),
        (["branches", "tnt_s_patch16_224"], "TNT has no 2 forks"),
        (["branches", "vgg11", "--kind", "paper"], "no side branches were published for VGG"),
        (["train", "digits/demo", "--branches.width", "99"], "branches.width is 99"),
        (
            ["train", "digits/demo", "--branches.at", "[layer1]", "--model.branches", "paper"],
            "need model.branches auto",
        ),
        (["train", "digits/demo", "--sampling.roots", "{b1: [1.0]}"], "need branches.roots stage"),
        (["train", "digits/demo", "--optim.new_layers_epochs", "999"], "new_layers_epochs is 999"),
        (
            ["train", "digits/demo", "--runtime.compile", "cuda_graphs", "--runtime.accelerator", "cpu"],
            "needs a CUDA device",
        ),
        (["train", "digits/demo", "--runtime.compile", "x"], "compile is x; it must be bool or one of 'auto', 'cuda_g"),
        (["train", "digits/demo", "--runtime.replicas", "0"], "runtime.replicas is 0; it must be at least 1"),
        (["demo", "--seeds", "0"], "--seeds is 0; train at least one"),
    ],
)
def test_bad_input_is_one_line_and_status_2(capsys, monkeypatch, arguments, message):
    def refuse(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", refuse)
    Path("typo.yaml").write_text("optim:\n  lrr: 0.1\n")
    Path("top.yaml").write_text("metod: dhm\n")
    Path("broken.yaml").write_text("optim: [\n")
    status, _, err = run(capsys, *arguments)
    assert status == 2
    assert err.startswith("sidebranch: ")
    assert err.count("\n") == 1
    assert re.search(message, err)
    assert not Path("runs").exists()


def test_a_public_checkpoint_is_evaluated_and_exported(capsys, photos):
    Path("recipe.yaml").write_text(
        "model: {name: cifar_resnet20}\n"
        f"data: {{name: folder, root: {photos}, image_size: 16, resize: 16, batch_size: 4, workers: 0}}\n"
        "runtime: {accelerator: cpu, precision: 32-true}\n"
    )
    net = sb.attach(timm.create_model("cifar_resnet20", num_classes=3)).eval()
    state = {f"module.{reference_name(key)}": value for key, value in net.state_dict().items()}
    torch.save({"epoch": 1, "state_dict": state}, "reference.pth")
    status, out, _ = run(capsys, "eval", "recipe.yaml", "--weights", "reference.pth")
    assert status == 0
    assert re.search(r"b2 +│ +[\d.]+ │ +[\d.]+ │", out)
    status, out, _ = run(capsys, "export", "recipe.yaml", "--weights", "reference.pth", "--output", "out.safetensors")
    assert status == 0
    shipped = timm.create_model("cifar_resnet20", num_classes=3, checkpoint_path="out.safetensors").eval()
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(shipped(images), net(images).main)
    status, _, err = run(capsys, "export", "recipe.yaml", "--weights", "reference.pth", "--output", "out.pth")
    assert status == 2
    assert "call it out.safetensors" in err


def test_export_of_a_run_is_what_the_run_shipped(capsys):
    run(capsys, "train", "digits/demo", *QUICK, "--output", "run")
    assert run(capsys, "export", "run", "--output", "again.safetensors")[0] == 0
    with safe_open("again.safetensors", "pt") as again, safe_open("run/model.safetensors", "pt") as shipped:
        assert again.metadata() == shipped.metadata()
        assert again.metadata()["model"] == "cifar_resnet8"
        assert json.loads(again.metadata()["mean"]) == [0.305]
        assert json.loads(again.metadata()["input_size"]) == [1, 8, 8]
        assert json.loads(again.metadata()["classes"]) == list("0123456789")
        assert set(again.keys()) == set(shipped.keys())
        assert all(torch.equal(again.get_tensor(key), shipped.get_tensor(key)) for key in again.keys())  # noqa: SIM118


def test_branches_shows_forks_and_costs_in_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    status, out, _ = run(capsys, "branches", "resnet50", "--num-classes", "10")
    assert status == 0
    assert max(map(len, out.splitlines())) <= 80
    assert "resnet50, images 3x224x224" in out
    assert re.search(r"28x28 x 512 +layer2.0", out)
    assert "b1 forks at layer3" in out
    assert "costs 2.03 times the baseline's" in out
    narrow = run(capsys, "branches", "resnet50", "--num-classes", "10", "--width", "1", "--kind", "auto")[1]
    assert "costs 1.54 times" in narrow


def test_branches_tells_programs_the_same(capsys):
    _, out, _ = run(capsys, "branches", "convnext_atto", "--at", "stages.0", "--small-input", "--json")
    assert out == ""  # a stem of patches cannot be adapted
    _, out, _ = run(capsys, "branches", "eca_nfnet_l0", "--at", "stages.0", "stages.2", "--json")
    told = json.loads(out)
    assert [each["at"] for each in told["costs"]] == ["", "stages.2", "stages.0"]
    assert told["notes"][0].startswith("b1 is as wide as main: it cannot be widened at 'stages.3.0")
    assert {"at": "stages.0", "shape": [256, 56, 56], "channels": 256, "cells": 3136} in told["places"]


def test_a_second_ctrl_c_says_what_goes_on_from_the_last_checkpoint(capsys):
    def stop():
        raise KeyboardInterrupt

    assert exit_status(stop, "sidebranch train run --resume") == 128 + signal.SIGINT
    told = "sidebranch: stopped at once; from the last checkpoint: sidebranch train run --resume\n"
    assert capsys.readouterr().err == told


def test_the_version_is_said(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"sidebranch {sb.__version__}\n"


def test_help_fits_a_terminal(capsys):
    assert main(["--help"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80
