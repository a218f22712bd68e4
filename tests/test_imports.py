"""Imports point one way: a file imports only from rooms above its own in docs/design.md, or from its own."""

import ast
import subprocess
import sys

import pytest

import sidebranch
from rooms import ALLOWED, ROOT, room_of, rooms_of, table

FILES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(ROOT)) for path in FILES])
def test_imports_point_one_way(path):
    room = room_of(path)
    wrong = rooms_of(path) - set(ALLOWED[room]) - {room}
    assert not wrong, f"{path.relative_to(ROOT)} may not import {sorted(wrong)}"


def test_the_table_has_only_rooms_above():
    names = list(ALLOWED)
    for place, name in enumerate(names):
        assert set(ALLOWED[name]) <= set(names[:place]), name


def test_an_upward_import_would_be_seen():
    for source in ("from sidebranch.train import x", "from ..train import x", "import sidebranch.train.loop"):
        path = ROOT / "data" / "not_there.py"
        assert rooms_of(path, source) == {"train"}
    assert rooms_of(path, "from sidebranch import train") == {"train"}


def test_the_design_shows_the_table():
    assert table() in (ROOT.parent.parent / "docs" / "design.md").read_text(), "run: python tests/rooms.py"


def test_no_file_is_longer_than_400_lines():
    project = ROOT.parent.parent
    for folder in ("src", "tests", "benchmarks"):
        for path in (project / folder).rglob("*.py"):
            assert len(path.read_text().splitlines()) <= 400, path


BLOCK = "import sys; sys.modules.update(dict.fromkeys({blocked!r}))\n"  # as if they were not installed


def run(code, *blocked):
    code = BLOCK.format(blocked=list(blocked)) + code
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


OUTSIDE = ("timm", "torchvision", "lightning", "jaxtyping", "jsonargparse", "rich", "safetensors", "yaml", "PIL")


def test_the_core_works_with_torch_alone():
    code = """
import torch
from torch import nn
import sidebranch as sb
from sidebranch.core import BranchedModel, SideBranch, dhm
backbone = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
net = BranchedModel(backbone, [SideBranch("b1", "0", nn.Linear(8, 3))])
net.watch_features(necks="batch_norm")
dhm()(net(torch.randn(5, 4)), torch.tensor([0, 1, 2, 0, 1])).total.backward()
assert set(net.shipped_state_dict()) == set(backbone.state_dict())
sb.small_input, sb.grow, sb.Bernoulli
"""
    ended = run(code, *OUTSIDE)
    assert ended.returncode == 0, ended.stderr


def test_attach_works_with_torch_and_timm_alone():
    code = """
import timm, torch, sidebranch as sb
net = sb.attach(timm.create_model("cifar_resnet20", num_classes=5))
sb.dks()(net(torch.randn(2, 3, 32, 32)), torch.tensor([0, 1])).total.backward()
sb.attach(timm.create_model("test_resnet", num_classes=5), "auto")
"""
    ended = run(code, "lightning", "jaxtyping", "jsonargparse", "rich", "matplotlib", "sklearn", "tensorboard")
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize(
    "order", ["import timm, sidebranch", "import sidebranch, timm", "import sidebranch.errors, timm"]
)
def test_the_papers_networks_are_timms_whichever_is_imported_first(order):
    code = f"{order}\nassert timm.is_model('cifar_resnet20') and timm.is_model('resnet18')\nassert timm.__file__"
    ended = run(code)
    assert ended.returncode == 0, ended.stderr


def test_the_command_names_the_extra_that_is_missing():
    ended = run("from sidebranch.cli import main; sys.exit(main(['recipes']))", "jsonargparse")
    assert ended.returncode == 2
    assert ended.stderr == (
        "sidebranch: the command needs jsonargparse, which is not installed: pip install 'sidebranch[train]'\n"
    )


OPTIONAL = {"onnx", "onnxruntime", "onnxscript", "ray", "webdataset", "datasets", "nvidia", "wandb", "mlflow"}
OPTIONAL |= {"pytorch_metric_learning", "jaxtyping"}
RUNS_ALONE = {"run_exits.py"}  # what is shipped to where ONNX Runtime is


def test_what_an_extra_brings_is_imported_only_where_it_is_needed():
    """Not when a file is imported: `pip install 'sidebranch[train]'` must do without."""
    for path in FILES:
        names = set()
        for node in ast.parse(path.read_text()).body:
            names |= {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
            if isinstance(node, ast.ImportFrom):
                names |= {node.module or "", *(alias.name for alias in node.names)}
        wrong = {name.split(".")[0] for name in names} & OPTIONAL
        assert not wrong or path.name in RUNS_ALONE, f"{path.relative_to(ROOT)}: {sorted(wrong)}"
        assert "run_exits" not in " ".join(names), f"{path.relative_to(ROOT)} imports a file that runs alone"


def test_the_lazy_names_are_those_that_type_checkers_see():
    tree = ast.parse((ROOT / "__init__.py").read_text())
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.name: node.module.removeprefix("sidebranch.")
        for node in guarded.body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
    assert seen == sidebranch._MODULE_OF
    assert sorted(seen) == sidebranch.__all__
    for name in sidebranch.__all__:
        assert getattr(sidebranch, name).__name__ == name
    assert set(sidebranch.__all__) <= set(dir(sidebranch))
    with pytest.raises(AttributeError, match="no attribute 'atach'"):
        _ = sidebranch.atach  # pyright: ignore[reportAttributeAccessIssue]


def test_type_information_ships():
    assert (ROOT / "py.typed").is_file()


LIGHT = """
import sys
from sidebranch.cli import main
try:
    status = main(sys.argv[1:])
except SystemExit as end:
    status = end.code
heavy = {"torch", "torchvision", "timm", "lightning", "sklearn"} & set(sys.modules)
assert not heavy, heavy
sys.exit(status)
"""


def light(*arguments):
    return subprocess.run([sys.executable, "-c", LIGHT, *map(str, arguments)], capture_output=True, text=True)


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ("--help", 0),
        ("train --help", 0),
        ("train cifar100/resnet32 --help", 0),
        ("prepare check --help", 0),
        ("eval --help", 0),
        ("trian", 2),
        ("train cifar100/resnet32 --optim.epoch 3", 2),
        ("train cifar100/resnet32 --optim.lr -1", 2),
        ("train cifar100/resnet32 --print-config", 0),
        ("report nothing", 2),
        ("recipes", 0),
    ],
)
def test_no_torch_is_imported_for(words, status):
    ended = light(*words.split())
    assert ended.returncode == status, ended.stderr
    assert "Traceback" not in ended.stderr


def test_no_torch_is_imported_to_check_a_folder(photos):
    ended = light("prepare", "check", photos)
    assert ended.returncode == 0, ended.stderr


def test_importing_the_package_imports_nothing_else():
    code = "import sidebranch; assert not {'torch', 'timm', 'numpy'} & set(sys.modules)"
    ended = run(code)
    assert ended.returncode == 0, ended.stderr
