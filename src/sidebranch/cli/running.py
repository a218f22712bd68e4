"""What the commands that train share: the exit status of a run that was stopped."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable


def exit_status(train: Callable[[], None], how_to_resume: str) -> int:
    """Runs a training to its end: 0; 128 + n after signal n; 75 if one of several processes was lost."""
    from sidebranch.distributed.processes import ProcessLost, is_main_process, leave
    from sidebranch.train.signals import Interrupted

    try:
        train()
    except Interrupted as stop:
        if is_main_process():
            print(f"sidebranch: {stop}; {how_to_resume} to resume", file=sys.stderr)
        leave()
        return 128 + stop.signal
    except ProcessLost as error:
        print(f"sidebranch: {error}; add --resume to continue from the last checkpoint", file=sys.stderr)
        return os.EX_TEMPFAIL
    leave()
    return 0
