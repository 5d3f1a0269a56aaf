"""Objects beyond the two of the caption, which the inspector cannot see and a count by colour can."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from flashdmd_cli.core.pictures import as_float
from flashdmd_cli.evaluation.metrics.metric import PictureShare, Row
from flashdmd_cli.shapes.counting import count_objects
from flashdmd_cli.shapes.world import NUM_OBJECTS


class ExtraObjects(PictureShare):
    """Share of pictures that show more objects than the two of their caption, a lower bound."""

    name, heading, direction, unit = "extra_objects", "third objects", "lower", "share of pictures"
    in_table = False  # a part of `exact`

    def measure(self, pictures: Tensor, rows: Sequence[Row]) -> Tensor:
        """Whether there are more than two objects, (B,) bool."""
        return third_object(pictures)


def third_object(pictures: Tensor) -> Tensor:
    """Whether each of `B` pictures (B, 3, 64, 64) uint8 shows more than two objects, (B,) bool."""
    return count_objects(as_float(pictures)) > NUM_OBJECTS
