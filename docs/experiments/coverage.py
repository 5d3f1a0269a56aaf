"""How often the intervals of metrics hold the truth: 1,000 simulated evaluations of each kind.

From the top of the repository: `python docs/experiments/coverage.py`. About two minutes on one core.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable

import torch

sys.path.insert(0, ".")
from flashdmd_cli.evaluation.metrics.frechet import frechet, frechet_gaussians  # noqa: E402
from flashdmd_cli.evaluation.metrics.intervals import (  # noqa: E402
    Interval,
    mean,
    paired_difference,
    share,
    wilson,
)
from flashdmd_cli.evaluation.metrics.kid import kernel_distance  # noqa: E402
from flashdmd_cli.evaluation.metrics.precision_recall import share_inside  # noqa: E402

NUM = 1000
generator = torch.Generator().manual_seed(0)


def normal(*shape: int) -> torch.Tensor:
    """Standard normal numbers."""
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def report(name: str, truth: float | None, draw: Callable[[], Interval]) -> None:
    """A line; without `truth`, the mean of all values stands for it (their expectation). Unbounded intervals
    (of distances without bias) hold everything, and are left out of `claimed`."""
    found = [draw() for _ in range(NUM)]
    value = sum(each.value for each in found) / NUM
    aim = value if truth is None else truth
    held = sum(each.low <= aim <= each.high for each in found) / NUM
    error = torch.tensor([each.value for each in found]).std()
    bounded = [each.high - each.low for each in found if each.high < math.inf]
    half = sum(bounded) / max(1, len(bounded)) / 2 / 1.96
    print(f"{name:58} {aim:9.4f} {value:9.4f} {error:9.4f} {half:9.4f} {held:7.1%}", flush=True)


def scores(num: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Skewed scores of two models on the same prompts, whose difficulty they share; means exp(1/2) and 0.1 more."""
    prompts = normal(num).exp()
    return prompts + 0.3 * normal(num), prompts + 0.1 + 0.3 * normal(num)


PROMPTS = [str(i) for i in range(100) for _ in range(4)]


def seeds(*dims: int) -> torch.Tensor:
    """Four pictures of each of 100 prompts, (400, ...): standard deviation 1 between prompts, 0.5 within."""
    return (normal(100, 1, *dims) + 0.5 * normal(100, 4, *dims)).flatten(0, 1)


def several_seeds() -> None:
    """100 prompts with four pictures each, with and without the ids of the prompts; precision and recall."""
    for ids, how in ((PROMPTS, "by prompt"), ((), "by picture")):
        report(f"mean, 100 x 4, {how}", 0.0, lambda ids=ids: mean(seeds(), ids))
        report(f"share, 100 x 4, {how}", None, lambda ids=ids: share(seeds() > -0.5, ids))
        report(f"kernel distance, 100 x 4, {how}", None, lambda ids=ids: kernel_distance(seeds(6), normal(400, 6), ids))
        report(f"Fréchet distance, 100 x 4, {how}", None, lambda ids=ids: frechet(seeds(6), normal(400, 6), 1, ids)[0])
    report("precision of 300", None, lambda: share_inside(1.2 * normal(300, 4), normal(300, 4), 3))
    report("recall, 100 x 4", None, lambda: share_inside(normal(300, 4), seeds(4), 3, manifold_prompts=PROMPTS))


def distances(dims: int, num: int, shift: float) -> tuple[float, Callable[[], tuple[torch.Tensor, torch.Tensor]]]:
    """The distance of two Gaussians, and a function that draws `num` of each."""
    mix = normal(dims, dims) / math.sqrt(dims)
    other = mix + shift * normal(dims, dims) / math.sqrt(dims)
    centre = normal(dims) * shift / 2
    truth = frechet_gaussians(torch.zeros(dims), mix @ mix.T, centre, other @ other.T)
    return truth, lambda: (normal(num, dims) @ mix.T, normal(num, dims) @ other.T + centre)


def main() -> None:
    """All kinds."""
    torch.set_num_threads(1)
    print(f"{'interval':58} {'truth':>9} {'mean':>9} {'error':>9} {'claimed':>9} {'covered':>7}")
    for num in (50, 500):
        report(f"mean of {num} skewed scores", math.exp(0.5), lambda num=num: mean(scores(num)[0]))
        report(f"paired difference on {num} prompts", -0.1, lambda num=num: paired_difference(*scores(num)))
    report("share of 500", 0.9, lambda: wilson(int((torch.rand(500, generator=generator) < 0.9).sum()), 500))
    for dims, num, shift in ((4, 300, 0.5), (8, 500, 0.3), (16, 500, 0.3), (32, 1000, 0.3)):
        truth, draw = distances(dims, num, shift)
        name = f"Fréchet distance, {num} pictures in {dims} dimensions"
        report(f"{name}: its expectation", None, lambda draw=draw: frechet(*draw(), num_resamples=1)[0])
        report(f"{name}: without bias", truth, lambda draw=draw: frechet(*draw())[1])
    several_seeds()
    _, draw = distances(8, 200, 0.5)
    report("kernel distance, 200 pictures in 8 dimensions", None, lambda: kernel_distance(*draw()))


if __name__ == "__main__":
    main()
