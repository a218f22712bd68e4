"""Cells in several processes on this machine, which share its cores and GPUs out."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen
from types import FrameType

from sidebranch.config import recipe
from sidebranch.runs.atomic_files import write_text
from sidebranch.study.cells import Cell
from sidebranch.study.replicas import FORWARDED, die_with_parent

POLL = 0.5  # seconds


@dataclass
class Running:
    """A cell that trains in a process."""

    cell: Cell
    process: Popen[bytes]
    slot: int


def run_cells(
    cells: Sequence[Cell], parallel: int, threads: int, gpus: Sequence[str], watch: Callable[[Sequence[Running]], None]
) -> int:
    """Trains cells until all have ended or a signal comes, which is handed on to their processes.

    Args:
        cells: to train, in order; those with a run are resumed.
        parallel: processes at a time.
        threads: that each may compute with.
        gpus: names of the devices, as in CUDA_VISIBLE_DEVICES; the processes take them in turns.
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

    previous = {number: signal.signal(number, forward) for number in FORWARDED}
    try:
        while running or (waiting and not received):
            while waiting and len(running) < parallel and not received:
                taken = {each.slot for each in running}
                slot = next(number for number in range(parallel) if number not in taken)
                running.append(_start(waiting.pop(0), slot, threads, gpus))
            watch(running)
            time.sleep(POLL)
            for each in [each for each in running if each.process.poll() is not None]:
                running.remove(each)
                failed |= not _note(each)
        watch(running)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return 128 + received[0] if received else int(failed)


def _start(cell: Cell, slot: int, threads: int, gpus: Sequence[str]) -> Running:
    cell.logs.mkdir(parents=True, exist_ok=True)
    config = cell.logs / f"{cell.name}.yaml"
    write_text(config, recipe.dump(cell.config))
    cell.outcome.unlink(missing_ok=True)
    command = [sys.executable, "-m", "sidebranch", "train", str(config), "--output", str(cell.folder.root)]
    command += ["--resume"] if cell.folder.is_used() else []
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
    with open(_log(cell, "log"), "ab") as out, open(_log(cell, "err"), "wb") as err:
        process = Popen(
            command, env=environment, stdout=out, stderr=err, start_new_session=True, preexec_fn=die_with_parent()
        )
    return Running(cell, process, slot)


def _note(ended: Running) -> bool:
    """Keeps a failure's message; returns whether the cell is done, or was stopped and can be resumed."""
    status = ended.process.returncode
    if status == 0 or status in [128 + number for number in FORWARDED]:
        return True
    lines = _log(ended.cell, "err").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    message = lines[-1] if lines else f"ended with status {status}"
    write_text(ended.cell.outcome, json.dumps({"status": status, "message": message}) + "\n")
    return False


def _log(cell: Cell, kind: str) -> Path:
    return cell.logs / f"{cell.name}.{kind}"


def gpus_here() -> list[str]:
    """Names of the NVIDIA devices of this machine, or of those that CUDA_VISIBLE_DEVICES leaves."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [each.strip() for each in visible.split(",") if each.strip()]
    return [str(number) for number, _ in enumerate(Path("/dev").glob("nvidia[0-9]*"))]
