"""Mode coverage: do generated pictures spread over what the caption leaves open as real pictures do?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from flashdmd_cli.evaluation.metrics.instruments import Instruments
from flashdmd_cli.evaluation.metrics.intervals import Interval, bootstrap
from flashdmd_cli.evaluation.metrics.metric import Metric, Row
from flashdmd_cli.shapes.world import PATTERNS

NUM_BINS = 8


def covered(generated: Tensor, real: Tensor, num_patterns: int) -> Callable[[Tensor, Tensor], Tensor]:
    """What either set covers of the other: a function of the rows to take of each, giving (1 + L,) on [0, 1].

    Both are (N, 1 + L): a pattern below `num_patterns`, then the numbers of a layout, as an inspector reads them. The
    function's first number is the pattern's, the others are those of the layout. A layout number is cut into eight bins
    that hold equally many real pictures. Two finite samples of one distribution differ by chance, so even real pictures
    stay a little under 1: compare values with that of a second real set.
    """
    quantiles = torch.linspace(0, 1, NUM_BINS + 1, dtype=torch.float64)[1:-1]
    edges = real[:, 1:].quantile(quantiles, dim=0).T.contiguous()  # (L, 7)
    bins = [_one_hot(each, edges, num_patterns) for each in (generated, real)]
    return lambda g, r: torch.stack(
        [1 - (a[g].mean(0) - b[r].mean(0)).abs().sum() / 2 for a, b in zip(*bins, strict=True)]
    )


def coverage(generated: Tensor, real: Tensor, num_patterns: int, prompts: Sequence[str] = ()) -> Interval:
    """1 minus total-variation distance, on [0, 1]; arguments as for `covered`.

    Mean of the background pattern's and of the layout's, which is itself a mean over its numbers.
    """
    shares = covered(generated.double(), real.double(), num_patterns)

    def half_each(g: Tensor, r: Tensor) -> float:
        # Half for the pattern: among thirteen equals, the loss of most patterns would hardly move the mean.
        found = shares(g, r)
        return float(found[0] + found[1:].mean()) / 2

    return bootstrap(half_each, len(generated), len(real), high=1.0, prompts=prompts)


def pattern_coverage(generated: Tensor, real: Tensor, num_patterns: int, prompts: Sequence[str] = ()) -> Interval:
    """The background pattern alone, where mode seeking shows first."""
    shares = covered(generated.double(), real.double(), num_patterns)
    return bootstrap(lambda g, r: float(shares(g, r)[0]), len(generated), len(real), high=1.0, prompts=prompts)


def _one_hot(seen: Tensor, edges: Tensor, num_patterns: int) -> list[Tensor]:
    """Which bin each picture falls into: the pattern (N, P), then every layout number (N, 8); means are histograms."""
    bins = torch.searchsorted(edges, seen[:, 1:].T.contiguous(), right=True)  # (L, N)
    rows = [torch.nn.functional.one_hot(seen[:, 0].long(), num_patterns).double()]
    return rows + [torch.nn.functional.one_hot(row, NUM_BINS).double() for row in bins]


class Coverage(Metric):
    """1 minus the mean total-variation distance over what captions leave open."""

    name, heading, direction, unit = "coverage", "coverage", "higher", "1 - total variation"
    compares = True

    def prepare(self, instruments: Instruments) -> None:
        self.inspector = instruments.inspector

    def measure(self, pictures: Tensor, rows: Sequence[Row]) -> Tensor:
        """Background pattern and layout, (B, 13)."""
        seen = self.inspector.read(pictures)
        return torch.cat([seen.pattern[:, None].to(seen.layout), seen.layout], dim=1)

    def result(self, drawn: Tensor, real: Tensor, prompts: Sequence[str] = ()) -> Mapping[str, Interval]:
        return {self.name: coverage(drawn, real, len(PATTERNS), prompts)}


class PatternCoverage(Coverage):
    """The part of `coverage` that is the background pattern."""

    name, heading = "pattern_coverage", "patterns"
    in_table = False

    def result(self, drawn: Tensor, real: Tensor, prompts: Sequence[str] = ()) -> Mapping[str, Interval]:
        return {self.name: pattern_coverage(drawn, real, len(PATTERNS), prompts)}
