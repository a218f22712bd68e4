import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

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


CHILD = """
import signal, sys, time
received = []
for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
    signal.signal(number, lambda number, frame: received.append(number))
print("ready", flush=True)
while not received:
    time.sleep(0.01)
open(sys.argv[1], "w").write(signal.Signals(received[0]).name)
"""


@pytest.mark.parametrize(
    ("sent", "received"), [("SIGUSR1", "SIGUSR1"), ("SIGHUP", "SIGHUP"), ("SIGTERM", "SIGTERM"), ("SIGKILL", "SIGTERM")]
)
def test_no_child_outlives_its_parent(tmp_path, sent, received):
    """A parent that is killed hands nothing on; the kernel does."""
    notes = [tmp_path / "0", tmp_path / "1"]
    source = f"""
    import sys
    from sidebranch.study.replicas import run_replicas
    child = [sys.executable, "-c", {CHILD!r}]
    run_replicas({{each: [*child, each] for each in {[str(note) for note in notes]}}}, 1)
    """
    with subprocess.Popen(python(source), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as parent:
        ready = [parent.stdout.readline(), parent.stdout.readline()]
        assert all(line.endswith("ready\n") for line in ready)
        os.kill(parent.pid, getattr(signal, sent))
        parent.wait()
        for _ in range(500):
            if all(note.exists() and note.read_text() for note in notes):
                break
            time.sleep(0.02)
    assert [note.read_text() for note in notes] == [received, received]
