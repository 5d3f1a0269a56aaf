"""What an evaluation needs of a suite."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
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
        """Goes up with every change after which the same model gets other values."""

    @property
    def sha256(self) -> str:
        """Of all that decides which pictures are drawn and what they are compared with; only results of suites with
        the same hash are compared."""

    @property
    def world(self) -> str | None:
        """Whose pictures these are: `shapes`, the embedded world, which other models do not draw; None for any."""

    @property
    def rows(self) -> Sequence[Row]:
        """What to draw, in this order; `rows[i].index` is `i`."""

    @property
    def metrics(self) -> Sequence[Metric]:
        """What is measured, in the order of a report."""

    @property
    def skipped(self) -> Mapping[str, str]:
        """Metrics that cannot be measured here, with the reason."""

    @property
    def reference_folder(self) -> Path | None:
        """The folder of the real pictures, where they are files."""

    @property
    def reference_names(self) -> Sequence[str] | None:
        """The files of that folder that are the suite's; None: all pictures there."""

    @property
    def published(self) -> bool:
        """Whether its prompts are those of published tables."""

    def references(self) -> Iterator[Batch]:
        """Real pictures with what is known of them, batch by batch; the same in every call. None if they are files."""


@dataclass(frozen=True)
class PromptSuite:
    """Prompts of any kind; the real pictures, if a metric needs them, are the files of a folder."""

    name: str
    version: int
    rows: Sequence[Row]
    metrics: Sequence[Metric]
    sha256: str = ""
    skipped: Mapping[str, str] = field(default_factory=dict)
    world: str | None = None
    reference_folder: Path | None = None
    reference_names: Sequence[str] | None = None
    """The files of `reference_folder` that are the suite's; None: all pictures there."""
    published: bool = False
    """Whether its prompts are those of published tables."""

    def references(self) -> Iterator[Batch]:
        """Nothing: the real pictures are files."""
        return iter(())
