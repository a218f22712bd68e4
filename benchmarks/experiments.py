"""Writes docs/experiments.md, the papers' experiments as commands; with --check, says whether it is in step.

python benchmarks/experiments.py [--check]
"""

from __future__ import annotations

import sys
from pathlib import Path

from sidebranch.study.spec import Row, of_papers, read_study

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "experiments.md"
HEAD = """# The papers' experiments

Written by `python benchmarks/experiments.py` from the files in `src/sidebranch/studies/`. A row is one command; results
are the papers', in percent: top-1 (and top-5) error, with the standard deviation over 5 runs; for re-identification
mAP / rank 1. `sidebranch recipes RECIPE` shows where a paper's text, its code and the recipe differ. b1 is the branch
nearest the top, b2 the next: DKS calls main, b1, b2 and b3 C1, C2, C3 and C4.
"""


def result(row: Row, digits: int) -> str:
    """The papers' result; DHM gives three digits after the point, DKS two."""
    values = row.published
    if "mAP" in values:
        return f"{values['mAP']:.1f} / {values['rank1']:.1f}"
    if "top1" not in values:
        return ""
    text = f"{values['top1']:.{digits}f}"
    text += f" ± {values['std']:.{digits}f}" if "std" in values else ""
    text += f" / {values['top5']:.{digits}f}" if "top5" in values else ""
    others = [f"{key.removeprefix('top1 of ')} {value:.{digits}f}" for key, value in values.items() if " of " in key]
    return ", ".join([f"main {text}", *others]) if others else text


def ours(name: str) -> list[str]:
    """What was measured of this table in the short regime, if it was."""
    table = ROOT / "results" / f"{name}-short" / "table.md"
    if not table.exists():
        return []
    about = (
        f"Measured here in another, short regime (`sidebranch study {name}-short`), not comparable with the paper's:"
    )
    return [f"{about}\n", table.read_text(encoding="utf-8").strip(), ""]


def page() -> str:
    parts = [HEAD]
    for name in of_papers():
        study = read_study(name)
        parts.append(f"## {study.about}\n")
        parts.append("| recipe | variant | published | command |\n|---|---|---|---|")
        digits = 3 if name.startswith("dhm") else 2
        parts += [f"| {row.recipe} | {row.variant} | {result(row, digits)} | `{row.command}` |" for row in study.rows]
        parts.append(f"\n{study.note}\n" if study.note else "")
        parts += ours(name)
    return "\n".join(parts)


def main() -> int:
    if "--check" in sys.argv:
        return int(not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page())
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
