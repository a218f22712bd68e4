import os
import signal
import subprocess
import sys
import textwrap
import time

from sidebranch.study.replicas import run_replicas


def python(source):
    return [sys.executable, "-c", textwrap.dedent(source)]


def test_statuses_and_lines(capfd):
    ended = run_replicas(
        {
            "0": python("print('one'); print('two')"),
            "1": python("import sys; print('bad', file=sys.stderr); sys.exit(2)"),
            "2": python("import os, signal; os.kill(os.getpid(), signal.SIGKILL)"),
            "3": python("import os; print(os.environ['OMP_NUM_THREADS'])"),
        },
        threads=3,
    )
    assert ended == {"0": 0, "1": 2, "2": 128 + signal.SIGKILL, "3": 0}
    out, err = capfd.readouterr()
    assert sorted(out.splitlines()) == ["0 | one", "0 | two", "3 | 3"]
    assert err == "1 | bad\n"


def test_a_signal_is_handed_on_once_to_everyone(tmp_path):
    """In a process of its own, which alone gets the signal."""
    child = """
    import signal, sys, time
    received = []
    signal.signal(signal.SIGINT, lambda number, frame: received.append(number))
    print("ready", flush=True)
    while not received:
        time.sleep(0.01)
    time.sleep(0.3)
    sys.exit(100 + len(received))
    """
    source = f"""
    import sys
    from sidebranch.study.replicas import run_replicas
    child = [sys.executable, "-c", {textwrap.dedent(child)!r}]
    print(run_replicas({{"0": child, "1": child}}, 1))
    """
    with subprocess.Popen(python(source), stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        ready = [parent.stdout.readline(), parent.stdout.readline()]
        assert sorted(ready) == ["0 | ready\n", "1 | ready\n"]
        time.sleep(0.1)
        os.kill(parent.pid, signal.SIGINT)
        assert parent.stdout.readline() == "{'0': 101, '1': 101}\n"
