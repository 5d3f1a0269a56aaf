"""Statistics of pixels, as the probe of alignment computes them: they show a collapse or an exploited reward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from torch import Tensor

from flashdmd_cli.core.pictures import STATISTICS, as_float
from flashdmd_cli.evaluation.metrics.metric import Metric, PictureMean, Row


class PixelStatistic(PictureMean):
    """Mean of a statistic of single pictures; no value is better in itself, a change is what it shows."""

    direction = "none"
    in_table = False
    statistic: ClassVar[Callable[[Tensor], Tensor]]

    def measure(self, pictures: Tensor, rows: Sequence[Row]) -> Tensor:
        """The statistic of each picture, (B,) float64."""
        return type(self).statistic(as_float(pictures))


UNITS = {
    "brightness": "mean luminance on [0, 1]",
    "saturation": "mean saturation on [0, 1]",
    "contrast": "standard deviation of luminance on [0, 1]",
    "colourfulness": "Hasler and Suesstrunk's measure on [0, 1] values",
    "clipped": "share of values at 0 or 255",
    "laplacian": "variance of the Laplacian of luminance",
    "entropy": "bits",
}
"""The statistics that are metrics; `high_frequency` compares with real pictures and is a metric of its own."""
PIXEL_STATISTICS: tuple[type[Metric], ...] = tuple(
    type(
        name.title(),
        (PixelStatistic,),
        {
            "__doc__": f"Mean of {name} over the pictures: {unit}.",
            "name": name,
            "heading": name,
            "unit": unit,
            "statistic": staticmethod(STATISTICS[name]),
        },
    )
    for name, unit in UNITS.items()
)
