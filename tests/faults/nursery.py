"""Forks training runs, so that each starts within milliseconds and may be killed at any moment.

A line of JSON in: {"config": PATH, "folder": PATH, "resume": BOOL, "signal": NUMBER or null, "after": SECONDS}.
A line of JSON out: {"status": exit status, -n where signal n ended it; "seconds": that it lived}.
"""

import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path

from sklearn.datasets import load_digits

from sidebranch.engine import Interrupted, RunFolder, recipe, train


def run(request):
    try:
        train(recipe.load(Path(request["config"])), RunFolder(Path(request["folder"])), resume=request["resume"])
    except Interrupted as stop:
        return 128 + stop.signal
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
