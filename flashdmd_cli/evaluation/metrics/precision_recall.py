"""Improved precision and recall (Kynkäänniemi et al., 2019), on Inception features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from flashdmd_cli.evaluation.metrics.fid import FidOptions, OnInception
from flashdmd_cli.evaluation.metrics.intervals import Interval, wilson

ROWS = 1024
"""Rows of the distance matrix that are computed at once."""


class NeighbourOptions(FidOptions):
    """As of `fid`, and the neighbourhood."""

    neighbours: Annotated[int, Field(ge=1)] = 3
    """A picture's neighbourhood reaches to its neighbour of this rank."""


def inside(queries: Tensor, manifold: Tensor, neighbours: int) -> Tensor:
    """Which of `queries` (N, D) lie in the neighbourhood of any row of `manifold` (M, D): (N,) bool."""
    if len(manifold) <= neighbours:
        raise ValueError(f"a neighbourhood of {neighbours} needs more than {neighbours} pictures")
    radii = torch.cat([torch.cdist(rows, manifold).kthvalue(neighbours + 1).values for rows in manifold.split(ROWS)])
    return torch.cat([(torch.cdist(rows, manifold) <= radii).any(dim=1) for rows in queries.split(ROWS)])


class Precision(OnInception):
    """Share of drawn pictures that lie among the real ones: how plausible they are."""

    name, heading, direction, unit = "precision", "precision", "higher", "share of pictures"
    digits = 3
    Options = NeighbourOptions

    @property
    def least(self) -> int:  # type: ignore[override]
        """A neighbourhood needs a neighbour of its rank."""
        return int(self.options.neighbours) + 1

    def result(self, drawn: Tensor, real: Tensor) -> Mapping[str, Interval]:
        found = inside(drawn.double(), real.double(), self.options.neighbours)
        return {self.name: wilson(int(found.sum()), len(found))}


class Recall(Precision):
    """Share of real pictures that lie among the drawn ones: how much of the variety is covered."""

    name, heading = "recall", "recall"

    def result(self, drawn: Tensor, real: Tensor) -> Mapping[str, Interval]:
        return super().result(real, drawn)
