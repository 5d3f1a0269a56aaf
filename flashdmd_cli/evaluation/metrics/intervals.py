"""95% intervals: Wilson for proportions, Student for means, bootstrap for everything else."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy.stats import t as student
from torch import Tensor

Z95 = 1.959964
NUM_RESAMPLES = 200
BOOTSTRAP_SEED = 95


@dataclass(frozen=True)
class Interval:
    """A value and its 95% interval."""

    value: float
    low: float
    high: float


def wilson(successes: int, num: int) -> Interval:
    """A proportion with Wilson's score interval (1927), which stays inside [0, 1] and honest at 0 and 1."""
    if num < 1:
        raise ValueError("a proportion needs at least one trial")
    share, z2 = successes / num, Z95**2
    center = (share + z2 / (2 * num)) / (1 + z2 / num)
    half = Z95 / (1 + z2 / num) * math.sqrt(share * (1 - share) / num + z2 / (4 * num**2))
    return Interval(share, max(0.0, min(share, center - half)), min(1.0, max(share, center + half)))


def exactly(value: float) -> Interval:
    """A value without uncertainty, such as a count."""
    return Interval(float(value), float(value), float(value))


def mean(values: Tensor) -> Interval:
    """Mean of (N,) with Student's interval; with a single value the interval is unbounded."""
    num = len(values)
    center = float(values.double().mean())
    if num < 2:
        return Interval(center, -math.inf, math.inf)
    half = float(student.ppf(0.975, num - 1)) * float(values.double().std()) / math.sqrt(num)
    return Interval(center, center - half, center + half)


def paired_difference(first: Tensor, second: Tensor) -> Interval:
    """Mean of `first - second`, scores (N,) of the same prompts, with Student's interval."""
    return mean(first.double() - second.double())


def bootstrap(
    statistic: Callable[[Tensor, Tensor], float],
    num_generated: int,
    num_real: int,
    low: float = 0.0,
    high: float = math.inf,
) -> Interval:
    """`statistic(index of generated, index of real)` on everything, plus and minus 1.96 bootstrap standard errors.

    Both sets are resampled with replacement, each by itself. The interval is centred on the full value, not made of
    percentiles: a resample repeats rows, which shifts a distance between distributions upwards. Clipped to [low, high].
    """
    value = statistic(torch.arange(num_generated), torch.arange(num_real))
    generator = torch.Generator().manual_seed(BOOTSTRAP_SEED)
    resampled = [
        statistic(
            torch.randint(num_generated, (num_generated,), generator=generator),
            torch.randint(num_real, (num_real,), generator=generator),
        )
        for _ in range(NUM_RESAMPLES)
    ]
    half = Z95 * float(torch.tensor(resampled, dtype=torch.float64).std())
    return Interval(value, max(low, value - half), min(high, value + half))
