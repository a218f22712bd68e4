"""One self-contained HTML page that compares runs."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from sidebranch.errors import UserError
from sidebranch.inspect.curves import cmc_curves, final_errors, training_curves
from sidebranch.inspect.gallery import STYLE as gallery_style
from sidebranch.inspect.gallery import gallery, read_rankings
from sidebranch.inspect.record import Record, by_kind, changes, label, spread, summarise
from sidebranch.inspect.significance import gain
from sidebranch.runs.atomic_files import write_text
from sidebranch.runs.headline import MEAN_AP, TOP1

METHODS = {
    "baseline": "no side branches",
    "dsl": "side branches learn from the labels",
    "dks": "side branches learn from the labels and from one another",
    "dhm": "side branches learn from the labels and, as sampled, from one another",
    "kd": "an outside network teaches",
}

ERROR_CAPTION = (
    "Each dot is a seed, each bar a mean. Main is shipped; the ensemble averages the probabilities of all classifiers."
)
MEAN_AP_CAPTION = (
    "Each dot is a seed, each bar a mean. Main is shipped; concat concatenates the features of all classifiers."
)
CMC_CAPTION = "By main's features, one line per seed."
GALLERY = (
    "The gallery images nearest to some queries by main's features, the nearest first: a solid frame and ✓ mark the "
    "same person, a dashed frame and ✗ another person. Images of the query's person by the query's own camera are left "
    "out, as in the numbers. AP is the query's average precision. Each row is the first finished seed of its kind."
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


def write_report(
    records: Sequence[Record], path: Path, title: str = "Runs", queries: Sequence[str] = (), data_root: str = ""
) -> None:
    """Writes the page: one file, which needs no other and no network.

    Args:
        records: the runs.
        path: of the file.
        title: of the page.
        queries: files of the re-identification queries to show; if none, a few.
        data_root: where the re-identification images are, if they have moved.
    """
    if not records:
        raise UserError("a report needs at least one run")
    write_text(path, page(records, title, queries, data_root))


def page(records: Sequence[Record], title: str, queries: Sequence[str] = (), data_root: str = "") -> str:
    """The page's HTML."""
    headline = records[0].headline
    is_reid = headline == MEAN_AP
    nearest = gallery(records, queries, data_root) if is_reid else ""
    if queries and not is_reid:
        raise UserError("--queries are for re-identification; these runs are of classification")
    curves = {kind: _cmc(group) for kind, group in by_kind(records).items()} if is_reid else {}
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title><style>{STYLE}{gallery_style if is_reid else ''}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
        f'<p class="lead">{escape(verdict(records))}</p>',
        f"<h2>Validation {headline.name}, %</h2>",
        _error_table(records),
        _explanation(records),
        *(["<h2>CMC of the shipped backbone, %</h2>", _rank_table(records)] if is_reid else []),
        '<h2>Curves</h2><div class="figures">',
        _figure(training_curves(records), _curve_caption(records)),
        _figure(final_errors(records), MEAN_AP_CAPTION if is_reid else ERROR_CAPTION),
        *([_figure(cmc_curves(curves), CMC_CAPTION)] if any(curves.values()) else []),
        "</div>",
        *([f"<h2>Nearest images</h2><p>{GALLERY}</p>", nearest] if nearest else []),
        "<h2>Runs</h2>",
        _run_table(records),
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def verdict(records: Sequence[Record]) -> str:
    """The result in a sentence: the means, the gain with its 95 % interval, and the number of images."""
    groups, summary = by_kind(records), summarise(records)
    headline = records[0].headline
    name = headline.name[0].upper() + headline.name[1:] if headline == TOP1 else headline.name
    images = {record.images for record in records}
    count = images.pop() if len(images) == 1 else None
    on = f" on {count:,} images" if count else ""
    head = f"{name} of the shipped backbone{on} ({_seeds(max(len(group) for group in groups.values()))}): "
    if "baseline" not in summary or len(summary) < 2:
        return head + "; ".join(f"{kind} {errors['main']} %" for kind, errors in summary.items()) + "."
    baseline = summary.pop("baseline")["main"]
    of_baseline = _by_seed(groups["baseline"])
    good = "higher" if headline.higher_is_better else "lower"
    sentences = []
    for kind, errors in summary.items():
        values = _by_seed(groups[kind])
        change = gain(values, of_baseline, count, is_share=headline == TOP1)
        paired = values.keys() & of_baseline.keys()
        won = sum(headline.is_better(values[seed], of_baseline[seed]) for seed in paired)
        among = f", {good} with {won} of {len(paired)} seeds" if len(paired) > 1 else ""
        sentences.append(f"{kind} {errors['main']} %, baseline {baseline} %: {change}{among}")
    return head + "; ".join(sentences) + "."


def _by_seed(group: Sequence[Record]) -> dict[int, float]:
    return {record.config.seed: record.value("main") for record in group}


def _seeds(count: int) -> str:
    return "one seed" if count == 1 else f"mean ± standard deviation of {count} seeds"


def _error_table(records: Sequence[Record]) -> str:
    summary = summarise(records)
    columns = list(dict.fromkeys(column for errors in summary.values() for column in errors))
    lowest = {kind: spread([record.best for record in group]) for kind, group in by_kind(records).items()}
    extreme = "highest" if records[0].headline.higher_is_better else "lowest"
    rows = [["", *columns, f"main's {extreme}", "seeds"]]
    for kind, errors in summary.items():
        cells = [str(errors[column]) if column in errors else "" for column in columns]
        rows.append([kind, *cells, str(lowest[kind]), str(errors["main"].count)])
    return _table(rows)


def _explanation(records: Sequence[Record]) -> str:
    methods = dict.fromkeys(record.config.method for record in records)
    used = [f"<b>{label(method)}</b>: {METHODS[method]}" for method in methods]
    what, extreme = ("mAP is that", "highest") if records[0].headline == MEAN_AP else ("Errors are those", "lowest")
    return (
        f"<p>{'; '.join(used)}. {what} after the last epoch, whose weights are shipped. The {extreme} epoch's is "
        "optimistic: it is selected on the validation images.</p>"
    )


def _rank_table(records: Sequence[Record]) -> str:
    """Share of queries with a match in the first 1, 5, 10, 20."""
    keys = [key for key in records[0].rows[-1] if key.startswith("val/rank") and key.endswith("/main")]
    rows = [["", *(key.split("/")[1].replace("rank", "rank ") for key in keys)]]
    for kind, group in by_kind(records).items():
        rows.append([kind, *(str(spread([record.rows[-1][key] for record in group])) for key in keys)])
    return _table(rows)


def _cmc(group: Sequence[Record]) -> list[list[float]]:
    """Main's CMC curves of the finished seeds."""
    return [table["cmc"]["main"] for record in group if (table := read_rankings(record)) is not None]


def _curve_caption(records: Sequence[Record]) -> str:
    if records[0].headline == MEAN_AP:
        return "After every epoch, on persons who are not in the training set."
    corrupt = records[0].config.data.corrupt_rate
    noise = (
        f" {corrupt:.0%} of the training labels were replaced, so the training error cannot be low." if corrupt else ""
    )
    return f"Training error is measured during training, on augmented images.{noise}"


def _run_table(records: Sequence[Record]) -> str:
    rows = [["run", "network", "data", "epochs", "shipped", "in training", "minutes", "differs in"]]
    for record in records:
        counts = record.environment.get("parameters", {})
        config = record.config
        changed = [each.split(":")[0] for each in changes(records[0], record)]
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
    return _table(rows) + note + ". The shipped parameters are the backbone's, without the side branches.</p>"


def _figure(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def _table(rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in rows[0])
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows[1:])
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
