"""One self-contained HTML page that compares runs."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from sidebranch.engine.config import as_dict, differences
from sidebranch.engine.files import write_text
from sidebranch.errors import UserError
from sidebranch.inspect.curves import final_errors, training_curves
from sidebranch.inspect.record import Record, by_kind, label, spread, summarise

METHODS = {
    "baseline": "no side branches",
    "dsl": "side branches learn from the labels",
    "dks": "side branches learn from the labels and from one another",
    "dhm": "side branches learn from the labels and, as sampling says, from one another",
}

ERROR_CAPTION = (
    "Each dot is a seed, each bar a mean. What ships is main; the ensemble averages all classifiers' probabilities."
)

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 1.5rem 1rem 3rem; color: #1d1d1f; background: #fff;
       font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
p { margin: .25rem 0 .75rem; max-width: 46rem; } .lead { font-size: 1.1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .8rem .35rem 0; text-align: right; border-bottom: 1px solid #e5e5e5; white-space: nowrap; }
th { font-weight: 600; } th:first-child, td:first-child { text-align: left; }
td.text { text-align: left; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1.5rem; }
figure { margin: 0; } figcaption { color: #555; font-size: .9rem; } svg { width: 100%; height: auto; }
code { background: #f4f4f4; padding: .1em .3em; border-radius: 3px; overflow-wrap: anywhere; }
"""


def write_report(records: Sequence[Record], path: Path, title: str = "Runs") -> None:
    """Writes the page; it needs nothing beside it, and no network."""
    if not records:
        raise UserError("a report needs at least one run")
    write_text(path, page(records, title))


def page(records: Sequence[Record], title: str) -> str:
    """The page's HTML."""
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
        f'<p class="lead">{escape(verdict(records))}</p>',
        "<h2>Validation top-1 error, %</h2>",
        _error_table(records),
        _explanation(records),
        '<h2>Curves</h2><div class="figures">',
        _figure(training_curves(records), _curve_caption(records)),
        _figure(final_errors(records), ERROR_CAPTION),
        "</div>",
        "<h2>Runs</h2>",
        _run_table(records),
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def verdict(records: Sequence[Record]) -> str:
    """What was measured, in a sentence."""
    groups, summary = by_kind(records), summarise(records)
    head = f"Top-1 error of the shipped backbone ({_seeds(max(len(group) for group in groups.values()))}): "
    if "baseline" not in summary or len(summary) < 2:
        return head + "; ".join(f"{kind} {errors['main']} %" for kind, errors in summary.items()) + "."
    baseline = summary.pop("baseline")["main"]
    of_baseline = {record.config.seed: record.error("main") for record in groups["baseline"]}
    sentences = []
    for kind, errors in summary.items():
        gain = baseline.mean - errors["main"].mean
        change = f"{abs(gain):.2f} points {'lower' if gain > 0 else 'higher'}" if abs(gain) >= 0.005 else "the same"
        paired = [record for record in groups[kind] if record.config.seed in of_baseline]
        lower = sum(record.error("main") < of_baseline[record.config.seed] for record in paired)
        among = f", lower with {lower} of {len(paired)} seeds" if len(paired) > 1 else ""
        sentences.append(f"{kind} {errors['main']} %, baseline {baseline} %: {change}{among}")
    return head + "; ".join(sentences) + "."


def _seeds(count: int) -> str:
    return "one seed" if count == 1 else f"mean ± standard deviation of {count} seeds"


def _error_table(records: Sequence[Record]) -> str:
    summary = summarise(records)
    columns = list(dict.fromkeys(column for errors in summary.values() for column in errors))
    lowest = {kind: spread([record.lowest_error for record in group]) for kind, group in by_kind(records).items()}
    rows = [["", *columns, "main's lowest", "seeds"]]
    for kind, errors in summary.items():
        cells = [str(errors[column]) if column in errors else "" for column in columns]
        rows.append([kind, *cells, str(lowest[kind]), str(errors["main"].count)])
    return _table(rows)


def _explanation(records: Sequence[Record]) -> str:
    methods = dict.fromkeys(record.config.method for record in records)
    used = [f"<b>{label(method)}</b>: {METHODS[method]}" for method in methods]
    return (
        f"<p>{'; '.join(used)}. Errors are those after the last epoch, whose weights ship. The lowest epoch's is "
        "optimistic: it was chosen by looking at the validation images.</p>"
    )


def _curve_caption(records: Sequence[Record]) -> str:
    corrupt = records[0].config.data.corrupt_rate
    noise = (
        f" {corrupt:.0%} of the training labels were replaced, so the training error cannot be low." if corrupt else ""
    )
    return f"Training error is measured as training goes, on augmented images.{noise}"


def _run_table(records: Sequence[Record]) -> str:
    rows = [["run", "network", "data", "epochs", "shipped", "in training", "minutes", "differs in"]]
    first = as_dict(records[0].config)
    for record in records:
        counts = record.environment.get("parameters", {})
        config = record.config
        changed = [each.split(":")[0] for each in differences(first, as_dict(config))]
        rows.append(
            [
                str(record.folder.root),
                config.model.name,
                config.data.name,
                f"{record.rows[-1]['epoch']:.0f}",
                f"{counts.get('shipped', 0):,}",
                f"{counts.get('training', 0):,}",
                f"{record.rows[-1]['seconds'] / 60:.1f}",
                ", ".join(changed) or "nothing",
            ]
        )
    hardware = records[0].environment.get("device", "unknown hardware")
    revision = records[0].environment.get("git_revision")
    note = f"<p>First run on {escape(str(hardware))}" + (
        f", revision <code>{escape(revision)}</code>" if revision else ""
    )
    return _table(rows) + note + ". Parameters shipped are the backbone's; the side branches stay behind.</p>"


def _figure(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def _table(rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in rows[0])
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows[1:])
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
