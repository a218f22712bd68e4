"""Cells as tasks of a Ray cluster. The study's folder must be at the same path on every machine of it."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sidebranch.errors import UserError, reason
from sidebranch.study import process
from sidebranch.study.cells import Cell
from sidebranch.train.signals import handled

POLL = 0.5  # seconds
RETRIES = 3  # of a cell whose worker or machine was lost; it resumes


def run_cells(
    cells: Sequence[Cell],
    address: str,
    cpus: float,
    gpus: float,
    parallel: int,
    watch: Callable[[Sequence[Cell]], None],
) -> int:
    """Trains cells as tasks until all have ended or a signal comes, which is handed on to them.

    Args:
        cells: to train, in order; those with a run are resumed.
        address: of a cluster, as `ray.init` takes it; empty: one on this machine, for as long as this lasts.
        cpus: of a task; also the threads that it computes with.
        gpus: of a task; may be a part of one.
        parallel: tasks at a time on a cluster of this machine's own.
        watch: called twice a second with the running cells.

    Returns:
        0; 128 + n after signal n; 1 if a cell failed.

    Raises:
        UserError: Ray is not installed, or there is no cluster at the address.
    """
    try:
        import ray
        from ray.exceptions import RayError
    except ImportError as error:
        raise UserError("--launcher ray needs Ray: pip install 'sidebranch[ray]'") from error
    own: dict[str, Any] = {"num_cpus": cpus * parallel, "include_dashboard": False} if not address else {}
    try:
        ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **own)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(f"no Ray cluster at '{address}': {' '.join(str(error).split())}") from error
    received: list[int] = []
    stop = cells[0].logs / process.STOP
    stop.unlink(missing_ok=True)
    previous = {number: signal.signal(number, lambda n, _: received.append(n)) for number in handled()}
    try:
        _check_room(ray.nodes(), cpus, gpus)
        train = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES)(process.train_cell)
        tasks = {train.remote(cell, max(1, int(cpus))): cell for cell in cells}
        failed = False
        while tasks:
            ended, _ = ray.wait(list(tasks), num_returns=1, timeout=POLL)
            for task in ended:
                cell = tasks.pop(task)
                try:
                    failed |= ray.get(task) not in (0, *process.STOPPED)
                except RayError as error:  # lost more often than it may be, or cancelled
                    if not received:
                        process.keep_failure(cell, 1, reason(getattr(error, "cause", None) or error))
                        failed = True
            if received:
                stop.touch()
            watch([cell for cell in tasks.values() if cell.is_held()])
        watch([])
    finally:
        ray.shutdown()
        stop.unlink(missing_ok=True)
        for number, handler in previous.items():
            signal.signal(number, handler)
    return 128 + received[0] if received else int(failed)


def _check_room(nodes: Sequence[Mapping[str, Any]], cpus: float, gpus: float) -> None:
    """Refuses tasks that no machine of the cluster could ever run."""
    rooms = [node["Resources"] for node in nodes if node["Alive"]]
    if not any(room.get("CPU", 0) >= cpus and room.get("GPU", 0) >= gpus for room in rooms):
        sizes = ", ".join(sorted({f"{room.get('CPU', 0):g} CPUs and {room.get('GPU', 0):g} GPUs" for room in rooms}))
        raise UserError(f"a cell asks for {cpus:g} CPUs and {gpus:g} GPUs; the cluster's machines have {sizes}")
