"""Several commands at once on one device, each in a process of its own.

In: a name and a command line each. Out: their exit statuses; what they print comes out line by line behind their names.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from threading import Thread
from types import FrameType
from typing import IO, TextIO


def run_at_once(commands: Mapping[str, Sequence[str]], threads: int) -> dict[str, int]:
    """Runs them to their ends; SIGINT and SIGTERM are handed on to all.

    Args:
        commands: name to command line.
        threads: that each may compute with.

    Returns:
        Name to exit status; 128 + n for one that signal n ended.
    """
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
    running: dict[str, subprocess.Popen[str]] = {}
    readers: list[Thread] = []

    def hand_on(number: int, frame: FrameType | None) -> None:
        for process in running.values():
            if process.poll() is None:
                process.send_signal(number)

    before = {number: signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for name, command in commands.items():
            running[name] = process = subprocess.Popen(
                command,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                start_new_session=True,  # a terminal's Ctrl-C comes by way of this process, once
            )
            for source, target in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
                readers.append(Thread(target=_copy_lines, args=(source, target, name)))
                readers[-1].start()
        ended = {name: process.wait() for name, process in running.items()}
        for reader in readers:
            reader.join()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return {name: status if status >= 0 else 128 - status for name, status in ended.items()}


def _copy_lines(source: IO[str], target: TextIO, name: str) -> None:
    with source:
        for line in source:
            target.write(f"{name} | {line}")
            target.flush()
