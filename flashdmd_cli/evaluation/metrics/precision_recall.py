"""Improved precision and recall (Kynkäänniemi et al., 2019), on Inception features."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from flashdmd_cli.evaluation.metrics.fid import FidOptions, OnInception
from flashdmd_cli.evaluation.metrics.intervals import Interval, clusters, share

ROWS = 1024
"""Rows of the distance matrix that are computed at once."""
BLOCKS = 20
"""Of the jackknife of a manifold."""


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

    Both sets are random. The error of the manifold is that of a jackknife: the share without each of 20 blocks of it,
    whole prompts together. Prompt ids as in `intervals`.
    """
    found = inside(queries, manifold, neighbours)
    each = clusters(manifold_prompts) if manifold_prompts else list(torch.arange(len(manifold)).split(1))
    num = min(BLOCKS, len(each))
    blocks = [torch.cat(each[i::num]) for i in range(num)]
    if min(len(manifold) - len(block) for block in blocks) <= neighbours:
        return share(found, query_prompts)
    shares = _without_each(queries, manifold, neighbours, blocks).double().mean(dim=1)
    return share(found, query_prompts, float(shares.var(correction=0)) * (num - 1))


def _without_each(queries: Tensor, manifold: Tensor, neighbours: int, blocks: Sequence[Tensor]) -> Tensor:
    """`inside` with each of `B` blocks of the manifold left out, (B, N) bool; distances are computed once."""
    radii = []
    for rows in manifold.split(ROWS):
        distances = torch.cdist(rows, manifold)
        left = [distances.index_fill(1, block, math.inf).kthvalue(neighbours + 1).values for block in blocks]
        radii.append(torch.stack(left))
    reach = torch.cat(radii, dim=1)  # (B, M)
    for i, block in enumerate(blocks):
        reach[i, block] = -1.0  # no neighbourhood
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

    def result(self, drawn: Tensor, real: Tensor, prompts: Sequence[str] = ()) -> Mapping[str, Interval]:
        return {self.name: share_inside(drawn.double(), real.double(), self.options.neighbours, query_prompts=prompts)}


class Recall(Precision):
    """Share of real pictures that lie among the drawn ones: how much of the variety is covered."""

    name, heading = "recall", "recall"

    def result(self, drawn: Tensor, real: Tensor, prompts: Sequence[str] = ()) -> Mapping[str, Interval]:
        neighbours = self.options.neighbours
        return {self.name: share_inside(real.double(), drawn.double(), neighbours, manifold_prompts=prompts)}
