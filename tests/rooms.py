"""The rooms of the package and what each may import; `python tests/rooms.py` draws the table into docs/design.md."""

import ast
import re
from pathlib import Path

PROJECT = Path(__file__).parent.parent
ROOT = PROJECT / "src" / "sidebranch"

# Room, what flows in and out, and the rooms it may import; every one of them is above it.
ROOMS = [
    ("errors", "messages for the user", ""),
    ("seeding", "keys to random numbers, without state", "errors"),
    ("config", "YAML and flags to `Config`: dataclasses, ranges, rules across fields; no torch", "errors"),
    (
        "core",
        "images to `Outputs`, outputs and labels to `Loss`; sampling, features, triplets; torch alone",
        "errors seeding",
    ),
    ("branches", "a backbone to side branches: grown, checked against the papers' rules", "errors core"),
    ("zoo", "the papers' networks and published branches, registered with timm", "errors core branches"),
    ("_registration", "timm's import to the zoo's, whichever comes first", "zoo"),
    ("_attach", "`attach`: a backbone and a choice to a branched model", "errors core branches zoo"),
    (
        "weights",
        "a file, folder or repository of weights to tensors, and a network that starts from them",
        "errors zoo",
    ),
    ("network", "a config to a branched model", "errors config core branches zoo _attach weights"),
    ("device", "`auto` settings to what this device can do; compilation, kernels", "errors config"),
    ("data", "a data set's name to splits, splits to batches on the device", "errors seeding config device"),
    ("metrics", "scores and labels to top-k, distances to mAP and CMC, batches to sums", "errors"),
    ("prepare", "files to files: data sets checked, sorted, generated", "errors seeding data"),
    ("distributed", "one process to several: launch, reduce, skip unused gradients", "errors config device"),
    ("runs", "a run folder: files, checkpoints, resume, console", "errors config core weights device distributed"),
    (
        "evaluation",
        "a network and a loader to errors, mAP, CMC, early exits",
        "errors config core branches zoo network device data metrics distributed runs",
    ),
    (
        "train",
        "a config to a trained network and its folder",
        "errors seeding config core zoo weights network device data metrics distributed runs evaluation",
    ),
    (
        "deploy",
        "a run to what ships, read back and compared",
        "errors config core branches network data runs evaluation zoo",
    ),
    (
        "inspect",
        "run folders to tables, figures, a page; a network to its cost, kernels, gradients",
        "errors config core branches runs",
    ),
    (
        "study",
        "a table of recipes and variants to many runs, and their results",
        "errors config network runs train inspect",
    ),
    (
        "predict",
        "a model and photographs to answers, features, a page",
        "errors config core branches weights network data device runs deploy inspect",
    ),
    (
        "cli",
        "words to one of the rooms above",
        " ".join(
            [
                "errors config _attach branches network device data prepare",
                "distributed runs evaluation train deploy inspect study predict",
            ]
        ),
    ),
    ("__init__", "the public names, imported when first used", "errors core branches zoo _attach _registration"),
    ("__main__", "`python -m sidebranch`", "cli"),
]
ALLOWED = {name: allowed.split() for name, _, allowed in ROOMS}


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def rooms_of(path: Path, source: str = "") -> set[str]:
    """The rooms that a file imports, at any depth of its code."""
    package = ["sidebranch", *path.relative_to(ROOT).parts[:-1]]
    names = set()
    for node in ast.walk(ast.parse(source or path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parent = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*parent, *([node.module] if node.module else [])])
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return {parts[1] for name in names if (parts := name.split("."))[0] == "sidebranch" and len(parts) > 1}


def table() -> str:
    """The table in Markdown."""
    lines = ["| room | in and out | imports |", "|---|---|---|"]
    for name, flow, allowed in ROOMS:
        place = f"{name}/" if (ROOT / name).is_dir() else f"{name}.py"
        lines.append(f"| `{place}` | {flow} | {', '.join(allowed.split()) or '-'} |")
    return "\n".join(lines)


def draw() -> None:
    """Puts the table between the markers in docs/design.md."""
    path = PROJECT / "docs" / "design.md"
    marked = re.compile(r"(<!-- rooms -->\n).*?(\n<!-- /rooms -->)", re.DOTALL)
    path.write_text(marked.sub(lambda found: found[1] + table() + found[2], path.read_text()))


if __name__ == "__main__":
    draw()
