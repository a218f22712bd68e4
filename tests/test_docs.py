"""What the README and the site show runs, what they report was measured, and the site builds."""

import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import timm
from PIL import Image

from sidebranch.cli import command
from sidebranch.cli.study import split_flags
from sidebranch.config import recipe

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = ROOT / "docs"
PAGES = [path for path in sorted(DOCS.rglob("*.md")) if not path.relative_to(DOCS).parts[0].startswith("_")]
SHOWN = README + "".join(path.read_text("utf-8") for path in PAGES)


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", SHOWN, flags=re.DOTALL))
def test_code_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if "my-model" in code:
        model = timm.create_model("resnet10t", num_classes=2)
        timm.models.save_for_hf(
            model, "my-model", model_config={"label_names": ["cat", "dog"]}, safe_serialization=True
        )
        Image.new("RGB", (40, 30)).save("photo.jpg")
    exec(compile(code, "README.md", "exec"), {})


@pytest.mark.parametrize("line", re.findall(r"^    (?:\.venv/bin/)?sidebranch (.*)$", SHOWN, flags=re.MULTILINE))
def test_commands_parse(line):
    verb, *words = shlex.split(line, comments=True)
    if verb == "train":
        begun = words[0].startswith("runs/")  # a run goes on
        words = [*([] if begun else recipe.flags(recipe.find(words[0]))), *words[1:]]
    if verb == "study":
        words, flags = split_flags(words)
        recipe.parse(flags, line)
    command(verb).parser().parse_args(words)


@pytest.mark.parametrize(
    "script",
    ["tables.py", "gains.py", "picture.py", "networks.py", "coverage.py", "scaling.py", "experiments.py"],
)
def test_generated_pages_are_in_step(script, monkeypatch):
    monkeypatch.setattr("sys.argv", [script, "--check"])
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "benchmarks" / script), run_name="__main__")
    assert ended.value.code == 0, f"run: python benchmarks/{script}"


def test_the_site_builds_without_a_warning(tmp_path):
    """Links inside it, and names in its API pages, are there; it fetches nothing when it is read."""
    command = [Path(sys.executable).parent / "sphinx-build", "-q", "-W", "--keep-going", "-d", tmp_path / "trees"]
    built = subprocess.run([*command, ROOT / "docs", tmp_path / "site"], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    pages = [path.read_text("utf-8") for path in (tmp_path / "site").rglob("*.html")]
    assert len(pages) > len(PAGES)
    fetched = re.compile(r"<(?:script|img|link)[^>]*(?:src|href)=\"https?:[^>]*>")
    assert not [found for page in pages for found in fetched.findall(page)]


def test_files_that_are_named_are_there():
    for name in re.findall(r"`((?:docs|results|benchmarks)/[\w./-]+|[A-Z]+\.md)`", SHOWN):
        assert (ROOT / name).exists(), name


def test_the_readme_can_be_read_in_a_minute():
    assert len(README.splitlines()) <= 120
