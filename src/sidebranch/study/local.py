"""Cells in several processes on this machine, which share its cores and GPUs out."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import CalledProcessError, Popen, check_output
from types import FrameType

from sidebranch.errors import UserError
from sidebranch.study import process
from sidebranch.study.cells import Cell
from sidebranch.study.replicas import exit_status
from sidebranch.train.signals import handled

POLL = 0.5  # seconds
IDLE = 0.05  # of a GPU's memory: what an idle one may show as used


@dataclass
class Running:
    """A cell that trains in a process."""

    cell: Cell
    process: Popen[bytes]
    slot: int


def run_cells(
    cells: Sequence[Cell], slots: Sequence[str | None], threads: int, watch: Callable[[Sequence[Cell]], None]
) -> int:
    """Trains cells until all have ended or a signal comes, which is handed on to their processes.

    Args:
        cells: to train, in order; those with a run are resumed.
        slots: a process at a time each: the name of its GPU, as in CUDA_VISIBLE_DEVICES, or None.
        threads: that each may compute with.
        watch: called twice a second with the running cells.

    Returns:
        0; 128 + n after signal n; 1 if a cell failed.
    """
    waiting, running, received = list(cells), [], []
    failed = False

    def forward(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for each in running:
            if each.process.poll() is None:
                each.process.send_signal(number)

    previous = {number: signal.signal(number, forward) for number in handled()}
    try:
        while running or (waiting and not received):
            while waiting and len(running) < len(slots) and not received:
                taken = {each.slot for each in running}
                slot = next(number for number in range(len(slots)) if number not in taken)
                cell = waiting.pop(0)
                running.append(Running(cell, process.start(cell, threads, slots[slot]), slot))
                for number in received:  # that came while it was started
                    running[-1].process.send_signal(number)
            watch([each.cell for each in running])
            time.sleep(POLL)
            for each in [each for each in running if each.process.poll() is not None]:
                running.remove(each)
                failed |= not process.is_well(each.cell, exit_status(each.process.returncode))
        watch([])
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return 128 + received[0] if received else int(failed)


def slots_of(parallel: int, gpus: Sequence[str], free: Sequence[float], share: float) -> list[str | None]:
    """What each process computes on: GPUs in turns, as many processes on one as its free memory holds.

    Args:
        parallel: processes that are wanted.
        gpus: names of the devices; none: the CPU.
        free: share of each device's memory that nobody uses.
        share: of a device's memory that a process may take.

    Returns:
        At most `parallel` places.

    Raises:
        UserError: no device has that much memory left.
    """
    if not gpus:
        return [None] * parallel
    room = [int((each + IDLE) / share) for each in free]
    if not any(room):
        raise UserError(
            f"no GPU has {share:.0%} of its memory left (the most is {max(free):.0%}); give a lower --gpus, or wait"
        )
    rounds = [gpu for turn in range(max(room)) for gpu, places in zip(gpus, room, strict=True) if turn < places]
    return list(rounds[:parallel])


def gpus_here() -> list[str]:
    """Names of the NVIDIA devices of this machine, or of those that CUDA_VISIBLE_DEVICES leaves."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        names = [each.strip() for each in visible.split(",")]
        return [name for name in names if name and name != "-1"]
    return [str(number) for number, _ in enumerate(Path("/dev").glob("nvidia[0-9]*"))]


def free_memory(gpus: Sequence[str]) -> list[float]:
    """The share of each device's memory that nobody uses, as nvidia-smi says; 1 where it cannot be asked."""
    query = ["--query-gpu=memory.free,memory.total", "--format=csv,noheader,nounits", f"--id={','.join(gpus)}"]
    try:
        lines = check_output(["nvidia-smi", *query], text=True).strip().splitlines()
        return [int(free) / int(total) for free, total in (line.split(",") for line in lines)]
    except (OSError, CalledProcessError, ValueError):
        return [1.0] * len(gpus)
