"""A study is trained to its end, goes on after anything, and says what came out."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

import sidebranch as sb
from forked import ForkedCommand
from sidebranch.cli import main
from sidebranch.cli.study import split_flags
from sidebranch.config import recipe
from sidebranch.config.compare import as_dict, differences, fingerprint
from sidebranch.config.schema import Config
from sidebranch.study import local, process
from sidebranch.study.cells import plan
from sidebranch.study.results import _baseline_of, lines, records
from sidebranch.study.spec import read_study, shipped

SPEC = """
about: a test
seeds: 2
groups:
- recipes: [digits/demo]
  variants:
    baseline: {method: baseline}
    wide: {method: dsl, branches.use: [b1]}
"""
QUICK = [
    "--optim.epochs",
    "2",
    "--model.name",
    "cifar_resnet8",
    "--data.limit",
    "150",
    "--data.val_limit",
    "60",
    "--runtime.precision",
    "32-true",
]


@pytest.fixture
def spec(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(SPEC)
    monkeypatch.setattr(process, "Popen", ForkedCommand)
    monkeypatch.setattr(local, "POLL", 0.05)
    return "mine.yaml"


@pytest.fixture
def no_page(monkeypatch):
    """The page is another test's."""
    monkeypatch.setattr("sidebranch.inspect.report.write_report", lambda *arguments, **more: None)


def cells_of(spec, root="studies/mine", flags=QUICK, seeds=2, only=()):
    return plan(read_study(spec), Path(root), range(seeds), only, flags)[0]


def test_a_study_ends_with_a_table_and_runs_only_what_is_new(spec, capsys):
    assert main(["study", spec, "--parallel", "2", *QUICK]) == 0
    out = capsys.readouterr().out
    assert "4 of 4 done" in out
    assert re.search(r"^digits-demo-wide-seed1: done, main [\d.]+ %, \d+ s \(\d of 4 done\)$", out, re.M)  # for a log
    assert main(["study", spec, "--status"]) == 0  # by its name, without the flags that it was started with
    assert "4 of 4 done" in capsys.readouterr().out
    table = Path("studies/mine/table.md").read_text()
    assert [line.split(" | ")[1] for line in table.splitlines()[2:]] == ["baseline", "wide"]
    rows = [json.loads(line) for line in Path("studies/mine/results.jsonl").read_text().splitlines()]
    assert [(row["variant"], row["seed"]) for row in rows] == [
        ("baseline", 0),
        ("baseline", 1),
        ("wide", 0),
        ("wide", 1),
    ]
    assert all(len(row["weights"]) == len(row["config"]) == 64 and row["images"]["val"] == 60 for row in rows)
    assert "<svg" in Path("studies/mine/report.html").read_text()
    assert [sorted(row["macs"]) for row in rows] == [["main"], ["main"], ["b1", "main"], ["b1", "main"]]
    assert "| 1.00 | 1.00 |" in table.splitlines()[2]
    found = records(cells_of(spec))
    (_, wide) = lines(cells_of(spec), found, {})
    values = {name: record.value("main") for name, record in found.items()}
    pairs = [values[f"digits-demo-wide-seed{seed}"] - values[f"digits-demo-baseline-seed{seed}"] for seed in (0, 1)]
    assert wide.change.points == pytest.approx(sum(pairs) / 2)
    assert wide.change.half_width == pytest.approx(12.706 * abs(pairs[0] - pairs[1]) / 2, rel=1e-3)
    before = {cell.name: cell.folder.metrics.stat().st_mtime_ns for cell in cells_of(spec)}
    assert main(["study", "studies/mine", "--seeds", "3", "--only", "wide"]) == 0
    assert {cell.name: cell.folder.metrics.stat().st_mtime_ns for cell in cells_of(spec)} == before
    assert [cell.state().kind for cell in cells_of(spec, seeds=3)] == ["done", "done", "waiting", *["done"] * 3]
    Path("studies/mine").rename("elsewhere")
    assert main(["study", "elsewhere", "--status"]) == 0


def test_cells_are_found_by_what_they_train(spec, tmp_path):
    one, configs = plan(read_study(spec), Path("studies/mine"), range(2), (), QUICK)
    other, config = cells_of(spec, flags=[*QUICK, "--optim.lr", "0.013"]), configs[one[0].name]
    one[0].folder.root.mkdir(parents=True)

    one[0].folder.write_config(recipe.dump(replace(config, about="else", runtime=replace(config.runtime, log_every=3))))
    assert cells_of(spec)[0].folder == one[0].folder
    changed = cells_of(spec, flags=[*QUICK, "--optim.lr", "0.013"])
    assert changed[0].folder != one[0].folder  # another default or flag is another cell
    assert changed[1].folder == other[1].folder
    assert [cell.row.variant for cell in cells_of(spec, only=["wide"])] == ["wide", "wide"]
    with pytest.raises(sb.UserError, match="no row of the study mine has narrow .*the variants: baseline; wide"):
        cells_of(spec, only=["narrow"])


def test_equal_fingerprints_are_no_differences():
    one = Config()
    for other in (replace(one, about="x"), replace(one, seed=1), replace(one, optim=replace(one.optim, lr=0.3))):
        is_same = fingerprint(as_dict(one)) == fingerprint(as_dict(other))
        assert is_same == (not differences(as_dict(one), as_dict(other)))
    older = as_dict(one)
    del older["optim"]["clip"]
    assert fingerprint(older) == fingerprint(as_dict(one))


@pytest.mark.usefixtures("no_page")
def test_a_failed_cell_stays_and_is_retried(spec, capsys):
    Path("mine.yaml").write_text(SPEC.replace("[b1]", "[b9]"))
    assert main(["study", spec, *QUICK]) == 1
    captured = capsys.readouterr()
    assert "digits-demo-wide-seed0 failed: no branch 'b9' was published" in captured.err
    assert "2 of 4 done" in captured.out
    assert "2 failed" in captured.out
    assert cells_of(spec)[2].state().kind == "failed"
    assert main(["study", spec, *QUICK]) == 1
    Path("mine.yaml").write_text(SPEC)
    assert main(["study", spec, "--retry", *QUICK]) == 0


@pytest.mark.usefixtures("no_page")
def test_finished_runs_are_adopted(spec, capsys):
    recipe_flags = ["digits/demo", "--method", "baseline", *QUICK]
    assert main(["train", *recipe_flags, "--output", "runs/a"]) == 0
    assert main(["study", spec, "--adopt", "runs", "--seeds", "1", "--only", "baseline", *QUICK]) == 0
    assert "adopted digits-demo-baseline-seed0" in capsys.readouterr().out
    (cell,) = cells_of(spec, seeds=1, only=["baseline"])
    assert cell.state().kind == "done"
    assert not cell.folder.last.exists()
    assert main(["study", spec, "--adopt", "runs", "--seeds", "1", *QUICK]) == 2
    assert "no run in 'runs' trains what a cell" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seed", "3"], "a study gives each run its seed; --seeds N"),
        (["--seed=3"], "a study gives each run its seed; --seeds N"),
        (["--seeds", "0"], "--seeds is 0; it must be at least 1"),
        (["--runtime.replicas", "2"], "a study trains a seed a cell; --parallel N"),
        (["--ray.address", "auto"], "--ray.address needs --launcher ray"),
    ],
)
def test_seeds_are_the_studys(spec, capsys, words, message):
    assert main(["study", spec, *words]) == 2
    assert message in capsys.readouterr().err


def test_a_damaged_cell_is_told_from_a_missing_one(spec, capsys):
    cells = cells_of(spec, seeds=1)
    cells[0].folder.root.mkdir(parents=True)
    cells[0].folder.metrics.write_text("epoch,val/top1/main\n1,text\n")
    assert [cell.state().kind for cell in cells_of(spec, seeds=1)] == ["damaged", "waiting"]


def test_ctrl_c_saves_and_another_process_is_refused(spec, capsys):
    slow = ["--optim.epochs", "600", "--parallel", "1"]  # it is stopped long before
    command = [sys.executable, "-m", "sidebranch", "study", spec, *QUICK[2:], *slow]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment) as study:
        for _ in range(300):
            if any(cell.folder.metrics.is_file() for cell in cells_of(spec, flags=[*QUICK[2:], *slow[:2]])):
                break
            time.sleep(0.1)
        assert main(command[3:]) == 2
        assert f"process {study.pid} on " in capsys.readouterr().err
        study.send_signal(signal.SIGINT)
        study.communicate()
    assert study.returncode == 128 + signal.SIGINT
    begun = [cell for cell in cells_of(spec, flags=[*QUICK[2:], *slow[:2]]) if cell.state().kind == "started"]
    assert begun
    assert all(cell.folder.last.exists() for cell in begun)


def test_the_flags_of_a_run_are_told_from_the_studys_own():
    words = [
        "mine",
        "--data.root",
        "photos",
        "--seeds",
        "2",
        "--model.name=resnet18",
        "--method",
        "dsl",
        "--only",
        "a",
        "b",
    ]
    own, flags = split_flags(words)
    assert own == ["mine", "--seeds", "2", "--only", "a", "b"]
    assert flags == ["--data.root", "photos", "--model.name=resnet18", "--method", "dsl"]


def test_what_a_row_sets_stays_whatever_the_flags(tmp_path):
    cells, configs = plan(read_study("on-top"), tmp_path, range(1), ["twice"], ["--optim.epochs", "30"])
    assert {configs[cell.name].optim.epochs for cell in cells} == {60}


def test_rows_that_train_the_same_share_a_run(spec):
    Path(spec).write_text(SPEC + "    again: {method: baseline}\n")
    cells = cells_of(spec, seeds=1)
    assert [cell.folder.root.name for cell in cells] == [
        "digits-demo-baseline-seed0",
        "digits-demo-wide-seed0",
        "digits-demo-baseline-seed0",
    ]


def test_variants_are_told_apart_by_their_names(spec):
    Path(spec).write_text(SPEC.replace("wide:", "0.1:"))
    assert [row.variant for row in read_study(spec).rows] == ["baseline", "0.1"]
    Path(spec).write_text(SPEC + "- recipes: [digits/demo]\n  variants: {wide: {method: dhm}}\n")
    with pytest.raises(sb.UserError, match="the recipe digits/demo has two variants 'wide'; give each its own name"):
        read_study(spec)
    for text, message in (
        ("about: a: b\ngroups: []\n", "is no study: mapping values are not allowed here"),
        ("groups:\n- recipes: [digits/demo]\n", "every group is `recipes`, a list, and `variants`, a mapping"),
        ("groups:\n- recipes: []\n  variants: {a: b}\n", "the variant 'a' must be fields and values"),
        ("groups:\n- recipes: []\n  variants: [a]\n", "every group is `recipes`, a list, and `variants`, a mapping"),
    ):
        Path(spec).write_text(text)
        with pytest.raises(sb.UserError, match=message):
            read_study(spec)


@pytest.mark.parametrize("name", shipped())
def test_shipped_studies_can_be_read(name):
    study = read_study(name)
    assert study.rows
    assert all(row.config() for row in study.rows[-1:])
    full = name.removesuffix("-short")
    assert full == name or full in shipped()


def test_processes_get_the_devices_that_are_left(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, 3")
    assert local.gpus_here() == ["2", "3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert local.gpus_here() == []


def test_rows_with_settings_of_their_own_are_compared_with_the_one_called_baseline(spec):
    Path(spec).write_text(
        SPEC.replace("baseline: {method: baseline}", "baseline: {method: baseline, optim.lr: 0.01}").replace(
            "wide:", "slow: {method: baseline, optim.lr: 0.001}\n    wide:"
        )
    )
    groups = {}
    for cell in cells_of(spec):
        groups.setdefault((cell.row.recipe, cell.row.variant), []).append(cell)
    for group in groups.values():
        assert _baseline_of("digits/demo", group, groups)[0].row.variant == "baseline"
    grown = next(iter(groups.values()))[0]
    grown = replace(grown, row=replace(grown.row, settings={"method": "dhm", "model.branches": "auto"}))
    assert _baseline_of("digits/demo", [grown], groups)[0].row.variant == "baseline"  # branches are no other network
    del groups["digits/demo", "baseline"]
    assert _baseline_of("digits/demo", groups["digits/demo", "wide"], groups) is None
