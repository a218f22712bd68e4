"""Processes forked from one that has imported torch and sidebranch, so that each starts within milliseconds.

They do not have the checks of shapes that conftest.py puts around functions.
"""

import os
import socket
import sys
import warnings
from multiprocessing import get_context
from pathlib import Path

FORKING = get_context("forkserver")
FORKING.set_forkserver_preload(["torch", "timm", "torchvision", "lightning.fabric", "sidebranch.train.loop"])
SECONDS = 240  # that a job may take


def run_ranks(count, folder, function, *arguments):
    """Runs `function(*arguments)` in `count` processes, with the environment that torchrun gives to each.

    Returns:
        The exit status of each, and what each wrote to standard error.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    logs = [Path(folder, f"rank{rank}.log") for rank in range(count)]
    job = []
    for rank, log in enumerate(logs):
        environment = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "TORCHELASTIC_RUN_ID": "tests",
            "OMP_NUM_THREADS": "1",
        }
        job.append(FORKING.Process(target=_run, args=(environment, log, function, arguments)))
        job[-1].start()
    for process in job:
        process.join(SECONDS)
        process.kill()
        process.join()
    return [process.exitcode for process in job], [log.read_text() for log in logs]


def _run(environment, log, function, arguments):
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT, 0o600), sys.stderr.fileno())
    os.environ |= environment
    warnings.simplefilter("error", UserWarning)
    sys.exit(function(*arguments))
