"""Several commands at the same time on one device, each in its own process.

In: name to command line. Out: the exit statuses. Each line that a command prints is prefixed with its name.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from threading import Thread
from types import FrameType
from typing import IO, TextIO

from sidebranch.train.signals import handled

PR_SET_PDEATHSIG = 1  # of Linux's prctl: the signal that a process gets when its parent dies


def run_replicas(commands: Mapping[str, Sequence[str]], threads: int) -> dict[str, int]:
    """Runs the commands until all have ended. Signals are passed on; if this process dies, they get SIGTERM (Linux).

    Args:
        commands: name to command line.
        threads: that each command may compute with.

    Returns:
        Name to exit status; 128 + n if signal n ended the command.
    """
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
    running: dict[str, subprocess.Popen[str]] = {}
    readers: list[Thread] = []

    def forward(number: int, frame: FrameType | None) -> None:
        for process in running.values():
            if process.poll() is None:
                process.send_signal(number)

    previous = {number: signal.signal(number, forward) for number in handled()}
    try:
        for name, command in commands.items():
            running[name] = process = subprocess.Popen(
                command,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                start_new_session=True,  # so that a terminal's Ctrl-C reaches the commands only once, by `forward`
                preexec_fn=die_with_parent(),
            )
            for source, target in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
                readers.append(Thread(target=_copy_lines, args=(source, target, name)))
                readers[-1].start()
        ended = {name: process.wait() for name, process in running.items()}
        for reader in readers:
            reader.join()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return {name: exit_status(status) for name, status in ended.items()}


def exit_status(returncode: int) -> int:
    """As a shell gives it: 128 + n of a process that died by signal n."""
    return returncode if returncode >= 0 else 128 - returncode


def die_with_parent() -> Callable[[], None] | None:
    """A function for the new process that asks the kernel for SIGTERM when its parent dies; None where it cannot."""
    if sys.platform != "linux":
        return None
    library, parent = ctypes.CDLL(None, use_errno=True), os.getpid()

    def ask() -> None:
        library.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:  # it died before the call
            os.kill(os.getpid(), signal.SIGTERM)

    return ask


def _copy_lines(source: IO[str], target: TextIO, name: str) -> None:
    with source:
        for line in source:
            try:
                target.write(f"{name} | {line}")
                target.flush()
            except (OSError, ValueError):  # the terminal is gone: read on, so that the command does not block
                continue
