"""95% intervals: Wilson for proportions, Student for means, bootstrap for everything else.

Several pictures of one prompt are not independent of each other, so that a prompt counts as one observation. Functions
with the argument `prompts`, the prompt id of each picture, allow for that; an empty sequence says that every picture
has a prompt of its own, and so do ids of which none is repeated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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


def clusters(prompts: Sequence[str]) -> list[Tensor]:
    """The positions of the pictures of each prompt, prompts in the order in which they first appear. A picture with an
    empty id has a prompt of its own."""
    found: dict[str | int, list[int]] = {}
    for i, prompt in enumerate(prompts):
        found.setdefault(prompt or i, []).append(i)
    return [torch.tensor(each) for each in found.values()]


def by_prompt(values: Tensor, prompts: Sequence[str] = ()) -> Tensor:
    """One number for each of `G` prompts, (G,) float64, from `values` (N,) of pictures: their mean is the mean of the
    values, and their variance over G is the variance of that mean where prompts are independent and pictures are not.

    If prompts have equally many pictures these are the means of the prompts; if not, a prompt of twice as many has
    twice the weight. Without repeated prompts these are `values` themselves.
    """
    values = values.double()
    together = clusters(prompts)
    if len(together) == len(prompts):
        return values
    center = values.mean()
    sums = torch.stack([(values[each] - center).sum() for each in together])
    return center + sums * (len(sums) / len(values))


def resample(num: int, generator: torch.Generator, prompts: Sequence[str] = ()) -> Tensor:
    """Positions of a bootstrap sample of `num` pictures, drawn with replacement; of repeated prompts whole prompts are
    drawn, as many as there are."""
    together = clusters(prompts)
    if len(together) == len(prompts):
        return torch.randint(num, (num,), generator=generator)
    drawn = torch.randint(len(together), (len(together),), generator=generator)
    return torch.cat([together[i] for i in drawn.tolist()])


def wilson(successes: float, num: float) -> Interval:
    """A proportion with Wilson's score interval (1927), which stays inside [0, 1] and honest at 0 and 1.

    Neither need be whole: draws count half, and `share` passes an effective number of trials.
    """
    if num <= 0:
        raise ValueError("a proportion needs at least one trial")
    share, z2 = successes / num, Z95**2
    center = (share + z2 / (2 * num)) / (1 + z2 / num)
    half = Z95 / (1 + z2 / num) * math.sqrt(share * (1 - share) / num + z2 / (4 * num**2))
    return Interval(share, max(0.0, min(share, center - half)), min(1.0, max(share, center + half)))


def shown(value: float, low: float, high: float, write: Callable[[float], str]) -> str:
    """`0.330 ± 0.012`, or `0.990 [0.946, 0.998]` where the interval is not symmetric in the digits that `write` gives:
    that of a share, or one that ends at a bound."""
    above, below = write(high - value), write(value - low)
    if above == below:
        return f"{write(value)} ± {above}"
    return f"{write(value)} [{write(low)}, {write(high)}]"


def exactly(value: float) -> Interval:
    """A value without uncertainty, such as a count."""
    return Interval(float(value), float(value), float(value))


def share(values: Tensor, prompts: Sequence[str] = (), more_variance: float = 0.0) -> Interval:
    """Mean of `values` (N,) between 0 and 1, such as wins with draws as 1/2, with Wilson's interval.

    If prompts are repeated, or the share has another source of error (its variance is `more_variance`), the interval is
    that of as many independent pictures as would give the same variance (an effective sample size: Kish, 1965), smaller
    by the factor of Student's quantile for few prompts. Where all values are alike it is the number of prompts.
    """
    won, num, each = float(values.double().sum()), len(values), by_prompt(values, prompts)
    plain, repeated = wilson(won, num), len(each) < num
    if not repeated and more_variance == 0:
        return plain
    if len(each) == 1:
        return Interval(plain.value, 0.0, 1.0)
    binomial, effective = plain.value * (1 - plain.value), float(len(each))
    variance = more_variance + (float(each.var()) / len(each) if repeated else binomial / num)
    if binomial > 0:
        effective = min(num, binomial / variance) if variance > 0 else num
    if repeated:
        effective *= (Z95 / float(student.ppf(0.975, len(each) - 1))) ** 2
    bounds = wilson(plain.value * effective, effective)
    return Interval(plain.value, min(plain.value, bounds.low), max(plain.value, bounds.high))


def mean(values: Tensor, prompts: Sequence[str] = ()) -> Interval:
    """Mean of (N,) with Student's interval; with a single value, or a single prompt, the interval is unbounded."""
    each = by_prompt(values, prompts)
    num, center = len(each), float(values.double().mean())
    if num < 2:
        return Interval(center, -math.inf, math.inf)
    half = float(student.ppf(0.975, num - 1)) * float(each.std()) / math.sqrt(num)
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
    prompts: Sequence[str] = (),
) -> Interval:
    """`statistic(index of generated, index of real)` on everything, plus and minus 1.96 bootstrap standard errors.

    Both sets are resampled with replacement, each by itself, the generated one by `prompts`. The interval is centred on
    the full value, not made of percentiles: a resample repeats rows, which shifts a distance between distributions
    upwards. Clipped to [low, high].
    """
    value = statistic(torch.arange(num_generated), torch.arange(num_real))
    generator = torch.Generator().manual_seed(BOOTSTRAP_SEED)
    resampled = [
        statistic(
            resample(num_generated, generator, prompts),
            torch.randint(num_real, (num_real,), generator=generator),
        )
        for _ in range(NUM_RESAMPLES)
    ]
    half = Z95 * float(torch.tensor(resampled, dtype=torch.float64).std())
    return Interval(value, max(low, value - half), min(high, value + half))
