"""Puts measured values into a table, and compares them with thresholds; printing is the command line's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table
from rich.text import Text

from flashdmd_cli.evaluation.measuring import Measured
from flashdmd_cli.evaluation.metrics.frechet import UNBIASED
from flashdmd_cli.evaluation.metrics.intervals import shown
from flashdmd_cli.evaluation.metrics.metric import Metric
from flashdmd_cli.runs.errors import UsageError
from flashdmd_cli.runs.files import visible

ARROWS = {"higher": "↑", "lower": "↓", "one": "→ 1", "none": ""}
"""Which way a value should go, as headings show it."""
NOT_SHOWN = (UNBIASED,)
"""Groups of parts that are in `results.json` alone."""


def heading(metric: Metric) -> str:
    """A metric's heading with the arrow of its direction."""
    return f"{metric.heading} {ARROWS[metric.direction]}".strip()


def table(rows: Mapping[str, Measured], metrics: Sequence[Metric], title: str = "") -> Table:
    """A line for every metric with `in_table` (for all, if none has it), a column for every set of pictures in `rows`:
    values with half of their 95% interval, or with its ends where it is not symmetric."""
    lines = [metric for metric in metrics if metric.in_table] or list(metrics)
    named = [(heading(metric), metric.name, metric.digits) for metric in lines]
    return _table(rows, named, title)


def parts_tables(rows: Mapping[str, Measured], title: str = "") -> list[Table]:
    """A table for each group of parts (`attributes.color_1`, ...) of the values, with a line for every part."""
    names = [name for name in (next(iter(rows.values())).values_by_name if rows else ()) if "." in name]
    groups = [group for group in dict.fromkeys(name.partition(".")[0] for name in names) if group not in NOT_SHOWN]
    return [
        _table(rows, [(name.partition(".")[2], name, 3) for name in names if name.startswith(f"{group}.")], title)
        for group in groups
    ]


def _table(rows: Mapping[str, Measured], lines: Sequence[tuple[str, str, int]], title: str) -> Table:
    """`lines`: heading, name of the value, digits."""
    drawn = Table(title=title or None)
    drawn.add_column("")
    for name in rows:
        drawn.add_column(Text(visible(name), overflow="fold"), justify="right")
    for text, name, digits in lines:
        drawn.add_row(text, *(_cell(measured, name, digits) for measured in rows.values()))
    return drawn


def _cell(measured: Measured, figure: str, digits: int = 3) -> str:
    found = measured.values_by_name[figure]
    return shown(found.value, found.low, found.high, lambda value: f"{value:.{digits}f}")


def check_thresholds(metrics: Sequence[Metric], lowest: Mapping[str, float], highest: Mapping[str, float]) -> None:
    """UsageError for a threshold on what the suite does not measure, or that a good value would miss.

    A metric of which lower is better has no lowest allowed value, one of which higher is better no highest; a ratio
    that should be 1 may have both.
    """
    known = {metric.name: metric for metric in metrics}
    for flag, other, names, wrong in (
        ("--fail-below", "--fail-above", lowest, "lower"),
        ("--fail-above", "--fail-below", highest, "higher"),
    ):
        for name in names:
            if name not in known:
                raise UsageError(f"{flag} {name}: no such metric", hint=f"one of {', '.join(known)}")
            if known[name].direction == wrong:
                raise UsageError(f"{flag} {name}: {wrong} is better", hint=f"{other} {name}=NUMBER")


def missed(measured: Measured, lowest: Mapping[str, float], highest: Mapping[str, float]) -> list[str]:
    """Which thresholds (lowest and highest allowed value by metric) the values miss, a line each; NaN misses all."""
    lines = [f"--fail-below: {name} is {value:.4g}, below {least:.4g}" for name, least in lowest.items()
            if not (value := value_of(measured, name)) >= least]  # fmt: skip
    return lines + [f"--fail-above: {name} is {value:.4g}, above {most:.4g}" for name, most in highest.items()
                   if not (value := value_of(measured, name)) <= most]  # fmt: skip


def value_of(measured: Measured, name: str) -> float:
    """The value of a metric; NaN, which misses every threshold, where no picture could be measured."""
    return measured[name] if name in measured.values_by_name else float("nan")
