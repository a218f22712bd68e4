"""The page in Debian's chromium: every chart draws, nothing is wider than the screen, texts can be read, no error."""

import base64
import json
import re
import shutil
import subprocess
import warnings
from html import unescape
from pathlib import Path

import pytest
from PIL import Image

from sidebranch.errors import Notice
from sidebranch.inspect.record import by_kind, read_record
from sidebranch.inspect.report import write_report
from sidebranch.runs.folder import RunFolder

WIDTHS = (390, 820, 1280)
RESULTS = Path(__file__).parents[2] / "results"
AT_START = """<script>
window.wrong = [];
window.addEventListener("error", (event) => wrong.push("error: " + event.message));
for (const kind of ["error", "warn"]) console[kind] = (...words) => wrong.push(kind + ": " + words.join(" "));
</script>"""
AT_END = """<script>
const numbers = (colour) => (colour.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
const light = (colour) => numbers(colour).slice(0, 3).map((v) => v / 255)
  .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
  .reduce((sum, v, place) => sum + v * [0.2126, 0.7152, 0.0722][place], 0);
const behind = (element) => {
  for (let each = element; each; each = each.parentElement) {
    const colour = getComputedStyle(each).backgroundColor;
    if (numbers(colour)[3] !== 0) return colour;
  }
  return "rgb(255, 255, 255)";
};
const check = () => {
  document.querySelectorAll("figure").forEach((figure) => {
    const title = figure.querySelector("h3").textContent, chart = figure.querySelector(".chart");
    const marks = chart.querySelectorAll("[class*=mark-] > path:not(.background), .mark-rule.role-mark > line");
    if (!chart.classList.contains("vega-embed")) wrong.push(title + " is not drawn by Vega");
    if (!marks.length) wrong.push(title + " has no marks");
    if (!chart.getAttribute("aria-label")) wrong.push(title + " has no label");
  });
  if (document.documentElement.scrollWidth > innerWidth)
    wrong.push("wider than the screen: " + document.documentElement.scrollWidth);
  document.querySelectorAll("main *").forEach((element) => {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || !element.getClientRects().length || ["SCRIPT", "STYLE", "title"].includes(element.tagName)) return;
    const style = getComputedStyle(element), is_svg = element instanceof SVGElement;
    const pair = [light(is_svg ? style.fill : style.color), light(behind(element))].sort((a, b) => b - a);
    const ratio = (pair[0] + 0.05) / (pair[1] + 0.05);
    if (ratio < 4.5) wrong.push("contrast " + ratio.toFixed(1) + ": " + element.textContent.trim().slice(0, 40));
  });
  document.querySelectorAll("img").forEach((image) => {
    if (!image.alt) wrong.push("an image without a text");
    if (!image.naturalWidth) wrong.push("an image that does not show");
  });
  document.querySelectorAll(".scroll").forEach((place) => {
    if (place.tabIndex !== 0 || !place.getAttribute("aria-label")) wrong.push("a table that keys do not reach");
  });
  document.querySelectorAll("th").forEach((cell) => cell.scope || wrong.push("a head without a scope"));
  let level = 1;
  document.querySelectorAll("h1, h2, h3").forEach((head) => {
    const next = Number(head.tagName[1]);
    if (next > level + 1) wrong.push("a heading skips a level: " + head.textContent);
    level = next;
  });
  if (document.documentElement.lang !== "en" || !document.title) wrong.push("no language or title");
  parent.postMessage({ name: NAME, wrong: wrong, figures: document.querySelectorAll("figure").length }, "*");
};
window.addEventListener("load", () => setTimeout(check, 1500));
</script>"""
WRAPPER = """<body><pre></pre><script>
const found = [];
window.addEventListener("message", (event) => {
  found.push(event.data);
  document.querySelector("pre").textContent = JSON.stringify(found);
});
</script>FRAMES</body>"""


def look(folder: Path, pages: dict[str, Path], dark: bool) -> dict[str, dict]:
    """What a browser says of each page at each width: name to {wrong, figures}."""
    browser = next((each for each in ("chromium", "chromium-browser", "google-chrome") if shutil.which(each)), None)
    assert browser, "this test looks at pages in a browser: apt-get install chromium"
    frames = []
    for name, path in pages.items():
        for width in WIDTHS:
            text = path.read_text().replace("<head>", "<head>" + AT_START, 1)
            end = AT_END.replace("NAME", json.dumps(f"{name} {width}"))
            copy = folder / f"{name}-{width}.html"
            copy.write_text(end.join(text.rsplit("</body>", 1)))
            frames.append(f'<iframe src="{copy.name}" width="{width}" height="900"></iframe>')
    (folder / "all.html").write_text(WRAPPER.replace("FRAMES", "".join(frames)))
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=30000", "--dump-dom"]
    command += ["--blink-settings=preferredColorScheme=0"] if dark else []
    profile = f"--user-data-dir={folder / 'profile'}"
    ran = subprocess.run(
        [*command, profile, (folder / "all.html").as_uri()], capture_output=True, text=True, check=True, timeout=300
    )
    found = json.loads(unescape(re.search(r"<pre>(.*?)</pre>", ran.stdout, re.DOTALL).group(1)))
    return {each["name"]: each for each in found}


def jpeg(path):
    Image.effect_noise((64, 128), 90).convert("RGB").save(path, "JPEG")
    return path


def with_answers(folder, run):
    """A copy of a run, with what its end writes."""
    shutil.copytree(run, folder)
    image = base64.b64encode(jpeg(folder / "x.jpg").read_bytes()).decode()
    columns, classes = ("main", "b1", "b2", "ensemble"), [f"a rather long name of class {n}" for n in range(30)]
    table = {
        "classes": classes,
        "images": [20] * 30,
        "bins": {name: [[40, 2.5 * place, 2.7 * place] for place in range(15)] for name in columns},
        "errors": {name: [100.0 - 3 * place for place in range(30)] for name in columns},
        "confused": [{"class": n, "answer": n + 1, "count": 9 - n, "examples": [image] * 3} for n in range(8)],
    }
    (folder / "answers.json").write_text(json.dumps(table))
    return read_record(RunFolder(folder))


def with_rankings(folder, run):
    shutil.copytree(run, folder)
    files = [jpeg(folder / f"{number}.jpg").name for number in range(14)]
    table = {
        "root": str(folder),
        "files": files,
        "identities": [0, 0, 0, *[1] * 11],
        "queries": [0, 3],
        "average_precision": [0.5, -1],
        "nearest": [list(range(1, 11)), list(range(4, 14))],
        "cmc": {"main": [50.0 + rank for rank in range(30)]},
    }
    (folder / "rankings.json").write_text(json.dumps(table))
    return read_record(RunFolder(folder))


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    runs = [with_answers(folder / path.name, path) for path in sorted((RESULTS / "figures-digits" / "runs").iterdir())]
    made = {name: folder / f"{name}.html" for name in ("one", "plain", "many", "broken", "reid")}
    kinds = by_kind(runs)
    write_report(kinds["DHM"][:1], made["one"])
    write_report(kinds["baseline"][:1], made["plain"])
    # Some twenty kinds of run with long names, and what `sidebranch inspect` measured.
    groups = {f"{name}, optim.lr 0.0{number}": group for number in range(7) for name, group in kinds.items()}
    beside = folder / "many"
    beside.mkdir()
    for name in ("kernels.json", "gradients.json"):
        shutil.copy(RESULTS / "figures-digits" / name, beside)
    made["many"] = beside / "many.html"
    write_report(runs, made["many"], "Many", groups=groups)
    # A run that was stopped after its first epoch, without what is written at the end.
    begun = folder / "begun"
    begun.mkdir()
    shutil.copy(kinds["DHM"][0].folder.config, begun)
    (begun / "metrics.csv").write_text("".join(kinds["DHM"][0].folder.metrics.read_text().splitlines(True)[:2]))
    write_report([read_record(RunFolder(begun))], made["broken"], "Broken <&>")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)  # fields that are called otherwise today
        names = ("baseline-seed0", "dhm-seed0")
        reid = [with_rankings(folder / name, RESULTS / "reid-synthetic" / name) for name in names]
    write_report(reid, made["reid"])
    return made


@pytest.mark.parametrize("dark", [False, True])
def test_pages_are_drawn_and_can_be_read(pages, dark, tmp_path):
    shown = {name: pages[name] for name in (("many", "reid") if dark else pages)}  # the same texts in other colours
    found = look(tmp_path, shown, dark)
    assert {name: each["wrong"] for name, each in found.items() if each["wrong"]} == {}
    assert set(found) == {f"{name} {width}" for name in shown for width in WIDTHS}
    assert all(each["figures"] >= 2 for each in found.values())


def test_the_look_finds_what_is_wrong(pages, tmp_path):
    text = pages["plain"].read_text()
    text = text.replace("--soft: #55555a", "--soft: #aaaaaa").replace('tabindex="0"', "").replace("vegaEmbed(", "gone(")
    (tmp_path / "bad.html").write_text(
        text.replace("<main>", '<main><div style="width: 900px">wide</div><img src="x">')
    )
    found = look(tmp_path, {"bad": tmp_path / "bad.html"}, dark=False)
    wrong = " | ".join(found["bad 390"]["wrong"])
    for each in (
        "gone is not defined",
        "not drawn by Vega",
        "wider than the screen",
        "contrast 2.",
        "keys do not reach",
    ):
        assert each in wrong
    assert "an image without a text" in wrong
