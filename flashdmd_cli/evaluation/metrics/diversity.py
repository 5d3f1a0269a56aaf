"""Seed diversity: how far apart pictures of one caption lie, against real pictures of one caption."""

from __future__ import annotations

import torch
from torch import Tensor

from flashdmd_cli.evaluation.metrics.intervals import Interval, bootstrap


def pairwise_distance(groups: Tensor) -> Tensor:
    """Mean Euclidean distance between the `K` members of each group, (C, K, D) to (C,) float64. K >= 2."""
    num = groups.shape[1]
    if num < 2:
        raise ValueError("diversity needs at least two pictures of a caption")
    flat = groups.double().flatten(2)
    first, second = torch.triu_indices(num, num, offset=1)
    return (flat[:, first] - flat[:, second]).norm(dim=-1).mean(dim=1)


def diversity(generated: Tensor, real: Tensor) -> Interval:
    """Mean pairwise distance within captions, generated (C, K, D) over real (C', K', D): 0 is collapse, 1 is as real.

    Every number is first measured in standard deviations of the real pictures, so that none outweighs the others.
    """
    scale = real.double().flatten(0, 1).std(dim=0).clamp(min=1e-6)
    above, below = pairwise_distance(generated.double() / scale), pairwise_distance(real.double() / scale)
    return bootstrap(lambda g, r: float(above[g].mean() / below[r].mean()), len(above), len(below))
