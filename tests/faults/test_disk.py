"""A disk that fills at some moment of a run: a clear line, nothing lost, and the run goes on when there is room."""

import random

import pytest
from sampled import one_in
from undisturbed_runs import assert_same, outcome

from sidebranch.runs.folder import RunFolder

TRIALS = 18


@pytest.mark.parametrize("trial", one_in(6, range(TRIALS)))
def test_a_disk_that_fills(trainer, undisturbed, tmp_path, trial):
    config, expected, _ = undisturbed["digits"]
    draw = random.Random(trial)
    folder = tmp_path / "run"
    size = RunFolder(config.parent / "digits").last.stat().st_size
    largest = draw.choice((draw.randrange(4096), draw.randrange(size // 8), draw.randrange(size)))
    ended = trainer.run(config, folder, largest=largest)
    message = (tmp_path / "run.error").read_text()
    assert ended["status"] == 2, message
    assert "\n" not in message
    assert str(folder) in message
    begun = RunFolder(folder).config.exists()
    assert trainer.run(config, folder, resume=begun)["status"] == 0
    assert_same(outcome(folder), expected)
