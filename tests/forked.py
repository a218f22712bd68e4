"""Processes forked from one that has imported torch and sidebranch, so that each starts within milliseconds.

They do not have the checks of shapes that conftest.py puts around functions, and their pages have no charts.
"""

import os
import socket
import sys
import tempfile
import warnings
from multiprocessing import get_context
from pathlib import Path
from subprocess import PIPE

from sidebranch.cli import main

FORKING = get_context("forkserver")
PRELOAD = (
    "torch timm torchvision lightning.fabric sidebranch.train.loop pandas sklearn.datasets altair jinja2 cheap_pages"
)
FORKING.set_forkserver_preload(PRELOAD.split())
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


class ForkedCommand:
    """`subprocess.Popen` of `python -m sidebranch ...`, forked from the process that has imported everything."""

    def __init__(self, command, *, env, stdout, stderr, **options):
        assert command[1:3] == ["-m", "sidebranch"]
        if stdout == PIPE:
            logs = [Path(tempfile.mkdtemp(), name) for name in ("out", "err")]
            for log in logs:
                os.mkfifo(log)
        else:
            logs = [Path(each.name) for each in (stdout, stderr)]
        self.process = FORKING.Process(target=_command, args=(command[3:], env, *logs))
        self.process.start()
        self.stdout, self.stderr = map(Path.open, logs) if stdout == PIPE else (None, None)

    @property
    def returncode(self):
        return self.process.exitcode

    def poll(self):
        return self.process.exitcode

    def wait(self):
        self.process.join()
        return self.process.exitcode

    def send_signal(self, number):
        os.kill(self.process.pid, number)


def _command(arguments, environment, out, err):
    streams = []
    for path, stream in ((out, sys.stdout), (err, sys.stderr)):
        written = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(written, stream.fileno())
        streams.append(os.fdopen(written, "w", buffering=1))
    sys.stdout, sys.stderr = streams
    os.environ |= environment
    sys.exit(main(arguments))
