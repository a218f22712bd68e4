"""Other people's loops: each example trains, ships and reads back what it trained."""

import runpy
import warnings
from pathlib import Path

import pytest

from forked import run_ranks

EXAMPLES = Path(__file__).parent.parent / "examples"
ALONE = sorted(path.stem for path in EXAMPLES.glob("*.py") if path.stem != "ddp")
CHANCE = 90.0


def train(name, epochs):
    """The error of main on the validation digits, in percent."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the other libraries
        return runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"](epochs)


@pytest.mark.parametrize("name", ALONE)
def test_an_example_learns(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert train(name, 3) < CHANCE / 3


def two_epochs():
    assert train("ddp", 2) < CHANCE / 2


def test_the_example_of_several_processes_learns(tmp_path):
    statuses, messages = run_ranks(2, tmp_path, two_epochs)
    assert statuses == [0, 0], messages


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_is_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < 60
