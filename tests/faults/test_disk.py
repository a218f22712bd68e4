"""A disk that fills at some moment of a run: a clear line, nothing lost, and the run goes on when there is room."""

import random

import pytest
from test_kills import assert_same, nursery, outcome, undisturbed  # noqa: F401 (fixtures)
from thirds import a_third

from sidebranch.engine import RunFolder

TRIALS = 18
pytestmark = pytest.mark.xdist_group("nursery")


@pytest.mark.parametrize("trial", a_third(range(TRIALS)))
def test_a_disk_that_fills(nursery, undisturbed, tmp_path, trial):  # noqa: F811
    config, expected, _ = undisturbed["digits"]
    draw = random.Random(trial)
    folder = tmp_path / "run"
    size = RunFolder(config.parent / "digits").last.stat().st_size
    largest = draw.choice((draw.randrange(4096), draw.randrange(size // 8), draw.randrange(size)))
    ended = nursery.run(config, folder, largest=largest)
    said = (tmp_path / "run.said").read_text()
    assert ended["status"] == 2, said
    assert "\n" not in said
    assert str(folder) in said
    begun = RunFolder(folder).config.exists()
    assert nursery.run(config, folder, resume=begun)["status"] == 0
    assert_same(outcome(folder), expected)
