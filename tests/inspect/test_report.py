import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest

import sidebranch as sb
from sidebranch.inspect.record import read_record, spread, summarise
from sidebranch.inspect.report import verdict, write_report
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
    summary = summarise(records)
    errors = [each.rows[-1]["val/top1/b1"] for each in records[2:]]
    assert summary["DHM"]["b1"].mean == pytest.approx(sum(errors) / 2)
    assert summary["DHM"]["b1"].std == pytest.approx(abs(errors[0] - errors[1]) / 2**0.5)
    assert set(summary["baseline"]) == {"main"}
    assert str(spread([1.0, 2.0])) == "1.50 ± 0.71"
    assert str(spread([1.0])) == "1.00"


def test_the_verdict_says_which_way_it_went(records):
    gain = summarise(records)["baseline"]["main"].mean - summarise(records)["DHM"]["main"].mean
    assert verdict(records).startswith("Top-1 error of the shipped backbone on 500 images (mean ± standard deviation")
    change = f"{abs(gain):.2f} points {'lower' if gain > 0 else 'higher'} (95 % interval over seeds: "
    assert change in verdict(records)
    assert ", lower with " in verdict(records)
    assert "baseline" not in verdict(records[2:])


def test_the_page_needs_nothing_beside_it_and_shows_every_run(records, tmp_path):
    write_report(records, tmp_path / "page.html", "A & B")
    text = (tmp_path / "page.html").read_text()
    assert "A &amp; B" in text
    without_namespaces = re.sub(
        r'xmlns(:\w+)?="[^"]*"|<metadata>.*?</metadata>|<!DOCTYPE[^>]*>', "", text, flags=re.DOTALL
    )
    assert not re.search(r"https?://|<script|<link|src=", without_namespaces)
    for record in records:
        assert str(record.folder.root) in text
    assert text.count("<svg") == 2
    assert "50% of the training labels were replaced" in text
    body = text[text.index("<html") :].replace('<meta charset="utf-8">', "")
    ElementTree.fromstring(re.sub(r"<meta [^>]*>", "", body))


def test_the_same_runs_give_the_same_page(records, tmp_path):
    write_report(records, tmp_path / "one.html")
    write_report(records, tmp_path / "two.html")
    assert (tmp_path / "one.html").read_text() == (tmp_path / "two.html").read_text()


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(sb.UserError, match="is no run folder with a finished epoch"):
        read_record(RunFolder(tmp_path))
    with pytest.raises(sb.UserError, match="at least one run"):
        write_report([], tmp_path / "page.html")
