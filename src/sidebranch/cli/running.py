"""Shared by the commands that run networks: exit statuses, and what Lightning may print."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable


def exit_status(train: Callable[[], None], go_on: str) -> int:
    """Runs a training to its end: 0; 128 + n after signal n; 75 if one of several processes was lost.

    Args:
        train: the training.
        go_on: the command that resumes it, or words for it.
    """
    from sidebranch.distributed.processes import ProcessLost, is_main_process, leave
    from sidebranch.train.signals import Interrupted

    quiet_libraries()
    try:
        train()
    except Interrupted as stop:
        if is_main_process():
            print(f"sidebranch: {stop}; go on: {go_on}", file=sys.stderr)
        leave()
        return 128 + stop.signal
    except KeyboardInterrupt:
        if is_main_process():
            print(f"sidebranch: stopped at once; from the last checkpoint: {go_on}", file=sys.stderr)
        leave()
        return 128 + signal.SIGINT
    except ProcessLost as error:
        print(f"sidebranch: {error}; add --resume to continue from the last checkpoint", file=sys.stderr)
        return os.EX_TEMPFAIL
    leave()
    return 0


def quiet_libraries() -> None:
    """Leaves out Lightning's lines on hardware and precision, and the hub's on every failed download attempt.

    A run prints its own. Lightning sets its levels on import: call this afterwards.
    """
    for name in ("lightning.fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    # This one says that it ends the process because another process has ended.
    logging.getLogger("lightning.fabric.strategies.launchers.subprocess_script").setLevel(logging.INFO)
