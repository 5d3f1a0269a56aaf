"""`report.html`: one evaluation, or several of one suite side by side, as a page for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flashdmd_cli.evaluation.compare import (
    ARROWS,
    Result,
    compare_results,
    effort,
    has_published,
    number,
    published_rows,
)
from flashdmd_cli.evaluation.distributions import distribution
from flashdmd_cli.evaluation.exhibits import Cell, Folded, Table
from flashdmd_cli.evaluation.page import Exhibit, Page, Section, write_page
from flashdmd_cli.evaluation.picture_groups import Gallery, Source, best_and_worst, evenly, most_changed
from flashdmd_cli.evaluation.plots import Plots
from flashdmd_cli.evaluation.results import REPORT, named, pictures_folder, read_results, read_samples
from flashdmd_cli.runs.reporter import duration

BETTER = {"higher": "higher is better", "lower": "lower is better", "one": "1 is best", "none": "a description"}
INTERVALS = (
    "Below each value is its 95% interval: it covers the value of infinitely many such prompts and pictures in 95 of "
    "100 evaluations. It says nothing of prompts of another kind."
)
PUBLISHED = (
    "Rows in italics are published values ({source}); they have no intervals, and their source does not say which "
    "version of HPSv2 and which prefix of the CLIP score it used."
)
PAIRED = (
    "For metrics of single pictures the difference is the mean over pairs of the same prompt and seed, which is more "
    "precise than the intervals of the two values suggest. A pair is won by the better value; ties count half. Each "
    "interval holds for itself: of 20 metrics that do not differ, one is expected to look different."
)
EVENLY = "Chosen at even distances over the suite, whatever their scores."
EXTREMES = "The extreme pictures show what a metric rewards and where a model fails; they are not typical."
CHANGED = (
    "Each pair is of the same prompt and noise. Prompts are ordered by the mean difference over their seeds, which is "
    "in brackets; the seed that is shown is the one that changed most."
)
DISTRIBUTIONS = "Of single pictures; the line is at the mean. Metrics of whole sets have no value for a single picture."
MAX_COLUMNS = 4
"""Results that stand side by side as columns; more are lines."""
NOT_PROVENANCE = {"schema", "name", "metrics", "pictures", "skipped", "warnings", "out", "manifest", "pictures_in"}
"""Keys of `results.json` that stand elsewhere on the page, or that are folders of one machine."""


def read_result(path: Path, name: str | None = None) -> Result:
    """A finished evaluation with its samples and pictures; InputError if `path` is none."""
    document = read_results(path)
    folder = path if path.is_dir() else path.parent
    stated = str(document.get("name") or folder.name)
    return Result(name or stated, document, read_samples(path), pictures_folder(path, document))


def write_evaluation_report(folder: Path) -> Path:
    """Write `report.html` beside the `results.json` of a folder."""
    return write_page(folder / REPORT, evaluation_page(read_result(folder)))


def evaluation_page(result: Result) -> Page:
    """The page of one evaluation."""
    source, document = Source(result), result.document
    gallery = Gallery()
    even, extreme = gallery.add(evenly([source])), gallery.add(best_and_worst(source))
    small = gallery.thumbnails()
    names = list(result.metrics)
    sections = [Section("Values", [INTERVALS, *(document.get("warnings") or [])], values(result))]
    if has_published(document):
        compared = compare_results([result], names)
        compared["rows"] += published_rows(names)
        sections.append(published(compared))
    sections += [
        Section("Pictures", [EVENLY], even(small)),
        Section("Best and worst", [EXTREMES], extreme(small)),
        Section("Distributions", [DISTRIBUTIONS], distributions([result], names)),
        left_out([result], names),
        provenance([result], names),
    ]
    return Page(f"{result.name} on {document['suite']['name']}", lead(document), shown(sections))


def comparison_page(results: Sequence[Result], document: Mapping[str, Any]) -> Page:
    """The page of a comparison; `document` is what `compare_results` found, perhaps with published rows."""
    sources = [Source(each) for each in results]
    names, gallery = list(document["metrics"]), Gallery()
    even, changed = gallery.add(evenly(sources)), gallery.add(most_changed(sources, names))
    small = gallery.thumbnails()
    few = len(results) <= MAX_COLUMNS
    sections = [
        Section(
            "Values",
            [INTERVALS, *(document.get("warnings") or [])],
            [columns_table(document) if few else rows_table(document, names)],
        ),
        published(document),
        Section(f"Differences from {results[0].name}", [PAIRED], differences(document)),
        Section("Side by side", [EVENLY], even(small)),
        Section("Most changed", [CHANGED], changed(small)),
        Section("Distributions", [DISTRIBUTIONS], distributions(results, names)),
        left_out(results, names),
        provenance(results, names),
    ]
    others = f"{len(results)} evaluations" if len(results) > 2 else " and ".join(each.name for each in results)
    return Page(f"{others} on {document['suite']['name']}", suite_line(document["suite"]), shown(sections))


def shown(sections: Sequence[Section]) -> list[Section]:
    """Those that have something to show."""
    return [each for each in sections if each.exhibits]


def suite_line(suite: Mapping[str, Any]) -> str:
    """`40 pictures of 40 prompts, the first of shapes-val (version 1).`"""
    first = ", the first" if suite.get("limit") is not None else ""
    what = f"{suite['name']} (version {suite['version']})"
    return f"{suite['pictures']:,} pictures of {suite['prompts']:,} prompts{first} of {what}."


def lead(document: Mapping[str, Any]) -> str:
    """What was drawn, and how long it took."""
    line = suite_line(document["suite"])
    if document.get("steps"):
        line += f" {document['steps']} sampling steps."
    seconds = document.get("seconds") or {}
    if seconds:
        line += f" Drawing took {duration(seconds['generate'])}, measuring {duration(seconds['score'])}."
    return line


def values(result: Result) -> list[Exhibit]:
    """A line for each metric: which way is better, value, interval, number of pictures; its parts folded."""
    rows: list[list[Cell | str]] = []
    folds: list[Exhibit] = []
    for name, found in result.metrics.items():
        rows.append([metric_cell(name, found), value_cell(found), f"{found['n']:,}"])
        if parts := found.get("parts"):
            lines: list[list[Cell | str]] = [[part, value_cell(each)] for part, each in parts.items()]
            folds.append(Folded(f"Parts of {name}", [Table(["part", "value"], lines)]))
    return [Table(["metric", "value", "pictures"], rows), *folds]


def metric_cell(name: str, found: Mapping[str, Any]) -> Cell:
    """Name and arrow of a metric; below it which way is better, its unit and its scale."""
    below = [BETTER[found["direction"]], *(str(found[key]) for key in ("unit", "scale") if found.get(key))]
    return Cell(f"{name} {ARROWS[found['direction']]}".strip(), "; ".join(dict.fromkeys(below)))


def value_cell(found: Mapping[str, Any] | None) -> Cell:
    """A value with its interval below, where it has one."""
    if found is None or found.get("value") is None:
        return Cell("-")
    low, high = found.get("low"), found.get("high")
    between = f"{number(low)} to {number(high)}" if low is not None and high is not None and low < high else ""
    return Cell(number(found["value"]), between)


def columns_table(document: Mapping[str, Any]) -> Table:
    """A line for each metric, a column for each result: few results, so that a phone shows all."""
    rows = [row for row in document["rows"] if not row["published"]]
    lines: list[list[Cell | str]] = [
        [metric_cell(name, found), *(value_cell(row["values"][name]) for row in rows)]
        for name, found in document["metrics"].items()
    ]
    return Table(["metric", *(row["name"] for row in rows)], lines)


def rows_table(document: Mapping[str, Any], names: Sequence[str], printed: bool = False) -> Table:
    """A line for each result, and with `printed` for each published row; a column for each metric."""
    rows = [row for row in document["rows"] if printed or not row["published"]]
    lines: list[list[Cell | str]] = [
        [row_cell(row), *effort(row), *(value_cell(row["values"].get(name)) for name in names)] for row in rows
    ]
    heads = [metric_cell(name, document["metrics"][name]).text for name in names]
    marked = {i: "published" for i, row in enumerate(rows) if row["published"]}
    return Table(["", "steps", "NFE", *heads], lines, marked=marked)


def row_cell(row: Mapping[str, Any]) -> Cell:
    """The name of a row, and below it which tables of the paper printed it."""
    return Cell(row["name"], f"published, Table {', '.join(map(str, row['tables']))}" if row["published"] else "")


def published(document: Mapping[str, Any]) -> Section:
    """The results and the published rows, with the metrics that these have; nothing if there is no such metric."""
    rows = [row for row in document["rows"] if row["published"] and row["values"]]
    names = [name for name in document["metrics"] if any(name in row["values"] for row in rows)]
    if not names:
        return Section("Beside published values")
    note = PUBLISHED.format(source=rows[0]["source"])
    return Section("Beside published values", [note], [rows_table(document, names, printed=True)])


def differences(document: Mapping[str, Any]) -> list[Exhibit]:
    """For each result but the first a line for each metric: what the difference says, the difference, pairs won."""
    found: list[Exhibit] = []
    others = [row for row in document["rows"][1:] if not row["published"]]
    for row in others:
        lines = [difference_cells(name, entry, document["metrics"][name]) for name, entry in row["values"].items()]
        drawn = Table(["metric", "difference", "pairs won"], lines)
        found.append(drawn if len(others) == 1 else Folded(row["name"], [drawn]))
    return found


def difference_cells(name: str, entry: Mapping[str, Any], metric: Mapping[str, Any]) -> list[Cell]:
    """The metric with the verdict below (better, worse or undecided), difference and pairs won with their intervals."""
    title = metric_cell(name, metric).text
    if "paired" not in entry:
        known = entry.get("difference") is not None
        return [Cell(title, "not paired"), Cell(f"{entry['difference']:+.4g}" if known else "-"), Cell("-")]
    paired, wins = entry["paired"], entry.get("wins")
    difference = Cell(f"{paired['value']:+.3g}", f"{paired['low']:+.3g} to {paired['high']:+.3g}")
    if wins is None:
        return [Cell(title), difference, Cell("-")]
    won = Cell(f"{wins['value']:.0%}", f"{wins['low']:.0%} to {wins['high']:.0%}")
    if paired["low"] <= 0 <= paired["high"]:
        return [Cell(title, "undecided"), difference, won]
    better = (paired["low"] > 0) == (metric["direction"] == "higher")
    return [Cell(title, "better" if better else "worse", "good" if better else "bad"), difference, won]


def distributions(results: Sequence[Result], names: Sequence[str]) -> list[Exhibit]:
    """A plot for each metric of single pictures; empty if there is no such metric."""
    plots = []
    for name in names:
        scores = {each.name: list(each.scores(name).values()) for each in results}
        plots.append(distribution(f"{name} {ARROWS[results[0].metrics[name]['direction']]}".strip(), scores))
    shown = [plot for plot in plots if plot is not None]
    return [Plots(shown)] if shown else []


def left_out(results: Sequence[Result], names: Sequence[str]) -> Section:
    """What was not measured, and why: metrics, pictures, prompts; and what was measured but is conspicuous."""
    rows: list[list[Cell | str]] = []
    for result in results:
        prefix = f"{result.name}: " if len(results) > 1 else ""
        document = result.document
        rows += [[f"{prefix}{name}", f"not measured: {why}"] for name, why in (document.get("skipped") or {}).items()]
        rows += [[f"{prefix}{name}", "not measured in every result"] for name in result.metrics if name not in names]
        pictures = document.get("pictures") or {}
        rows += [[f"{prefix}{named(each)}", f"left out: {why}"] for why, each in pictures.get("left_out", {}).items()]
        rows += [
            [f"{prefix}{named(each)}", f"measured, noted: {note}"] for note, each in pictures.get("notes", {}).items()
        ]
        if len(results) > 1:
            rows += [[f"{prefix}warning", line] for line in document.get("warnings") or []]
    if not rows:
        rows.append(["nothing", "every metric of the suite was measured, on every picture"])
    return Section("Left out and noted", (), [Table([], rows, "text")])


def provenance(results: Sequence[Result], names: Sequence[str]) -> Section:
    """What was evaluated, on what and with what; the metrics' weights, preprocessing and versions folded."""
    runs = [dict(flat({key: value for key, value in each.document.items() if key not in NOT_PROVENANCE}))
            for each in results]  # fmt: skip
    keys = dict.fromkeys(key for each in runs for key in each)
    heads = ["", *(each.name for each in results)] if len(results) > 1 else []
    facts_of_runs = Table(heads, [[key, *(each.get(key, "-") for each in runs)] for key in keys], "text")
    kept = ("version", "unit", "scale", "direction", "provenance")
    lines = []
    for name in names:
        facts = {key: results[0].metrics[name].get(key) for key in kept}
        lines += [[f"{name}.{key}", text] for key, text in flat(facts)]
    of_metrics = Folded("Metrics: weights, preprocessing, versions", [Table([], lines, "text")])
    return Section("Provenance", (), [facts_of_runs, of_metrics])


def flat(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """The leaves of nested tables as (`suite.name`, text); what is empty is left out."""
    if isinstance(value, Mapping):
        for name, each in value.items():
            yield from flat(each, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        if value:
            yield key, ", ".join(str(each) for each in value)
    elif value not in (None, ""):
        yield key, f"{value:.4g}" if isinstance(value, float) else str(value)
