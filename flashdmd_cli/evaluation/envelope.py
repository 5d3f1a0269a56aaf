"""Long series in few numbers: the minimum, mean and maximum of consecutive steps."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

MAX_COLUMNS = 256
"""Columns of one series: about as many as a plot has pixels."""


@dataclass(frozen=True)
class Column:
    """Values of consecutive steps; for a single step all but the step are the same number."""

    step: float
    """Mean of the steps."""
    mean: float
    low: float
    high: float
    last: float
    """Value of the last step."""


class Envelope:
    """A series of any length as at most `MAX_COLUMNS` columns, which cover the same number of steps each.

    Whenever there are too many, neighbours are merged. So memory does not depend on the length, no extreme value is
    lost, and the result does not depend on when the values were added.
    """

    def __init__(self, points: Iterable[tuple[int, float]] = ()) -> None:
        self.width = 1
        """Steps that a column covers: a power of two."""
        self._sums: dict[int, list[float]] = {}  # column -> [count, sum of steps, sum, min, max, last]
        for step, value in points:
            self.add(step, value)

    def add(self, step: int, value: float | None) -> None:
        """Add the value of a step, which is later than all before; nothing for one that is not finite."""
        if value is None or not math.isfinite(value):
            return
        self._merge(step // self.width, [1, step, value, value, value, value])
        while len(self._sums) > MAX_COLUMNS:
            old, self._sums, self.width = self._sums, {}, self.width * 2
            for column, sums in old.items():
                self._merge(column // 2, sums)

    def _merge(self, column: int, new: list[float]) -> None:
        sums = self._sums.get(column)
        if sums is None:
            self._sums[column] = new
            return
        for i in range(3):
            sums[i] += new[i]
        sums[3:] = min(sums[3], new[3]), max(sums[4], new[4]), new[5]

    def columns(self) -> list[Column]:
        """All columns, by step."""
        return [
            Column(steps / count, total / count, low, high, last)
            for _, (count, steps, total, low, high, last) in sorted(self._sums.items())
        ]
