import os

import pytest

import sidebranch as sb
from sidebranch.runs.atomic_files import write_text


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "config.yaml"
    write_text(path, "old")

    def crash(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(sb.UserError, match="Input/output error.*is unchanged"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_in_the_file_s_place_is_refused(tmp_path):
    with pytest.raises(sb.UserError, match="is a folder; give the name of a file"):
        write_text(tmp_path, "text")
