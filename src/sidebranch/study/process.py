"""One cell in a process of its own. In: a cell, threads, a GPU. Out: its exit status; a failure's message."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from subprocess import Popen
from types import FrameType

from sidebranch.errors import UserError
from sidebranch.runs.atomic_files import write_text
from sidebranch.runs.lock import is_free
from sidebranch.study.cells import Cell
from sidebranch.study.replicas import die_with_parent, exit_status
from sidebranch.train.signals import STOPPING, handled

STOPPED = tuple(128 + number for number in STOPPING)  # everything is saved, and the run can go on
POLL = 0.5  # seconds
STOP = "stop"  # in the study's logs: reaches processes on other machines
PATIENCE = 120.0  # seconds for a process that is about to end to let go of its run


def start(cell: Cell, threads: int, gpu: str | None = None) -> Popen[bytes]:
    """Starts a cell's training, or continues it; what it prints goes to the study's logs.

    Args:
        cell: with its config in `logs/`.
        threads: that the process may compute with.
        gpu: name of its device, as in CUDA_VISIBLE_DEVICES; all that are visible if left out.
    """
    cell.outcome.unlink(missing_ok=True)
    command = [sys.executable, "-m", "sidebranch", "train", str(cell.log("yaml")), "--output", str(cell.folder.root)]
    command += ["--resume"] if cell.folder.is_used() else []
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
    if gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpu
    with open(cell.log("log"), "ab") as out, open(cell.log("err"), "wb") as err:
        return Popen(
            command, env=environment, stdout=out, stderr=err, start_new_session=True, preexec_fn=die_with_parent()
        )


def is_well(cell: Cell, status: int) -> bool:
    """Whether a cell is done, or was stopped and can go on; else the last line that it printed is kept."""
    if status == 0 or status in STOPPED:
        return True
    lines = cell.log("err").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    keep_failure(cell, status, lines[-1] if lines else f"ended with status {status}")
    return False


def keep_failure(cell: Cell, status: int, message: str) -> None:
    """Makes a cell a failed one."""
    write_text(cell.outcome, json.dumps({"status": status, "message": message, "trains": cell.trains}) + "\n")


def train_cell(cell: Cell, threads: int) -> int:
    """Trains one cell and waits for it; signals, and a file `stop` in the study's logs, end it as Ctrl-C does.

    Returns:
        Its exit status.

    Raises:
        UserError: another process trains it, and does not end soon.
    """
    if cell.state().kind == "done":
        return 0
    ends = time.monotonic() + PATIENCE
    stop = cell.logs / STOP
    while not is_free(cell.folder.root):
        if time.monotonic() > ends:
            raise UserError(f"another process trains the cell {cell.name}")
        time.sleep(0.5)
    if stop.exists():
        return 128 + signal.SIGTERM
    process = start(cell, threads)

    def forward(number: int, frame: FrameType | None) -> None:
        process.send_signal(number)

    previous = {number: signal.signal(number, forward) for number in handled()}
    is_stopping = False
    try:
        while process.poll() is None:
            time.sleep(POLL)
            if stop.exists() and not is_stopping:
                is_stopping = True
                process.send_signal(signal.SIGTERM)  # Ray's workers block SIGINT, and so do their children
        status = exit_status(process.returncode)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    is_well(cell, status)
    return status
