"""Paths that break scripts: the whole way from images to the page of a run."""

import os

import pytest
from sampled import one_in

from sidebranch.cli import main

NAMES = {
    "spaces": "my holiday photos",
    "unicode": "Fötos-写真-📷",
    "quotes": 'it\'s "fine"',
    "marks": "a&b;c$d#e%20(f)[g]{h}",
    "a dash first": "-photos",
    "a new line": "two\nlines",
    "long": "x" * 200,
    "dots": "...",
}


@pytest.mark.parametrize("kind", one_in(3, NAMES))
def test_the_whole_way(photos, tmp_path, monkeypatch, capsys, kind):
    name = NAMES[kind]
    home = tmp_path / name
    home.mkdir()
    root = photos.rename(home / name)
    for split in ("train", "val"):
        (root / split / "ant").rename(root / split / name)
        (root / split / name / "0.png").rename(root / split / name / f"{name}.png")
    os.symlink(root, root / "train" / name / "loop")
    run = home / "run"
    flags = "--data.batch_size 4 --data.image_size 32 --data.resize 32 --optim.epochs 1 --runtime.precision 32-true"
    flags += " --data.workers 0 --runtime.accelerator cpu"
    command = ["train", "folder/resnet32", f"--data.root={root}", f"--output={run}", *flags.split()]
    assert main(command) == 0, capsys.readouterr().err
    assert main(["eval", str(run)]) == 0
    assert main(["export", str(run), f"--output={home / 'model.safetensors'}"]) == 0
    assert main(["report", str(run), f"--output={home / 'page.html'}"]) == 0
    assert main(["train", str(run), "--resume"]) == 0
    assert main(["prepare", "shards", str(root), str(home / "shards")]) == 0
