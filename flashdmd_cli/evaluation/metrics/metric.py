"""What every metric looks like, and what it is told of a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from torch import Tensor

from flashdmd_cli.evaluation.metrics.instruments import Instruments
from flashdmd_cli.evaluation.metrics.intervals import Interval

Direction = Literal["higher", "lower", "one"]
"""Which way a figure should go: higher is better, lower is better, or it is a ratio that should be 1."""


@dataclass(frozen=True)
class Row:
    """One picture of a suite, drawn or real."""

    index: int
    """Its place in the suite, from 0: decides its noise and the name of its file."""
    prompt: str
    group: int | None = None
    """Which group of pictures of one prompt it belongs to; None outside of them."""
    counts: bool = True
    """Whether metrics that look at single pictures take it. The pictures of a group are, in most suites, drawn beside
    the others, and would give their prompts too much weight."""


class Metric(Protocol):
    """Measures pictures batch by batch. A class that inherits from this gives the class variables and two methods.

    What it keeps of a picture are the numbers that `measure` returns; the harness (`evaluation.measuring`) holds them,
    so that it does not matter how pictures are cut into batches, and a metric has no state.
    """

    name: ClassVar[str]
    """Key in results, in suites and in `--fail-below NAME=NUMBER`."""
    heading: ClassVar[str]
    """Heading of its column, without the arrow."""
    direction: ClassVar[Direction]
    version: ClassVar[int] = 1
    """Goes up with every change after which the same pictures get another figure."""
    unit: ClassVar[str]
    compares: ClassVar[bool] = False
    """Whether it needs the suite's real pictures."""
    in_table: ClassVar[bool] = True
    """Whether it has a column in a terminal's table; in the document it always is."""
    digits: ClassVar[int] = 3
    """Decimals in a table."""

    def __init__(self, instruments: Instruments) -> None:
        """Take the networks that it looks through; what is missing is told here, before anything is drawn."""

    def takes(self, row: Row) -> bool:
        """Whether it looks at this picture."""
        return row.counts

    def measure(self, pictures: Tensor, rows: Sequence[Row]) -> Tensor:
        """Numbers of `B` pictures (B, 3, H, W) uint8: a tensor (B, ...), each row a function of its picture alone."""
        ...

    def result(self, drawn: Tensor, real: Tensor) -> Mapping[str, Interval]:
        """The figures from what `measure` returned for all `N` drawn pictures, (N, ...), in the order of the suite.

        `real` is the same of the real pictures, (M, ...), for a metric that `compares`, and empty for others. The
        figure called `name` is the metric itself; others, `GROUP.NAME`, are parts of it.
        """
        ...
