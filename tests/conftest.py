"""Array shapes and dtypes in annotations are checked while the tests run; in production they are free."""

import collections
import gc
import json
import os
from pathlib import Path

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import builtins

import jaxtyping

CHECKED = ["core.objective", "core.sampling", "seeding", "data.augmentation.batched", "data.corruption", "metrics"]
jaxtyping.install_import_hook([f"sidebranch.{room}" for room in CHECKED], "typechecker.check")
# The package imports these names for type checkers only; beartype looks them up when it reads the annotations.
for name in ("Bool", "Float", "Int", "Int32", "UInt8"):
    setattr(builtins, name, getattr(jaxtyping, name))

import pytest
import torch
from PIL import Image
from xdist.scheduler import LoadScopeScheduling

import sidebranch as sb
from networks import Little, little_branches
from sidebranch.config import recipe
from sidebranch.config.schema import Config
from sidebranch.runs.folder import RunFolder

# Tests that share processes or runs that are slow to make: one worker takes them all. (pytest-xdist 3.8 does not
# see the marks of its own groups under pytest 9.2.)
GROUPS = {
    "tests/faults/test_kills.py": "trainer",
    "tests/faults/test_disk.py": "trainer",
    "tests/distributed/test_processes.py": "ranks",
    "tests/distributed/test_gather.py": "ranks",
    "tests/distributed/test_ddp.py": "ranks",
    "tests/study/test_study.py": "ranks",
    "tests/test_cli.py::test_replicas_are_the_same_runs_as_alone": "ranks",
    "tests/core/test_model.py::test_network_and_loss_compile_together": "ranks",
    "tests/train/test_resume.py": "resumed",
    "tests/reid/test_retrieval.py": "people",
    "tests/reid/test_gallery.py": "people",
    "tests/deploy/test_formats.py": "exports",
    "tests/inspect/test_page_in_a_browser.py": "pages",
    "tests/inspect/test_report.py": "pages",
}


class ByGroup(LoadScopeScheduling):
    """Sends the tests of a group to one worker, all others one by one."""

    def _split_scope(self, nodeid):
        return GROUPS.get(nodeid.split("::")[0]) or GROUPS.get(nodeid, nodeid)


def pytest_collection_finish(session):
    """What was imported stays: without this, every full collection of garbage walks through all of torch."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    return ByGroup(config, log)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def little_net():
    return sb.attach(Little(), little_branches())


@pytest.fixture
def images():
    return torch.randn(6, 1, 8, 8)


@pytest.fixture
def labels():
    return torch.tensor([0, 1, 2, 3, 9, 9])


@pytest.fixture
def digits_config(tmp_path) -> Config:
    """Two epochs of three steps on the digits, in float32."""
    text = """
model: {name: cifar_resnet8}
data: {name: digits, batch_size: 64, limit: 160, padding: 1, flip: false}
optim: {lr: 0.05, epochs: 2, schedule: cosine}
runtime: {accelerator: cpu, precision: 32-true, log_every: 1}
"""
    path = tmp_path / "digits.yaml"
    path.write_text(text)
    return recipe.load(path)


@pytest.fixture
def photos(tmp_path):
    """A folder of 3 classes, 4 training and 2 validation images each."""
    for part, count in (("train", 4), ("val", 2)):
        for label in ("ant", "bee", "cat"):
            place = tmp_path / "photos" / part / label
            place.mkdir(parents=True)
            for i in range(count):
                pixels = torch.randint(0, 256, (24, 30, 3), dtype=torch.uint8).numpy()
                Image.fromarray(pixels).save(place / f"{i}.png")
    return tmp_path / "photos"


@pytest.fixture
def folder(tmp_path):
    """Of a run."""
    return RunFolder(tmp_path / "run")


COUNTS = pytest.StashKey()  # of tests/faults: what was tried and lost


def pytest_addoption(parser):
    parser.addoption("--record", type=Path, default=None, help="write the counts of tests/faults to this file")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    if item.path.parent.name == "faults" and (report.when == "call" or report.failed):
        counts = item.config.stash.setdefault(COUNTS, collections.defaultdict(lambda: {"tried": 0, "lost": 0}))
        kind = item.path.stem.removeprefix("test_")
        counts[kind]["tried"] += 1
        counts[kind]["lost"] += report.failed


def pytest_sessionfinish(session):
    gc.unfreeze()  # libraries report what is left at the end
    path = session.config.getoption("--record")
    counts = session.config.stash.get(COUNTS, None)
    if path is not None and counts:
        rows = {kind: each | {"survived": each["tried"] - each["lost"]} for kind, each in sorted(counts.items())}
        path.write_text(json.dumps(rows, indent=1) + "\n")
