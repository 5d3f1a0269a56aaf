"""Seed diversity: how far apart pictures of one caption lie, against real pictures of one caption."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from flashdmd_cli.evaluation.metrics.instruments import Instruments
from flashdmd_cli.evaluation.metrics.intervals import Interval, bootstrap
from flashdmd_cli.evaluation.metrics.metric import Metric, Row
from flashdmd_cli.shapes.world import PATTERNS


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


def grouped(numbers: Tensor) -> Tensor:
    """Rows (N, 1 + D) whose first number says which group they belong to, as (C, K, D), groups in rising order."""
    which, sizes = numbers[:, 0].unique(return_counts=True)
    if len(set(sizes.tolist())) != 1:
        raise ValueError("diversity needs equally many pictures of every caption")
    order = numbers[:, 0].argsort(stable=True)
    return numbers[order, 1:].unflatten(0, (len(which), -1))


class Diversity(Metric):
    """Distance between pictures of one caption over that of real ones, in what the caption leaves open."""

    name, heading, direction, unit = "diversity", "diversity", "one", "ratio to real pictures"
    compares, of_groups, least = True, True, 2

    def prepare(self, instruments: Instruments) -> None:
        self.inspector = instruments.inspector

    def takes(self, row: Row) -> bool:
        """Those of which there are several of one caption."""
        return row.group is not None

    def measure(self, pictures: Tensor, rows: Sequence[Row]) -> Tensor:
        """The number of the group, then layout and one-hot pattern, (B, 1 + 16).

        The background pattern beside the layout: a sampler that ties it to the caption keeps its share overall.
        """
        seen = self.inspector.read(pictures)
        group = torch.tensor([[float(row.group or 0)] for row in rows])
        return torch.cat([group, seen.layout, one_hot(seen.pattern, len(PATTERNS)).float()], dim=1)

    def result(self, drawn: Tensor, real: Tensor, prompts: Sequence[str] = ()) -> Mapping[str, Interval]:
        return {self.name: diversity(grouped(drawn), grouped(real))}
