"""One self-contained HTML page that compares runs: what is on it. `page.html.j2` says how it looks."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from sidebranch.errors import UserError
from sidebranch.inspect import charts
from sidebranch.inspect.arrays import who_teaches_whom
from sidebranch.inspect.chart import Chart, as_json, scripts
from sidebranch.inspect.charts import Groups
from sidebranch.inspect.exit_charts import error_against_macs, error_against_time
from sidebranch.inspect.gallery import embedded, gallery, read_rankings
from sidebranch.inspect.record import Record, by_kind, changes, label, read_json, spread, summarise
from sidebranch.inspect.significance import gain
from sidebranch.runs.atomic_files import write_text
from sidebranch.runs.folder import EARLY_EXIT
from sidebranch.runs.headline import MEAN_AP, TOP1

METHODS = {
    "baseline": "no side branches",
    "dsl": "side branches learn from the labels",
    "dks": "side branches learn from the labels and from one another",
    "dhm": "side branches learn from the labels and, as sampled, from one another",
    "kd": "an outside network teaches",
}
PAIRS = 12  # confusions that are shown
MOST = 6  # kinds of run with charts of their own
ANSWERS = {"classes", "bins", "errors", "confused"}
MEASURED: dict[str, tuple[Callable[[Any], Chart], ...]] = {
    "kernels.json": (charts.kernel_correlation,),
    "gradients.json": (charts.gradient_alignment,),
    EARLY_EXIT: (error_against_macs, error_against_time),
}


def write_report(
    records: Sequence[Record],
    path: Path,
    title: str = "Runs",
    queries: Sequence[str] = (),
    data_root: str = "",
    groups: Groups | None = None,
    sentences: Sequence[str] = (),
) -> None:
    """Writes the page: one file, which needs no other and no network.

    `kernels.json` and `gradients.json` beside it, of `sidebranch inspect`, and `early_exit.json`, of `sidebranch eval
    --early-exit`, are shown on it.

    Args:
        records: the runs.
        path: of the file.
        title: of the page.
        queries: files of the re-identification queries to show; if none, a few.
        data_root: where the re-identification images are, if they have moved.
        groups: name to runs that differ in the seed; by their configs if left out.
        sentences: the result; that of `verdict` if left out.
    """
    if not records:
        raise UserError("a report needs at least one run")
    groups = groups or by_kind(records)
    write_text(path, page(groups, title, queries, data_root, sentences or [verdict(records)], _measured(path.parent)))


def page(
    groups: Groups,
    title: str,
    queries: Sequence[str] = (),
    data_root: str = "",
    sentences: Sequence[str] = (),
    measured: Sequence[Chart] = (),
) -> str:
    """The page's HTML."""
    from jinja2 import Environment, PackageLoader  # slow to import

    records = [record for group in groups.values() for record in group]
    headline = records[0].headline
    is_reid = headline == MEAN_AP
    if queries and not is_reid:
        raise UserError("--queries are for re-identification; these runs are of classification")
    answers = {} if is_reid else _answers(groups)
    environment = Environment(
        loader=PackageLoader("sidebranch.inspect", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html.j2").render(
        title=title,
        verdict=sentences,
        headline=headline,
        errors=_error_table(groups),
        explanation=_explanation(records),
        ranks=_rank_table(groups) if is_reid else None,
        sections={
            "Results": _results(groups),
            "Classifiers": _of_classifiers(groups),
            "Answers": _of_answers(answers),
            "Inside": measured,
        },
        **_confused(answers),
        galleries=gallery(groups, queries, data_root) if is_reid else [],
        thumb=embedded,
        runs=_run_table(records),
        hardware=_hardware(records[0]),
        scripts=scripts(),
        as_json=as_json,
    )


def verdict(records: Sequence[Record]) -> str:
    """The result in a sentence: the means, the gain with its 95 % interval, and the number of images."""
    groups = by_kind(records)
    summary = summarise(groups)
    headline = records[0].headline
    name = headline.name[0].upper() + headline.name[1:] if headline == TOP1 else headline.name
    images = {record.images for record in records}
    count = images.pop() if len(images) == 1 else None
    on = f" on {count:,} images" if count and headline == TOP1 else ""
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


def _error_table(groups: Groups) -> list[list[str]]:
    summary = summarise(groups)
    columns = list(dict.fromkeys(column for errors in summary.values() for column in errors))
    first = next(iter(groups.values()))[0]
    extreme = "highest" if first.headline.higher_is_better else "lowest"
    rows = [["run", *columns, f"main's {extreme}", "seeds"]]
    for kind, errors in summary.items():
        cells = [str(errors[column]) if column in errors else "" for column in columns]
        lowest = spread([record.best for record in groups[kind]])
        rows.append([kind, *cells, str(lowest), str(errors["main"].count)])
    return rows


def _explanation(records: Sequence[Record]) -> str:
    methods = dict.fromkeys(record.config.method for record in records)
    used = [f"{label(method)}: {METHODS[method]}" for method in methods]
    what, extreme = ("mAP is that", "highest") if records[0].headline == MEAN_AP else ("Errors are those", "lowest")
    corrupt = records[0].config.data.corrupt_rate
    noise = f" {corrupt:.0%} of the training labels were replaced, so the training error cannot be low."
    return (
        f"{'; '.join(used)}. {what} after the last epoch, whose weights are shipped. The {extreme} epoch's is "
        "optimistic: it is selected on the validation images." + (noise if corrupt else "")
    )


def _rank_table(groups: Groups) -> list[list[str]]:
    """Share of queries with a match in the first 1, 5, 10, 20."""
    first = next(iter(groups.values()))[0]
    keys = [key for key in first.rows[-1] if key.startswith("val/rank") and key.endswith("/main")]
    rows = [["run", *(key.split("/")[1].replace("rank", "rank ") for key in keys)]]
    for kind, group in groups.items():
        rows.append([kind, *(str(spread([record.rows[-1][key] for record in group])) for key in keys)])
    return rows


def _results(groups: Groups) -> list[Chart]:
    found = [charts.error_over_epochs(groups), charts.final_values(groups)]
    if len(groups) > 1:
        found.append(charts.cost_against_error(groups))
    curves = {kind: _cmc(group) for kind, group in groups.items()}
    return [*found, charts.cmc_curves(curves)] if any(curves.values()) else found


def _cmc(group: Sequence[Record]) -> list[list[float]]:
    """Main's CMC curves of the finished seeds."""
    return [table["cmc"]["main"] for record in group if (table := read_rankings(record)) is not None]


def _of_classifiers(groups: Groups) -> list[Chart]:
    found = []
    for kind, group in list(groups.items())[:MOST]:
        if len(group[0].columns) > 1:
            if "objective" in group[0].environment:  # the first runs have none
                made, settings = group[0].environment["objective"], group[0].config.objective
                found.append(who_teaches_whom(kind, made, settings))
            found += [charts.classifiers_over_epochs(kind, group), charts.mimicry_over_epochs(kind, group)]
    return [chart for chart in found if chart is not None]


def _answers(groups: Groups) -> dict[str, list[dict[str, Any]]]:
    """Kind of run to answers.json of its finished seeds, of those with the same classes as the first."""
    found: dict[str, list[dict[str, Any]]] = {}
    classes = None
    for kind, group in groups.items():
        tables = [read_json(record.folder.answers, ANSWERS) for record in group if record.folder.answers.is_file()]
        if tables and classes is None:
            classes = tables[0]["classes"]
        if same := [table for table in tables if table["classes"] == classes]:
            found[kind] = same
    return found


def _of_answers(answers: Mapping[str, Sequence[dict[str, Any]]]) -> list[Chart]:
    if not answers:
        return []
    bins = {
        kind: [[sum(values) for values in zip(*places, strict=True)] for places in zip(*mains, strict=True)]
        for kind, tables in answers.items()
        if (mains := [table["bins"]["main"] for table in tables])
    }
    calibration = {
        kind: mean(charts.calibration_error(table["bins"]["main"]) for table in tables)
        for kind, tables in answers.items()
    }
    classes = next(iter(answers.values()))[0]["classes"]
    errors = {
        kind: {
            name: mean(known)
            for place, name in enumerate(classes)
            if (known := [t["errors"]["main"][place] for t in tables if t["errors"]["main"][place] is not None])
        }
        for kind, tables in answers.items()
    }
    return [charts.reliability(bins, calibration), charts.worst_classes(errors)]


def _confused(answers: Mapping[str, Sequence[dict[str, Any]]]) -> dict[str, Any]:
    """The confusions of the last kind of run, added up over its seeds, with the images of the first that has some."""
    if not answers:
        return {}
    kind, tables = list(answers.items())[-1]
    found: dict[tuple[int, int], dict[str, Any]] = {}
    for table in tables:
        for pair in table["confused"]:
            names = {key: table["classes"][pair[key]] for key in ("class", "answer")}
            known = found.setdefault((pair["class"], pair["answer"]), {**names, "count": 0, "examples": []})
            known["count"] += pair["count"]
            known["examples"] = known["examples"] or pair["examples"]
    ordered = sorted(found.values(), key=lambda pair: -pair["count"])
    return {"confused": ordered[:PAIRS], "confused_of": kind}


def _measured(folder: Path) -> list[Chart]:
    """What `sidebranch inspect` and `eval --early-exit` measured, beside the page."""
    found = []
    for name, drawn in MEASURED.items():
        if (folder / name).is_file():
            try:
                measured = json.loads((folder / name).read_text(encoding="utf-8"))
                found += [chart(measured) for chart in drawn]
            except (ValueError, KeyError, TypeError, StopIteration, AttributeError, IndexError) as error:
                raise UserError(f"'{folder / name}' is not as sidebranch writes it; remove it") from error
    return found


def _run_table(records: Sequence[Record]) -> list[list[str]]:
    rows = [["run", "network", "data", "epochs", "shipped", "in training", "minutes", "differs in"]]
    for record in records:
        counts = record.environment.get("parameters", {})
        config = record.config
        changed = [each.split(":")[0] for each in changes(records[0], record)]
        rows.append(
            [
                str(record.folder.root),
                config.model.name,
                config.data.title,
                f"{record.rows[-1]['epoch']:.0f} of {config.optim.epochs}",
                f"{counts.get('shipped', 0):,}",
                f"{counts.get('training', 0):,}",
                f"{record.rows[-1]['seconds'] / 60:.1f}",
                ", ".join(changed) or "nothing",
            ]
        )
    return rows


def _hardware(record: Record) -> str:
    known, revision = record.environment.get("device", "unknown hardware"), record.environment.get("git_revision")
    return f"First run on {known}" + (f", revision {revision}" if revision else "") + "."
