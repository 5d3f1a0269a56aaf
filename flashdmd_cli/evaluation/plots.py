"""Plots as SVG that follow the colours of the page: curves over iterations, and histograms.

This file computes positions and labels; `templates/plot.html` and `templates/bars.html` draw them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

from flashdmd_cli.evaluation.envelope import Column, Envelope
from flashdmd_cli.evaluation.page import Exhibit

WIDTH, HEIGHT = 360, 150
LEFT, RIGHT, TOP, BOTTOM = 46, 8, 8, 20
"""Margins for the labels of the axes."""
LOGARITHMIC_FROM = 100.0
"""Ratio of the largest to the smallest value from which the axis of positive values is logarithmic."""
MIN_BAR = 1.0
"""Height of the smallest bar, in pixels."""


@dataclass(frozen=True)
class Plots:
    """Plots side by side, as many as fit."""

    template: ClassVar[str] = "plots.html"
    exhibits: Sequence[Exhibit]


@dataclass(frozen=True)
class Tick:
    """A label of an axis."""

    at: float
    """Position in pixels."""
    text: str


@dataclass(frozen=True)
class Line:
    """A curve as `templates/plot.html` draws it."""

    name: str
    mean: str
    """SVG path through the means."""
    envelope: str
    """SVG path around minimum and maximum; empty if all columns are single values."""
    dot: tuple[float, float] | None
    """Position of a curve of one value, which has no length."""
    latest: str
    data: Mapping[str, object]
    """Steps and means, for the script that shows values under the pointer."""


@dataclass(frozen=True)
class Plot:
    """Curves over iterations: means as lines, minimum and maximum of merged steps as an area."""

    template: ClassVar[str] = "plot.html"
    title: str
    series: Mapping[str, Envelope]
    """Name -> values by step; series without values are left out."""
    band: tuple[float, float] | None = None
    """Allowed values from a tripwire; infinite where there is no limit."""
    marks: Sequence[float] = field(default=())
    """Steps at which a tripwire was active."""
    width: ClassVar[int] = WIDTH
    height: ClassVar[int] = HEIGHT
    left: ClassVar[int] = LEFT
    right: ClassVar[int] = WIDTH - RIGHT
    top: ClassVar[int] = TOP
    bottom: ClassVar[int] = HEIGHT - BOTTOM

    @cached_property
    def shown(self) -> dict[str, list[Column]]:
        """The columns of every series that has values."""
        found = {name: each.columns() for name, each in self.series.items()}
        return {name: columns for name, columns in found.items() if columns}

    @cached_property
    def steps(self) -> tuple[float, float]:
        """First and last step."""
        edges = [column.step for columns in self.shown.values() for column in (columns[0], columns[-1])]
        first, last = min(edges), max(edges)
        return (first, last) if last > first else (first - 0.5, last + 0.5)

    @cached_property
    def limits(self) -> list[float]:
        """The finite ends of the band."""
        return [end for end in self.band or () if math.isfinite(end)]

    @cached_property
    def is_logarithmic(self) -> bool:
        """Whether the values are positive and span several orders of magnitude."""
        low, high = self._range
        return low > 0 and high > LOGARITHMIC_FROM * low

    @cached_property
    def _range(self) -> tuple[float, float]:
        columns = [column for each in self.shown.values() for column in each]
        lowest = min(*(column.low for column in columns), *self.limits, math.inf)
        return lowest, max(*(column.high for column in columns), *self.limits, -math.inf)

    @cached_property
    def _ends(self) -> tuple[float, float]:
        """Lowest and highest value of the axis, as logarithms where the axis is logarithmic."""
        low, high = map(self._scaled, self._range)
        # A constant is in the middle.
        room = (high - low) * 0.04 or abs(low) * 0.1 or 0.5
        return low - room, high + room

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.is_logarithmic else value

    def x(self, step: float) -> float:
        """Pixels from the left."""
        first, last = self.steps
        return round(self.left + (step - first) / (last - first) * (self.right - self.left), 1)

    def y(self, value: float) -> float:
        """Pixels from the top; values beyond the axis are at its end."""
        low, high = self._ends
        if math.isinf(value):
            share = 1.0 if value > 0 else 0.0
        else:
            share = (self._scaled(value) - low) / (high - low)
        return round(self.bottom - min(1.0, max(0.0, share)) * (self.bottom - self.top), 1)

    @property
    def lines(self) -> list[Line]:
        """What to draw for each series."""
        return [self._line(name, columns) for name, columns in self.shown.items()]

    def _line(self, name: str, columns: Sequence[Column]) -> Line:
        def path(points: Sequence[tuple[float, float]]) -> str:
            return "M" + "L".join(f"{self.x(step):g} {self.y(value):g}" for step, value in points)

        around = ""
        if any(column.low < column.high for column in columns):
            upper = [(column.step, column.high) for column in columns]
            lower = [(column.step, column.low) for column in reversed(columns)]
            around = path([*upper, *lower]) + "Z"
        one, last = len(columns) == 1, columns[-1]
        return Line(
            name,
            "" if one else path([(column.step, column.mean) for column in columns]),
            around,
            (self.x(last.step), self.y(last.mean)) if one else None,
            readable(last.last),
            {
                "name": name,
                "steps": [round(column.step) for column in columns],
                "means": [float(f"{column.mean:.4g}") for column in columns],
            },
        )

    @property
    def ticks_y(self) -> list[Tick]:
        """Labels of round values."""
        low, high = self._ends
        if self.is_logarithmic:
            powers = [10.0**k for k in range(math.ceil(low), math.floor(high) + 1)]
            values = powers[:: max(1, len(powers) // 3)] if len(powers) > 1 else list(self._range)
        else:
            values = round_values(low, high, 3)
        return [Tick(self.y(value), readable(value)) for value in values]

    @property
    def ticks_x(self) -> list[Tick]:
        """Labels of round iterations."""
        return [Tick(self.x(step), f"{step:,.0f}") for step in round_values(*self.steps, 4) if step == math.floor(step)]


def readable(value: float) -> str:
    """Four significant digits; a large number in full, with commas."""
    return f"{value:,.0f}" if 10_000 <= abs(value) < 1e9 else f"{value:.4g}"


def round_values(low: float, high: float, about: int) -> list[float]:
    """About `about` values from `low` to `high` at distances of 1, 2, 2.5 or 5 times a power of ten."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    distance = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.99)
    return [round(i * distance, 12) for i in range(math.ceil(low / distance), math.floor(high / distance) + 1)]


@dataclass(frozen=True)
class Titled:
    """Histograms above each other, with a title."""

    template: ClassVar[str] = "titled.html"
    title: str
    exhibits: Sequence[Exhibit]


@dataclass(frozen=True)
class Bar:
    """A rectangle in pixels."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Bars:
    """A histogram, or a bar that shows a share, with a label above."""

    template: ClassVar[str] = "bars.html"
    label: str
    size: tuple[int, int]
    """Width and height in pixels, without the labels of the axis."""
    series: Mapping[str, Sequence[Bar]]
    """CSS class (`bar`, `outline`, `rest`) -> bars."""
    mean: float | None = None
    """Position of the line at the mean."""
    ticks: Sequence[tuple[float, str, str]] = ()
    """(x, `text-anchor`, text) of labels below the axis."""
    foot: ClassVar[int] = 16
    """Height of the labels below the axis."""


def histogram(counts: Sequence[float], top: float, size: tuple[int, int]) -> list[Bar]:
    """Bars of equal width; a count of `top` is as high as the plot, and empty bins have none."""
    width, height = size
    step = width / len(counts)
    bars = []
    for i, count in enumerate(counts):
        if count:
            tall = max(MIN_BAR, height * count / top)
            bars.append(Bar(round(i * step + 0.5, 1), round(height - tall, 1), round(step - 1, 1), round(tall, 1)))
    return bars
