"""Mode coverage: do generated pictures spread over what the caption leaves open as real pictures do?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flashdmd_cli.evaluation.metrics.intervals import Interval, bootstrap

NUM_BINS = 8


@dataclass(frozen=True)
class Coverage:
    """1 minus total-variation distance, on [0, 1]."""

    whole: Interval
    """Mean of the background pattern's and of the layout's, which is itself a mean over its numbers."""
    pattern: Interval
    """The background pattern alone, where mode seeking shows first."""


def coverage(
    generated_pattern: Tensor, generated_layout: Tensor, real_pattern: Tensor, real_layout: Tensor, num_patterns: int
) -> Coverage:
    """Patterns (N,) long below `num_patterns` and layouts (N, L), as an inspector reads them in either set.

    A layout number is cut into eight bins that hold equally many real pictures. Two finite samples of one distribution
    differ by chance, so even real pictures stay a little under 1: read figures against that of a second real set.
    """
    quantiles = torch.linspace(0, 1, NUM_BINS + 1, dtype=torch.float64)[1:-1]
    edges = real_layout.double().quantile(quantiles, dim=0).T.contiguous()  # (L, 7)
    generated = _one_hot(generated_pattern, generated_layout, edges, num_patterns)
    real = _one_hot(real_pattern, real_layout, edges, num_patterns)

    def covered(g: Tensor, r: Tensor) -> Tensor:
        return torch.stack(
            [1 - (a[g].mean(0) - b[r].mean(0)).abs().sum() / 2 for a, b in zip(generated, real, strict=True)]
        )

    size = len(generated_pattern), len(real_pattern)
    return Coverage(
        # Half for the pattern: among thirteen equals, the loss of most patterns would hardly move the mean.
        bootstrap(lambda g, r: float(covered(g, r)[0] + covered(g, r)[1:].mean()) / 2, *size, high=1.0),
        bootstrap(lambda g, r: float(covered(g, r)[0]), *size, high=1.0),
    )


def _one_hot(pattern: Tensor, layout: Tensor, edges: Tensor, num_patterns: int) -> list[Tensor]:
    """Which bin each picture falls into: the pattern (N, P), then every layout number (N, 8); means are histograms."""
    bins = torch.searchsorted(edges, layout.double().T.contiguous(), right=True)  # (L, N)
    rows = [torch.nn.functional.one_hot(pattern, num_patterns).double()]
    return rows + [torch.nn.functional.one_hot(row, NUM_BINS).double() for row in bins]
