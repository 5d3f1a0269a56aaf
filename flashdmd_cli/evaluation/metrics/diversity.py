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

Groups = Sequence[Tensor] | Tensor
"""The pictures of each caption, (K, D); a tensor (C, K, D) where all have equally many."""


def pairwise_distance(groups: Groups) -> Tensor:
    """Mean Euclidean distance between the members of each of C groups, (K, D) each with K >= 2, to (C,) float64."""
    if min(map(len, groups), default=0) < 2:
        raise ValueError("diversity needs at least two pictures of a caption")
    found = torch.empty(len(groups), dtype=torch.float64)
    for num in {len(each) for each in groups}:
        which = [i for i, each in enumerate(groups) if len(each) == num]
        members = torch.stack([groups[i] for i in which]).double().flatten(2)
        first, second = torch.triu_indices(num, num, offset=1)
        found[which] = (members[:, first] - members[:, second]).norm(dim=-1).mean(dim=1)
    return found


def diversity(generated: Groups, real: Groups) -> Interval:
    """Mean pairwise distance within captions, generated over real pictures: 0 is collapse, 1 is as real.

    Each group holds the pictures (K, D) of one caption; K may differ from caption to caption. Every number is first
    measured in standard deviations of the real pictures, so that none outweighs the others.
    """
    scale = torch.cat(list(real)).double().std(dim=0).clamp(min=1e-6)
    above, below = (pairwise_distance([each.double() / scale for each in groups]) for groups in (generated, real))
    return bootstrap(lambda g, r: float(above[g].mean() / below[r].mean()), len(above), len(below))


def grouped(numbers: Tensor) -> list[Tensor]:
    """Rows (N, 1 + D) whose first number says which group they belong to, as groups (K, D) in rising order.

    Groups of one picture are left out: there is no distance in them.
    """
    groups = (numbers[numbers[:, 0] == which, 1:] for which in numbers[:, 0].unique())
    return [each for each in groups if len(each) > 1]


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
