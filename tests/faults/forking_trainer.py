"""Forks training runs, so that each starts within milliseconds and may be killed at any moment.

A line of JSON in: {"config": PATH, "folder": PATH, "resume": BOOL, "signal": NUMBER or null, "after": SECONDS,
"largest": bytes that a file may have, or null}.
A line of JSON out: {"status": exit status, -n where signal n ended it, 2 for bad input or a full disk; "seconds": that
it lived}; the child's error message goes to FOLDER.error.
"""

import json
import os
import resource
import signal
import sys
import time
import traceback
from pathlib import Path

from sklearn.datasets import load_digits

from sidebranch.config import recipe
from sidebranch.errors import UserError
from sidebranch.runs.folder import RunFolder
from sidebranch.train.loop import train
from sidebranch.train.signals import Interrupted


def run(request):
    if request["largest"] is not None:  # writing beyond fails as on a full disk
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["largest"], resource.RLIM_INFINITY))
    try:
        train(recipe.load(Path(request["config"])), RunFolder(Path(request["folder"])), resume=request["resume"])
    except Interrupted as stop:
        return 128 + stop.signal
    except UserError as error:
        Path(f"{request['folder']}.error").write_text(str(error))
        return 2
    except KeyboardInterrupt:  # before training began
        return 128 + signal.SIGINT
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def main():
    load_digits()  # what is slow to import is imported once
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        started = time.perf_counter()
        child = os.fork()
        if child == 0:
            os.setpgrp()
            os._exit(run(request))
        if request["signal"]:
            time.sleep(request["after"])
            os.kill(child, request["signal"])  # a child that has ended is still there to be waited for
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(json.dumps({"status": status, "seconds": time.perf_counter() - started}), flush=True)


if __name__ == "__main__":
    main()
