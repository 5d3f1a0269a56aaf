"""Energy of fine texture, generated against real: below 1 is smoother than real pictures, above 1 is rougher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from flashdmd_cli.core.pictures import as_float, high_frequency_energy
from flashdmd_cli.evaluation.metrics.intervals import Interval, bootstrap
from flashdmd_cli.evaluation.metrics.metric import Metric, Row


def ratio_of_means(above: Tensor, below: Tensor, prompts: Sequence[str] = ()) -> Interval:
    """Mean of (N,) over the mean of (M,)."""
    return bootstrap(lambda g, r: float(above[g].mean() / below[r].mean()), len(above), len(below), prompts=prompts)


class HighFrequency(Metric):
    """Mean energy of fine texture over that of real pictures, which must have the same size."""

    name, heading, direction, unit = "high_frequency", "fine texture", "one", "ratio to real pictures"
    compares = True

    def measure(self, pictures: Tensor, rows: Sequence[Row]) -> Tensor:
        """Power of the luminance spectrum above the cutoff, (B,) float64."""
        return high_frequency_energy(as_float(pictures))

    def result(self, drawn: Tensor, real: Tensor, prompts: Sequence[str] = ()) -> Mapping[str, Interval]:
        return {self.name: ratio_of_means(drawn, real, prompts)}
