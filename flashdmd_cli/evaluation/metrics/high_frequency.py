"""Energy of fine texture, generated against real: below 1 is smoother than real pictures, above 1 is rougher."""

from __future__ import annotations

from torch import Tensor

from flashdmd_cli.core.pictures import high_frequency_energy
from flashdmd_cli.evaluation.metrics.intervals import Interval, bootstrap


def high_frequency(generated: Tensor, real: Tensor) -> Interval:
    """Mean energy of generated pictures over that of real ones, both (N, 3, H, W) on [-1, 1] and of one size."""
    above, below = high_frequency_energy(generated), high_frequency_energy(real)
    return bootstrap(lambda g, r: float(above[g].mean() / below[r].mean()), len(above), len(below))
