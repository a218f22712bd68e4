"""Runs device_waits.py in a process of its own: fake tensors and what other tests cache do not go together."""

import subprocess
import sys
from pathlib import Path


def test_no_step_waits_for_the_device():
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        Path(__file__).with_name("device_waits.py"),
    ]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout
