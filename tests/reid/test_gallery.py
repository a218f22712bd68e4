"""The report of re-identification runs: curves and nearest images."""

import json
import shutil

import pytest

from sidebranch.cli import main
from sidebranch.errors import Notice, UserError
from sidebranch.inspect.record import read_record
from sidebranch.inspect.report import verdict, write_report
from sidebranch.runs.folder import RunFolder


def test_the_page_shows_curves_and_the_nearest_images_run_beside_run(finished, tmp_path):
    records = [read_record(RunFolder(finished / method)) for method in ("baseline", "dhm")]
    assert verdict(records).startswith("mAP of the shipped backbone (one seed): DHM ")
    write_report(records, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "Validation mAP, %" in text
    assert "rank 20" in text.replace("&nbsp;", " ")
    assert "Queries with a match up to that rank" in text
    assert text.count('<div class="found">') == 6
    assert text.count("data:image/jpeg;base64") >= 6 * (1 + 2 * 5)
    assert 'src="http' not in text


def test_a_page_finds_the_images_where_they_are_now(finished, tmp_path, people, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the folder was given as it is, from wherever the run was
    record = read_record(RunFolder(finished / "dhm"))
    write_report([record], tmp_path / "page.html")
    assert " is gone" not in (tmp_path / "page.html").read_text()
    with pytest.warns(Notice, match=r"of the page's \d+ images are gone, such as '.*'; --data.root says where"):
        write_report([record], tmp_path / "page.html", data_root=str(tmp_path))
    assert main(["report", str(finished / "dhm"), "--data.root", "nowhere"]) == 2
    assert (tmp_path / "page.html").read_text().count(" is gone") > 6
    write_report([record], tmp_path / "page.html", data_root=str(people))
    assert " is gone" not in (tmp_path / "page.html").read_text()


def test_a_page_takes_the_first_finished_seed_and_refuses_damage(finished, tmp_path):
    for name, seed in (("begun", 1), ("complete", 2)):
        shutil.copytree(finished / "dhm", tmp_path / name)
        text = (tmp_path / name / "config.yaml").read_text()
        (tmp_path / name / "config.yaml").write_text(text.replace("seed: 0", f"seed: {seed}"))
    begun, complete = (read_record(RunFolder(tmp_path / name)) for name in ("begun", "complete"))
    begun.folder.rankings.unlink()
    write_report([begun, complete], tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text().count('<div class="found">') == 6
    with pytest.raises(UserError, match="none of these runs is finished"):
        write_report([begun], tmp_path / "page.html", queries=["any.jpg"])
    begun.folder.rankings.write_text("{}")
    with pytest.raises(UserError, match="cannot be read: it lacks average_precision, cmc"):
        write_report([begun], tmp_path / "page.html")


def test_queries_of_one_name_in_several_folders_are_told_apart(finished, tmp_path):
    shutil.copytree(finished / "dhm", tmp_path / "run")
    record = read_record(RunFolder(tmp_path / "run"))
    table = json.loads(record.folder.rankings.read_text())
    first, second = table["queries"][:2]
    table["files"][first], table["files"][second] = "query/anna/0.jpg", "query/bo/0.jpg"
    record.folder.rankings.write_text(json.dumps(table))
    with pytest.raises(
        UserError, match="2 queries are called '0.jpg'; give more of the path, such as 'query/anna/0.jpg'"
    ):
        write_report([record], tmp_path / "page.html", queries=["0.jpg"])
    with pytest.warns(Notice, match="are gone"):
        write_report([record], tmp_path / "page.html", queries=["bo/0.jpg"])
    assert "<h3>query/bo/0.jpg</h3>" in (tmp_path / "page.html").read_text()


def test_queries_may_be_chosen_and_a_wrong_name_is_answered(finished, tmp_path, people, capsys):
    name = sorted((people / "query").iterdir())[0].name
    page = str(tmp_path / "page.html")
    assert main(["report", str(finished / "dhm"), "--output", page, "--queries", name]) == 0
    assert (tmp_path / "page.html").read_text().count('<div class="found">') == 1
    whole = str(people / "query" / name)
    assert main(["report", str(finished / "dhm"), "--output", page, "--queries", whole]) == 0
    assert main(["report", str(finished / "dhm"), "--output", page, "--queries", "nobody.jpg"]) == 2
    assert "no query 'nobody.jpg'" in capsys.readouterr().err
