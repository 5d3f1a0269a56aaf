"""How the scores of single pictures are distributed: small plots as SVG that follow the colours of the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from flashdmd_cli.evaluation.compare import number
from flashdmd_cli.evaluation.page import escaped

BINS = 32
WIDTH, HEIGHT, FOOT = 320, 64, 16
"""Of one plot, in pixels, and of the labels below its axis."""
TAIL = 0.002
"""Share of pictures at either end that may lie beyond the axis; they are counted in the last bars."""


def distribution(title: str, scores: Mapping[str, Sequence[float]]) -> str:
    """One metric: a histogram for each result, above each other on one axis, with a line at the mean.

    Where all values are 0 or 1, a bar with the share of ones instead. Results without values are left out.
    """
    shown = {name: np.asarray(values, dtype=np.float64) for name, values in scores.items() if len(values)}
    if not shown:
        return ""
    together = np.concatenate(list(shown.values()))
    if np.isin(together, (0.0, 1.0)).all():
        plots = [_share(name, values) for name, values in shown.items()]
    else:
        low, high = (float(each) for each in np.quantile(together, (TAIL, 1 - TAIL)))
        if high - low <= 1e-9 * max(abs(low), abs(high)):  # no room for bars between them
            low, high = low - 0.5, high + 0.5
        plots = [_histogram(name, values, low, high) for name, values in shown.items()]
    return f'<div class="plot"><h3>{escaped(title)}</h3>{"".join(plots)}</div>'


def _svg(label: str, height: int, body: str) -> str:
    return (
        f'<div class="name">{escaped(label)}</div>'
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escaped(label)}">{body}</svg>'
    )


def _share(name: str, values: np.ndarray) -> str:
    ones = int(values.sum())
    label = f"{name}: {ones / len(values):.1%} are 1 ({ones:,} of {len(values):,})"
    filled = WIDTH * ones / len(values)
    bars = (
        f'<rect class="rest" width="{WIDTH}" height="14" rx="3"/><rect class="bar" width="{filled:.1f}" height="14"/>'
    )
    return _svg(label, 18, bars)


def _histogram(name: str, values: np.ndarray, low: float, high: float) -> str:
    counts, _ = np.histogram(values.clip(low, high), bins=BINS, range=(low, high))
    step, top = WIDTH / BINS, max(1, counts.max())
    bars = "".join(
        f'<rect class="bar" x="{i * step + 0.5:.1f}" y="{HEIGHT * (1 - count / top):.1f}" width="{step - 1:.1f}" '
        f'height="{HEIGHT * count / top:.1f}"/>'
        for i, count in enumerate(counts)
        if count
    )
    at = (float(values.mean().clip(low, high)) - low) / (high - low) * WIDTH
    label = f"{name}: mean {number(float(values.mean()))}, median {number(float(np.median(values)))}"
    axis = (
        f'<rect class="rest" y="{HEIGHT}" width="{WIDTH}" height="1"/>'
        f'<line class="mean" x1="{at:.1f}" x2="{at:.1f}" y1="0" y2="{HEIGHT}"/>'
        f'<text x="0" y="{HEIGHT + 13}">{low:.3g}</text>'
        f'<text x="{WIDTH}" y="{HEIGHT + 13}" text-anchor="end">{high:.3g}</text>'
    )
    return _svg(label, HEIGHT + FOOT, bars + axis)
