"""Signals that stop a run: collected while it trains, handled after a step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# Ctrl-C; termination by a scheduler; SLURM's early warning (`--signal=USR1@90`); the end of the terminal.
NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")
STOPPING = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))


class Interrupted(Exception):
    """A signal stopped the run after a step; its checkpoint is written.

    Attributes:
        signal: its number.
    """

    def __init__(self, signal: int, epoch: int, step: int) -> None:
        where = f"epoch {epoch + 1}, step {step}" if step else f"the end of epoch {epoch}"
        super().__init__(f"stopped at {where}; everything is saved")
        self.signal = signal


@contextmanager
def collected() -> Iterator[list[int]]:
    """Collects signals into a list, to be handled after a step; a second SIGINT raises at once."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    previous = {number: signal.signal(number, note) for number in handled()}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def handled() -> list[int]:
    """Those of STOPPING that count: under nohup, the end of the terminal is ignored, and stays so.

    A shell ignores SIGINT of background jobs: it counts.
    """
    hangup = getattr(signal, "SIGHUP", None)
    is_nohup = hangup is not None and signal.getsignal(hangup) == signal.SIG_IGN
    return [number for number in STOPPING if number != hangup or not is_nohup]
