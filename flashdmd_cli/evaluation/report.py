"""Puts measured figures into JSON and into a table; printing is the command line's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from flashdmd_cli.evaluation.suites import Metrics

FIGURES = {
    "composition": "composition ↑",
    "exact": "exact ↑",
    "extra_objects": "third objects ↓",
    "frechet": "Fréchet ↓",
    "high_frequency": "fine texture → 1",
    "coverage": "coverage ↑",
    "pattern_coverage": "patterns ↑",
    "diversity": "diversity → 1",
}
"""What is measured and which way it should go; thresholds may be set on each."""
IN_DOCUMENT_ONLY = ("extra_objects", "pattern_coverage")
"""Parts of other figures: a table that had them too would not fit a terminal."""
COLUMNS = {name: heading for name, heading in FIGURES.items() if name not in IN_DOCUMENT_ONLY}
"""Figures of the table."""
WRONG_WAY = {"--fail-below": "↓", "--fail-above": "↑"}
"""Figures that should go that way cannot miss a threshold of this kind."""


def report(rows: Mapping[str, Metrics], **facts: Any) -> dict[str, Any]:
    """A document for JSON: `facts` (suite, seed, ...) and under `results` the figures of every row."""
    return {**facts, "results": {name: metrics.as_dict() for name, metrics in rows.items()}}


def table(rows: Mapping[str, Metrics], title: str = "") -> Table:
    """The main figures, one line a row, each with half the width of its 95% interval."""
    drawn = Table(title=title or None)
    drawn.add_column("")
    for heading in COLUMNS.values():
        drawn.add_column(heading, justify="right")
    for name, metrics in rows.items():
        drawn.add_row(name, *(_cell(metrics, figure) for figure in COLUMNS))
    return drawn


def attribute_table(rows: Mapping[str, Metrics], title: str = "") -> Table:
    """How often each single attribute is right."""
    drawn = Table(title=title or None)
    drawn.add_column("")
    for attribute in next(iter(rows.values())).attributes if rows else ():
        drawn.add_column(attribute, justify="right")
    for name, metrics in rows.items():
        drawn.add_row(name, *(_cell(metrics, f"attributes.{attribute}") for attribute in metrics.attributes))
    return drawn


def _cell(metrics: Metrics, figure: str) -> str:
    group, _, attribute = figure.partition(".")
    value = metrics.attributes[attribute] if attribute else getattr(metrics, group)
    low, high = metrics.intervals[figure]
    digits = 1 if figure == "frechet" else 3
    return f"{value:.{digits}f} ± {(high - low) / 2:.{digits}f}"


def missed(metrics: Metrics, lowest: Mapping[str, float], highest: Mapping[str, float]) -> list[str]:
    """Which thresholds (lowest and highest allowed value by figure, of `FIGURES`) the figures miss, a line each."""
    told = [f"--fail-below: {name} is {value:.4g}, below {least:.4g}" for name, least in lowest.items()
            if (value := getattr(metrics, name)) < least]  # fmt: skip
    return told + [f"--fail-above: {name} is {value:.4g}, above {most:.4g}" for name, most in highest.items()
                   if (value := getattr(metrics, name)) > most]  # fmt: skip
