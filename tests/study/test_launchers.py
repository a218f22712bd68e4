"""Cells as tasks of Ray and as elements of a SLURM array end as they would on one machine."""

import json
import os
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from threading import Thread

import pytest

import sidebranch as sb
from forked import ForkedCommand
from sidebranch.cli import main
from sidebranch.study import local, process, ray_tasks
from sidebranch.study.cells import plan, read_cells, write_cells
from sidebranch.study.progress import Progress
from sidebranch.study.replicas import exit_status, handled
from sidebranch.study.spec import Row, Study

STUDY = Study("mine", "", "", 2, rows=(Row("digits/demo", "base, line", {"method": "baseline"}, {}),))
QUICK = ["--model.name", "cifar_resnet8", "--data.limit", "150", "--data.val_limit", "60"]
QUICK += ["--runtime.precision", "32-true", "--runtime.compile", "false"]


def started(root, epochs):
    cells, configs = plan(STUDY, root, range(2), (), [*QUICK, "--optim.epochs", str(epochs)])
    write_cells(root, cells, configs)
    return cells


def test_a_lost_ray_worker_costs_nothing(tmp_path, monkeypatch):
    cells, killed = started(tmp_path, 200), []
    monkeypatch.setattr(ray_tasks, "POLL", 0.05)

    def watch(running):
        for cell in running:
            if not killed and cell.state().epochs >= 1:
                trainer = int((cell.folder.root / ".owner").read_text().split()[1])
                worker = int(Path(f"/proc/{trainer}/stat").read_text().split()[3])
                os.kill(worker, signal.SIGKILL)
                os.kill(trainer, signal.SIGKILL)  # as when a machine goes; a worker's threads may take seconds to die
                killed.append(cell)

    assert ray_tasks.run_cells(cells, "", 1, 0, 2, watch) == 0
    assert [cell.state().kind for cell in cells] == ["done", "done"]
    resumed = [cell for cell in cells if "resumed" in json.loads(cell.folder.environment.read_text())]
    assert resumed == killed
    assert [row["epoch"] for row in killed[0].folder.read_metrics()] == list(range(1, 201))


def test_an_element_of_a_slurm_array_trains_its_cell(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(process, "Popen", ForkedCommand)
    (tmp_path / "my study.yaml").write_text(
        "seeds: 2\ngroups:\n- recipes: [digits/demo]\n  variants: {'base, line': {method: baseline}}\n"
    )
    command = ["study", "my study.yaml", "--launcher", "slurm", "--cpus", "2", "--gpus", "1"]
    assert main([*command, *QUICK, "--optim.epochs", "1"]) == 0
    script = tmp_path / "studies" / "my study" / "array.sbatch"
    assert f"2 cells: sbatch {script}" in capsys.readouterr().out
    fake = tmp_path / "bin"
    fake.mkdir()
    (fake / "srun").write_text('#!/bin/sh\nshift\nshift\nshift\nprintf "%s\\n" "$@"\nexit 138\n')
    (fake / "scontrol").write_text('#!/bin/sh\necho "$@"\n')
    for each in fake.iterdir():
        each.chmod(0o755)
    around = {"PATH": f"{fake}:{os.environ['PATH']}", "SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_JOB_ID": "7"}
    ran = subprocess.run(["bash", str(script)], env=around, capture_output=True, text=True, check=False)
    *_, root, flag, name, requeued = ran.stdout.splitlines()
    assert (Path(root), flag, requeued) == (script.parent, "--cell", "requeue 7_1")
    assert ran.returncode == 138
    assert "#SBATCH --array=0-1%1\n" in script.read_text()
    assert "#SBATCH --gpus-per-task=1\n" in script.read_text()
    assert f'#SBATCH --output="{script.parent}/logs/slurm-%A-%a.log"\n' in script.read_text()
    assert "#SBATCH --job-name=my-study\n" in script.read_text()
    assert main(["study", root, flag, name]) == 0
    assert [cell.state().kind for cell in read_cells(script.parent)] == ["waiting", "done"]
    assert main(["study", root, flag, name[:-1]]) == 2
    assert "did you mean" in capsys.readouterr().err


def test_processes_share_gpus_by_their_free_memory():
    assert local.slots_of(3, [], [], 1) == [None] * 3
    assert local.slots_of(5, ["0", "3"], [1.0, 0.4], 0.25) == ["0", "3", "0", "0", "0"]
    assert local.slots_of(4, ["0", "1"], [0.97, 0.2], 1) == ["0"]
    with pytest.raises(sb.UserError, match=r"no GPU has 50% of its memory left \(the most is 30%\)"):
        local.slots_of(1, ["0"], [0.3], 0.5)


def test_ray_refuses_what_no_machine_has():
    nodes = [{"Alive": True, "Resources": {"CPU": 4.0, "GPU": 1.0}}, {"Alive": False, "Resources": {"CPU": 64.0}}]
    ray_tasks._check_room(nodes, 4, 0.5)
    with pytest.raises(sb.UserError, match="asks for 8 CPUs and 0 GPUs; the cluster's machines have 4 CPUs and 1 GPUs"):
        ray_tasks._check_room(nodes, 8, 0)


def test_a_cell_that_a_signal_ended_can_go_on(tmp_path):
    (cell, _) = started(tmp_path, 1)
    cell.log("err").write_text("")
    assert [exit_status(code) for code in (0, 2, -15)] == [0, 2, 143]
    assert process.is_well(cell, exit_status(-15))
    assert cell.state().kind == "waiting"
    assert not process.is_well(cell, 2)
    assert (cell.state().kind, cell.state().message) == ("failed", "ended with status 2")
    assert replace(cell, trains="another config").state().kind == "waiting"


def test_a_file_stops_cells_on_any_machine(tmp_path, monkeypatch):
    (cell, other) = started(tmp_path, 500)
    monkeypatch.setattr(process, "Popen", ForkedCommand)

    def stop():
        while not cell.folder.last.exists():
            time.sleep(0.05)
        (cell.logs / process.STOP).touch()

    Thread(target=stop).start()
    assert process.train_cell(cell, 1) == 128 + signal.SIGTERM
    assert cell.state().kind == "started"
    assert process.train_cell(other, 1) == 128 + signal.SIGTERM  # not even begun
    assert other.state().kind == "waiting"


def test_the_end_of_the_terminal_is_ignored_under_nohup():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert signal.SIGHUP not in handled()
    finally:
        signal.signal(signal.SIGHUP, before)
    assert signal.SIGHUP in handled()


def test_hundreds_of_cells_are_shown_without_their_recipes(tmp_path, monkeypatch, capsys):
    rows = tuple(Row("digits/demo", f"lr {number}", {"method": "baseline"}, {}) for number in range(60))
    cells, configs = plan(Study("mine", "", "", 5, rows=rows[:1]), tmp_path, range(5), (), QUICK)
    many = [
        type(cell)(
            row, cell.seed, cell.epochs, cell.trains, type(cell.folder)(tmp_path / "cells" / f"{place}-{n}"), cell.logs
        )
        for place, row in enumerate(rows)
        for n, cell in enumerate(cells)
    ]
    write_cells(tmp_path, many, {cell.name: configs[cells[0].name] for cell in many})
    many[7].folder.root.mkdir(parents=True)
    many[7].folder.metrics.write_text("epoch,seconds,val/top1/main\n3,6,50\n")
    many[8].folder.root.mkdir(parents=True)
    many[8].folder.metrics.write_text("epoch,seconds,val/top1/main\n3,6,none\n")
    monkeypatch.setattr("sidebranch.config.recipe.parse", None)
    assert main(["study", str(tmp_path), "--status"]) == 0
    out = capsys.readouterr().out
    assert "0 of 300 done, 0 running, 299 waiting, 0 failed, 1 damaged" in out
    progress = Progress(many)
    monkeypatch.setattr(type(many[0]), "state", None)
    progress.update([])  # reads nothing again
    assert "0 of 300 done" in str(progress.table().renderables[0])
