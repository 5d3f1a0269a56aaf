"""How the scores of single pictures are distributed: a small histogram for each result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from flashdmd_cli.evaluation.compare import number
from flashdmd_cli.evaluation.plots import Bar, Bars, Titled, histogram

BINS = 32
WIDTH, HEIGHT = 320, 64
"""Of one plot, in pixels."""
TAIL = 0.002
"""Share of pictures at either end that may lie beyond the axis; they are counted in the last bars."""


def distribution(title: str, scores: Mapping[str, Sequence[float]]) -> Titled | None:
    """One metric: a histogram for each result, above each other on one axis, with a line at the mean.

    Where all values are 0 or 1, a bar with the share of ones instead. Results without values are left out; None if no
    result has values.
    """
    shown = {name: np.asarray(values, dtype=np.float64) for name, values in scores.items() if len(values)}
    if not shown:
        return None
    together = np.concatenate(list(shown.values()))
    if np.isin(together, (0.0, 1.0)).all():
        return Titled(title, [_share(name, values) for name, values in shown.items()])
    low, high = (float(each) for each in np.quantile(together, (TAIL, 1 - TAIL)))
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # no room for bars between them
        low, high = low - 0.5, high + 0.5
    return Titled(title, [_histogram(name, values, low, high) for name, values in shown.items()])


def _share(name: str, values: np.ndarray) -> Bars:
    ones = int(values.sum())
    label = f"{name}: {ones / len(values):.1%} are 1 ({ones:,} of {len(values):,})"
    filled = round(WIDTH * ones / len(values), 1)
    return Bars(label, (WIDTH, 14), {"rest": [Bar(0, 0, WIDTH, 14)], "bar": [Bar(0, 0, filled, 14)]})


def _histogram(name: str, values: np.ndarray, low: float, high: float) -> Bars:
    counts, _ = np.histogram(values.clip(low, high), bins=BINS, range=(low, high))
    bars = histogram(counts.tolist(), max(1, int(counts.max())), (WIDTH, HEIGHT))
    mean = round((float(values.mean().clip(low, high)) - low) / (high - low) * WIDTH, 1)
    label = f"{name}: mean {number(float(values.mean()))}, median {number(float(np.median(values)))}"
    ticks = [(0.0, "start", f"{low:.3g}"), (float(WIDTH), "end", f"{high:.3g}")]
    return Bars(label, (WIDTH, HEIGHT), {"bar": bars}, mean, ticks)
