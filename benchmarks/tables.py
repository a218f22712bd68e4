"""Writes the README's measured numbers from the files under results/; with --check, says whether they are in step.

python benchmarks/tables.py [--check]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from sidebranch.engine import RunFolder
from sidebranch.inspect import Record, label, read_record, summarise, verdict

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- measured: benchmarks/tables.py writes from here -->", "<!-- to here -->"


def records(study: str) -> list[Record]:
    """The runs kept under results/, in the order of their names."""
    return [read_record(RunFolder(path.parent)) for path in sorted((ROOT / "results" / study).glob("*/metrics.csv"))]


def errors_table(runs: list[Record]) -> str:
    summary = summarise(runs)
    columns = list(dict.fromkeys(column for errors in summary.values() for column in errors))
    lines = ["| top-1 error, % | " + " | ".join(columns) + " | seeds |", "|---" * (len(columns) + 2) + "|"]
    for kind, errors in summary.items():
        cells = [str(errors.get(column, "")) for column in columns]
        lines.append(f"| {kind} | " + " | ".join(cells) + f" | {errors['main'].count} |")
    return "\n".join(lines)


def step_table() -> str:
    measured = json.loads((ROOT / "results/bench/step-cpu.json").read_text(encoding="utf-8"))
    lines = ["| step, batch 128 | plain, ms | ours, ms | ratio |", "|---|---|---|---|"]
    for row in measured["rows"]:
        times = [f"{row[f'{kind}_ms']} ({row[f'{kind}_quartiles_ms']})" for kind in ("plain", "ours")]
        lines.append(f"| {row['model']}, {label(row['method'])} | {times[0]} | {times[1]} | {row['ratio']} |")
    return "\n".join(lines)


def measured() -> str:
    short = records("cifar100-resnet32-short")
    device = json.loads((ROOT / "results/bench/step-cpu.json").read_text(encoding="utf-8"))["environment"]["device"]
    return f"""`cifar100/resnet32-short`: ResNet-32, the first 10,000 training images of CIFAR-100, 40 epochs; errors
after the last epoch on the 10,000 validation images; rows and configs in `results/cifar100-resnet32-short/`.
{verdict(short)}

{errors_table(short)}

A training step on {device} (median and quartiles, taking turns in one run; `make bench`). "Plain" is eager, float32,
NCHW, a loop of kernels over the pairs with a synchronisation a term; "ours" is what `sidebranch train` does.

{step_table()}
"""


def main() -> int:
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    fresh = f"{head}{BEGIN}\n{measured()}{END}{tail}"
    if "--check" in sys.argv:
        return int(fresh != text)
    readme.write_text(fresh, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
