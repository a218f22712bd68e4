import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import sidebranch as sb
from sidebranch.config.method import ObjectiveConfig
from sidebranch.inspect.arrays import who_teaches_whom
from sidebranch.inspect.chart import scripts
from sidebranch.inspect.charts import calibration_error, error_over_epochs, final_values, worst_classes
from sidebranch.inspect.record import by_kind, read_record, spread, summarise
from sidebranch.inspect.report import verdict, write_report
from sidebranch.inspect.significance import gain
from sidebranch.runs.console import Silent
from sidebranch.runs.folder import RunFolder
from sidebranch.study.grid import run_grid


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    from sidebranch.config.data import DataConfig
    from sidebranch.config.method import ModelConfig
    from sidebranch.config.schema import Config, OptimConfig, RuntimeConfig

    config = Config(
        name="<b>odd & name</b>",
        model=ModelConfig("cifar_resnet20"),
        data=DataConfig(limit=128, padding=1, corrupt_rate=0.5),
        optim=OptimConfig(lr=0.05, epochs=2, schedule="cosine"),
        runtime=RuntimeConfig("cpu"),
    )
    folders = run_grid(config, ("baseline", "dhm"), (0, 1), tmp_path_factory.mktemp("grid"), Silent())
    return [read_record(folder) for folder in folders]


def test_the_grid_is_methods_by_seeds(records):
    assert [each.folder.root.name for each in records] == ["baseline-seed0", "baseline-seed1", "dhm-seed0", "dhm-seed1"]
    assert records[0].rows != records[1].rows


def test_a_finished_run_is_not_run_again(records):
    before = records[0].folder.last.read_bytes()
    run_grid(replace(records[0].config), ("baseline",), (0,), records[0].folder.root.parent, Silent())
    assert records[0].folder.last.read_bytes() == before


def test_summary_is_mean_and_sample_deviation_over_seeds(records):
    summary = summarise(by_kind(records))
    errors = [each.rows[-1]["val/top1/b1"] for each in records[2:]]
    assert summary["DHM"]["b1"].mean == pytest.approx(sum(errors) / 2)
    assert summary["DHM"]["b1"].std == pytest.approx(abs(errors[0] - errors[1]) / 2**0.5)
    assert set(summary["baseline"]) == {"main"}
    assert str(spread([1.0, 2.0])) == "1.50 ± 0.71"
    assert str(spread([1.0])) == "1.00"


def test_a_gain_is_of_the_seeds_that_both_have():
    found = gain({0: 10.0, 1: 20.0}, {0: 20.0, 1: 30.0, 2: 79.0}, 500)
    assert (found.points, found.half_width, found.of) == (-10, 0, "seeds")
    one = gain({0: 10.0}, {0: 20.0, 1: 90.0}, 500)
    assert (one.points, one.of) == (-10, "images")
    assert one.half_width == gain({0: 10.0}, {0: 20.0}, 500).half_width
    assert gain({0: 10.0}, {1: 20.0}, 500).points == -10


def test_runs_of_several_differences_are_not_taken_for_seeds(records):
    def again(place, **optim):
        config = replace(records[2].config, optim=replace(records[2].config.optim, **optim))
        return replace(records[2], folder=RunFolder(Path(place)), config=config)

    three = {"lr": 0.5, "epochs": 9, "weight_decay": 0.1}
    others = [again("b/seed0", **three), again("c/seed0", **three | {"lr": 0.6}), again("d/c", **three | {"lr": 0.7})]
    groups = by_kind([records[2], *others])
    assert [len(group) for group in groups.values()] == [1] * 4
    assert list(groups)[1:3] == ["DHM, b", "DHM, c"]
    assert list(groups)[3].startswith("DHM, optim.lr 0.7")


def test_the_verdict_says_which_way_it_went(records):
    gain = summarise(by_kind(records))["baseline"]["main"].mean - summarise(by_kind(records))["DHM"]["main"].mean
    assert verdict(records).startswith("Top-1 error of the shipped backbone on 500 images (mean ± standard deviation")
    change = f"{abs(gain):.2f} points {'lower' if gain > 0 else 'higher'} (95 % interval over seeds: "
    assert change in verdict(records)
    assert ", lower with " in verdict(records)
    assert "baseline" not in verdict(records[2:])


def test_the_page_needs_nothing_beside_it_and_shows_every_run(records, tmp_path):
    write_report(records, tmp_path / "page.html", "A & B")
    text = (tmp_path / "page.html").read_text()
    assert "A &amp; B" in text
    own = text.replace(scripts(), "")
    assert "<b>odd" not in own
    assert not re.search(
        r"(?:src|href)=\"(?!data:|#)|url\(|@import|<link", re.sub(r"<svg.*?</svg>", "", own, flags=re.DOTALL)
    )
    for record in records:
        assert str(record.folder.root) in own
    figures = re.findall(r"<figure>.*?</figure>", own, re.DOTALL)
    titles = [re.search(r"<h3>(.*?)</h3>", figure).group(1) for figure in figures]
    assert titles == [
        "Over the epochs",
        "After the last epoch",
        "Cost and result",
        "DHM: who teaches whom",
        "DHM: each classifier over the epochs",
        "DHM: who has learnt from whom",
        "Reliability of main",
        "Errors by class",
    ]
    assert all("<svg" in figure and "<table>" in figure for figure in figures)
    assert "50% of the training labels were replaced" in text


def test_numbers_beside_a_chart_are_those_of_the_runs(records):
    groups = by_kind(records)
    curves, final = error_over_epochs(groups), final_values(groups)
    errors = [record.rows[-1]["val/top1/main"] for record in records[2:]]
    wanted = ("DHM", "validation", "2", f"{sum(errors) / 2:.2f}", f"{min(errors):.2f}", f"{max(errors):.2f}")
    assert wanted in curves.rows
    assert ("DHM", "main", f"{sum(errors) / 2:.2f}", "2") in final.rows
    drawn = curves.spec["datasets"] if "datasets" in curves.spec else curves.spec["data"]["values"]
    assert len(drawn) == 2 * 2 * 2  # kinds, parts, epochs


def test_the_arrays_are_drawn_as_they_were_trained():
    objective = sb.Objective(
        {"main": 1, "b1": 0.5}, {"main->b1": 2.0, "average->main": 0.25}, 3.0, teachers=["average"]
    )
    chart = who_teaches_whom("mine", objective.described(("main", "b1")))
    assert chart.rows == (
        ("labels", "main", "1"),
        ("labels", "b1", "0.5"),
        ("main", "b1", "2"),
        ("average", "main", "0.25"),
    )
    assert "T = 3" in chart.caption
    assert "average: the moving average of the network" in chart.caption
    settings = ObjectiveConfig(temperature_end=1.0, mimicry_ramp=8, divergence="decoupled", decoupled=(1.0, 2.0))
    described = sb.dhm(temperature=3, divergence="decoupled").described(("main", "b1"))
    caption = who_teaches_whom("mine", described, settings).caption
    assert "T = 3, which goes to 1 in a line" in caption
    assert "Divergence: decoupled (1 for the label, 2 for the others)" in caption
    assert "rise from 0 over the first 8 epochs" in caption
    outside = sb.kd([torch.nn.Identity(), torch.nn.Identity()]).described(("main",))
    assert "teacher1, teacher2: outside networks" in who_teaches_whom("kd", outside).caption
    plain = who_teaches_whom("baseline", sb.baseline().described(("main",)))
    assert plain.rows == (("labels", "main", "1"),)


def test_calibration_is_as_guo_et_al_define_it():
    confidence, right = np.random.default_rng(0).random((2, 500))
    is_right = right < confidence**2
    bins = np.minimum((confidence * 15).astype(int), 14)
    wanted = 0.0
    for number in range(15):
        inside = bins == number
        wanted += inside.mean() * abs(is_right[inside].mean() - confidence[inside].mean()) if inside.any() else 0
    sums = [[(bins == n).sum(), is_right[bins == n].sum(), confidence[bins == n].sum()] for n in range(15)]
    assert calibration_error(sums) == pytest.approx(100 * wanted)


def test_answers_agree_with_the_metrics(records):
    table = json.loads(records[2].folder.answers.read_text())
    assert sum(table["images"]) == 500
    for column in records[2].columns:
        counts, right, _ = (sum(each) for each in zip(*table["bins"][column], strict=True))
        assert counts == 500
        assert 100 * (1 - right / counts) == pytest.approx(records[2].value(column))
        wrong = sum(n * error for n, error in zip(table["images"], table["errors"][column], strict=True))
        assert wrong / 500 == pytest.approx(records[2].value(column))
    assert all(pair["class"] != pair["answer"] and 1 <= len(pair["examples"]) <= 3 for pair in table["confused"])


def test_classes_that_one_kind_did_not_see_are_left_out():
    chart = worst_classes({"a": {"x": 1.0, "y": 2.0}, "b": {"x": 3.0, "z": 1.0}})
    assert chart.rows == (("x", "1.00", "3.00"),)


def test_measured_kernels_and_gradients_are_shown(records, tmp_path):
    for name in ("kernels.json", "gradients.json"):
        shutil.copy(Path(__file__).parents[2] / "results" / "figures-digits" / name, tmp_path)
    write_report(records, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "Correlation of kernels" in text
    assert "Alignment of gradients" in text
    kernels = json.loads((tmp_path / "kernels.json").read_text())
    kind, seeds = next(iter(kernels.items()))
    layer = next(iter(next(iter(seeds.values()))["layers"]))
    other = {seed: {**found, "layers": {layer: 0.5, "of another network": 1.0}} for seed, found in seeds.items()}
    (tmp_path / "kernels.json").write_text(json.dumps({kind: seeds, "of another network": other}))
    write_report(records, tmp_path / "page.html")
    (tmp_path / "kernels.json").write_text("{}")
    with pytest.raises(sb.UserError, match="is not as sidebranch writes it; remove it"):
        write_report(records, tmp_path / "page.html")


def test_the_same_runs_give_the_same_page(records, tmp_path):
    write_report(records, tmp_path / "one.html")
    write_report(records, tmp_path / "two.html")
    assert (tmp_path / "one.html").read_text() == (tmp_path / "two.html").read_text()


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(sb.UserError, match="is no run folder with a finished epoch"):
        read_record(RunFolder(tmp_path))
    with pytest.raises(sb.UserError, match="at least one run"):
        write_report([], tmp_path / "page.html")
