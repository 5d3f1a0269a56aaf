"""A comparison of results as a table in Markdown, CSV or LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from flashdmd_cli.evaluation.compare import ARROWS, cell, difference_cell, effort, title, win_cell

LATEX_ARROWS = {"higher": r"$\uparrow$", "lower": r"$\downarrow$", "one": r"$\to 1$", "none": ""}


def render(document: Mapping[str, Any], format: str) -> str:
    """The comparison as Markdown, CSV or LaTeX."""
    return {"markdown": _markdown, "csv": _csv, "latex": _latex}[format](document)


def _markdown(document: Mapping[str, Any]) -> str:
    names, rows = list(document["metrics"]), document["rows"]
    heads = [f"{name} {ARROWS[document['metrics'][name]['direction']]}".strip() for name in names]
    suite = document["suite"]
    lines = [f"Suite {suite['name']}, version {suite['version']}; 95% intervals.", ""]
    lines += _table(["", "steps", "NFE", *heads], [[title(row), *effort(row),
                    *(cell(row["values"].get(name)) for name in names)] for row in rows])  # fmt: skip
    if document.get("warnings"):
        lines += ["", "Not of the same pictures:", "", *(f"- {line}" for line in document["warnings"])]
    others = [row for row in rows[1:] if not row["published"]]
    for what, heading, write in (
        ("Difference from", "paired by prompt and seed", difference_cell),
        ("Share of pairs won against", "ties count half", win_cell),
    ):
        if others:
            lines += ["", f"{what} {rows[0]['name']}, {heading}:", ""]
            lines += _table(["", *heads], [[row["name"], *(write(row["values"][name]) for name in names)]
                                           for row in others])  # fmt: skip
    return "\n".join(lines)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---", *("---:" for _ in head[1:])], *rows]
    return ["| " + " | ".join(each.replace("|", "\\|") for each in line) + " |" for line in lines]


def _csv(document: Mapping[str, Any]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["row", "published", "steps", "nfe", "metric", "value", "low", "high", "n", "difference", "paired",
                     "paired_low", "paired_high", "pairs", "wins", "wins_low", "wins_high"])  # fmt: skip
    for row in document["rows"]:
        for name, entry in row["values"].items():
            pair, wins = entry.get("paired", {}), entry.get("wins", {})
            writer.writerow([row["name"], int(row["published"]), row["steps"], row["nfe"], name, entry.get("value"),
                             entry.get("low"), entry.get("high"), entry.get("n"), entry.get("difference"),
                             pair.get("value"), pair.get("low"), pair.get("high"), entry.get("pairs"),
                             wins.get("value"), wins.get("low"), wins.get("high")])  # fmt: skip
    return stream.getvalue().rstrip("\n")


def _latex(document: Mapping[str, Any]) -> str:
    names = list(document["metrics"])

    def escaped(text: str) -> str:
        return "".join({"_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "$": r"\$"}.get(each, each) for each in text)

    heads = [f"{escaped(name)} {LATEX_ARROWS[document['metrics'][name]['direction']]}" for name in names]
    lines = [
        rf"\begin{{tabular}}{{lrr{'r' * len(names)}}}",
        r"\toprule",
        " & ".join(["Method", "steps", "NFE", *heads]) + r" \\",
    ]
    lines.append(r"\midrule")
    for row in document["rows"]:
        cells = [cell(row["values"].get(name)).replace("±", r"$\pm$") for name in names]
        lines.append(" & ".join([escaped(title(row)), *effort(row), *cells]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])
