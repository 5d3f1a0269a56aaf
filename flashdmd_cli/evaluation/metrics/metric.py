"""The protocol of a metric, and the description of a picture that it receives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from torch import Tensor

from flashdmd_cli.evaluation.metrics.instruments import Instruments
from flashdmd_cli.evaluation.metrics.intervals import Interval

Direction = Literal["higher", "lower", "one"]
"""Which values of a metric are better: higher, lower, or those closest to one (a ratio)."""


@dataclass(frozen=True)
class Row:
    """One picture of a suite, drawn or real."""

    index: int
    """Position in the suite, from 0; determines its noise and the name of its file."""
    prompt: str
    group: int | None = None
    """Number of the group of pictures with the same prompt, for diversity; None outside such groups."""
    counts: bool = True
    """Whether metrics of single pictures include it. Pictures of a group are usually drawn in addition to the others;
    including them would give their prompts too much weight."""


class Metric(Protocol):
    """A metric, computed batch by batch. A subclass defines the class variables, `measure` and `result`.

    A metric has no state: `measure` reduces each picture to a few numbers, which `evaluation.measuring` collects, and
    `result` computes the metric from the numbers of all pictures. So the result does not depend on the batch size.
    """

    name: ClassVar[str]
    """Key in results, in suites and in `--fail-below NAME=NUMBER`."""
    heading: ClassVar[str]
    """Heading of its column, without the arrow."""
    direction: ClassVar[Direction]
    version: ClassVar[int] = 1
    """Increased with every change after which the same pictures give another value."""
    unit: ClassVar[str]
    compares: ClassVar[bool] = False
    """Whether it needs the suite's real pictures."""
    in_table: ClassVar[bool] = True
    """Whether it has a column in a terminal's table; in the document it always is."""
    digits: ClassVar[int] = 3
    """Decimals in a table."""

    def __init__(self, instruments: Instruments) -> None:
        """Load the networks it needs from `instruments`; raises InputError here, before drawing, if one is missing."""

    def takes(self, row: Row) -> bool:
        """Whether to include this picture; by default `row.counts`."""
        return row.counts

    def measure(self, pictures: Tensor, rows: Sequence[Row]) -> Tensor:
        """Numbers of `B` pictures (B, 3, H, W) uint8: a tensor (B, ...), each row a function of its picture alone."""
        ...

    def result(self, drawn: Tensor, real: Tensor) -> Mapping[str, Interval]:
        """The value with its interval, from the rows of `measure` for all `N` drawn pictures, (N, ...), in suite order.

        `real` holds the same for the real pictures, (M, ...), if the metric `compares`, else nothing. The key `name` is
        the metric itself; keys with a dot (`attributes.colour`) are breakdowns of it.
        """
        ...
