"""`pytest tests/faults -m '' --record results/faults.json` runs all and counts what was tried, survived and lost."""

import collections
import json
from pathlib import Path

import pytest


def pytest_addoption(parser):
    parser.addoption("--record", type=Path, default=None, help="write the counts of tests/faults to this file")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    if item.path.parent == Path(__file__).parent and (report.when == "call" or report.failed):
        counts = item.config.stash.setdefault(COUNTS, collections.defaultdict(lambda: {"tried": 0, "lost": 0}))
        kind = item.path.stem.removeprefix("test_")
        counts[kind]["tried"] += 1
        counts[kind]["lost"] += report.failed


COUNTS = pytest.StashKey()


def pytest_sessionfinish(session):
    path = session.config.getoption("--record", None)
    counts = session.config.stash.get(COUNTS, None)
    if path is not None and counts:
        rows = {kind: each | {"survived": each["tried"] - each["lost"]} for kind, each in sorted(counts.items())}
        path.write_text(json.dumps(rows, indent=1) + "\n")
