"""Runs killed at random moments, resumed, and compared, bit for bit, with one that was left alone."""

import random
import signal

import pytest
from sampled import one_in
from undisturbed_runs import assert_same, outcome

from sidebranch.runs.folder import RunFolder

KINDS = ("digits", "photos", "workers")
TRIALS = 45
GENTLE = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 128 + signal.SIGUSR1}


@pytest.mark.parametrize("trial", one_in(5, range(TRIALS)))
def test_a_killed_run_ends_as_if_left_alone(trainer, undisturbed, tmp_path, trial):
    draw = random.Random(trial)
    kind = KINDS[trial % len(KINDS)]
    config, expected, seconds = undisturbed[kind]
    for attempt in range(draw.choice((1, 1, 1, 2, 3))):
        number = draw.choice((signal.SIGKILL, signal.SIGKILL, *GENTLE))
        began = (tmp_path / "config.yaml").exists()
        ended = trainer.run(config, tmp_path, began, number, after=draw.uniform(0, seconds))
        assert ended["status"] in (0, -number, GENTLE.get(number)), f"attempt {attempt}"
    if kind == "photos":  # as many workers as one likes
        config = undisturbed["workers"][0]
    last = trainer.run(config, tmp_path, resume=(tmp_path / "config.yaml").exists())
    assert last["status"] == 0
    assert_same(outcome(tmp_path), expected)


@pytest.mark.parametrize("harm", ["truncated", "flipped", "emptied", "gone"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(trainer, undisturbed, tmp_path, harm):
    config, expected, seconds = undisturbed["digits"]
    while not RunFolder(tmp_path).previous.exists():
        resume = RunFolder(tmp_path).last.exists()
        trainer.run(config, tmp_path / "", resume, signal.SIGTERM, 0.6 * seconds)
    path = RunFolder(tmp_path).last
    content = bytearray(path.read_bytes())
    if harm == "truncated":
        content = content[: len(content) // 2]
    elif harm == "flipped":
        content[len(content) // 2] ^= 1
    path.unlink()  # a hard link's other name keeps its content
    if harm != "gone":
        path.write_bytes(b"" if harm == "emptied" else content)
    assert trainer.run(config, tmp_path, resume=True)["status"] == 0
    assert_same(outcome(tmp_path), expected)
