"""What an evaluation needs of a suite."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from torch import Tensor

from flashdmd_cli.evaluation.metrics.metric import Metric, Row

Batch = tuple[Tensor, Sequence[Row]]
"""Pictures (B, 3, H, W) uint8, and what is known of each."""


class Suite(Protocol):
    """Prompts to draw, metrics, and the real pictures that some of the metrics compare with."""

    @property
    def name(self) -> str:
        """In results and in the names of folders."""

    @property
    def version(self) -> int:
        """Goes up with every change after which the same model gets other figures."""

    @property
    def world(self) -> str | None:
        """Whose pictures these are: `shapes`, the embedded world, which other models do not draw; None for any."""

    @property
    def rows(self) -> Sequence[Row]:
        """What to draw, in this order; `rows[i].index` is `i`."""

    @property
    def metrics(self) -> Sequence[Metric]:
        """What is measured, in the order of a report."""

    def references(self) -> Iterator[Batch]:
        """Real pictures with what is known of them, batch by batch; the same in every call."""
