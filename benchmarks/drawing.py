"""The README's pictures: the colours of its two themes, and SVG whose bytes depend on nothing but what is drawn."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

DOCS = Path(__file__).parent.parent / "docs"
# of text, of what is less important, and two more
COLOURS = {"light": ("#1a1a1a", "#57606a", "#0969da", "#b35900"), "dark": ("#f0f0f0", "#9aa4af", "#58a6ff", "#f0a050")}
mpl.rcParams |= {"svg.hashsalt": "sidebranch", "font.family": "DejaVu Sans", "svg.fonttype": "path"}


def svg(figure: Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    return text.getvalue()


def write(pictures: dict[str, str], is_check: bool) -> int:
    """Writes pictures by their names in docs/; or says, as an exit status, whether one there is another."""
    is_stale = False
    for name, fresh in pictures.items():
        path = DOCS / name
        is_stale |= not path.exists() or path.read_text(encoding="utf-8") != fresh
        if not is_check:
            path.write_text(fresh, encoding="utf-8")
    return int(is_stale and is_check)
