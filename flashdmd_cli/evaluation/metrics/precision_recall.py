"""Improved precision and recall (Kynkäänniemi et al., 2019), on Inception features."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from flashdmd_cli.evaluation.metrics.fid import FidOptions, OnInception
from flashdmd_cli.evaluation.metrics.intervals import BOOTSTRAP_SEED, Interval, clusters, share

ROWS = 1024
"""Rows of the distance matrix that are computed at once."""
NUM_HALVES = 20
"""Random halves of a manifold from which its error is estimated."""


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


def share_inside(
    queries: Tensor,
    manifold: Tensor,
    neighbours: int,
    query_prompts: Sequence[str] = (),
    manifold_prompts: Sequence[str] = (),
) -> Interval:
    """Share of `queries` (N, D) that lie in the neighbourhood of any row of `manifold` (M, D), with its interval.

    Both sets are random. The error of the manifold is that of a jackknife that leaves out half (Shao and Wu, 1989): the
    variance of the share over 20 random halves, whole prompts together. Leaving out single pictures would overestimate
    it, for a distance to a neighbour is not smooth. Prompt ids as in `intervals`.
    """
    found = inside(queries, manifold, neighbours)
    each = clusters(manifold_prompts) if manifold_prompts else list(torch.arange(len(manifold)).split(1))
    generator = torch.Generator().manual_seed(BOOTSTRAP_SEED)
    orders = [torch.randperm(len(each), generator=generator)[: len(each) // 2].tolist() for _ in range(NUM_HALVES)]
    halves = [torch.cat([each[i] for i in order]) for order in orders if order]
    if not halves or min(len(manifold) - len(half) for half in halves) <= neighbours:
        return share(found, query_prompts)
    shares = _without_each(queries, manifold, neighbours, halves).double().mean(dim=1)
    return share(found, query_prompts, float(shares.var()))


def _without_each(queries: Tensor, manifold: Tensor, neighbours: int, parts: Sequence[Tensor]) -> Tensor:
    """`inside` without each of `B` parts of the manifold, as positions: (B, N) bool. Distances are found once."""
    radii = []
    for rows in manifold.split(ROWS):
        distances = torch.cdist(rows, manifold)
        left = [distances.index_fill(1, part, math.inf).kthvalue(neighbours + 1).values for part in parts]
        radii.append(torch.stack(left))
    reach = torch.cat(radii, dim=1)  # (B, M)
    for i, part in enumerate(parts):
        reach[i, part] = -1.0  # no neighbourhood
    found = []
    for rows in queries.split(ROWS):
        distances = torch.cdist(rows, manifold)
        found.append(torch.stack([(distances <= each).any(dim=1) for each in reach]))
    return torch.cat(found, dim=1)


class Precision(OnInception):
    """Share of drawn pictures that lie among the real ones: how plausible they are."""

    name, heading, direction, unit = "precision", "precision", "higher", "share of pictures"
    min_pictures = 1000
    digits = 3
    Options = NeighbourOptions

    @property
    def least(self) -> int:  # type: ignore[override]
        """A neighbourhood needs a neighbour of its rank."""
        return int(self.options.neighbours) + 1

    def result(self, drawn: Tensor, real: Tensor, prompts: Sequence[str] = ()) -> Mapping[str, Interval]:
        return {self.name: share_inside(drawn.double(), real.double(), self.options.neighbours, query_prompts=prompts)}


class Recall(Precision):
    """Share of real pictures that lie among the drawn ones: how much of the variety is covered."""

    name, heading = "recall", "recall"

    def result(self, drawn: Tensor, real: Tensor, prompts: Sequence[str] = ()) -> Mapping[str, Interval]:
        neighbours = self.options.neighbours
        return {self.name: share_inside(real.double(), drawn.double(), neighbours, manifold_prompts=prompts)}
