"""Metrics of one iteration, aggregated over its micro-batches and over the processes of a run."""

from __future__ import annotations

import torch
from torch import Tensor

from flashdmd_cli.runs.world import World


class StepMetrics:
    """Metrics averaged over the micro-batches and processes of an iteration; gradient norms are of the whole batch."""

    def __init__(self, world: World | None = None) -> None:
        self.world = world or World()
        # Tensors until the iteration ends: reading one makes the host wait for an accelerator.
        self.means: dict[str, Tensor] = {}
        self.squares: dict[str, Tensor] = {}
        self.whole: dict[str, float] = {}
        """Values of the whole batch, the same on every process."""

    def add(self, name: str, value: Tensor, count: float) -> None:
        """Add the value of one of `count` micro-batches of this process to the mean `name`."""
        value = _summable(value) / count
        self.means[name] = self.means[name] + value if name in self.means else value

    def gradient(self, name: str, loss: Tensor, weight: float, leaf: Tensor, count: int) -> Tensor:
        """Gradient of `weight * loss / count` with respect to the student output `leaf`; adds the loss and its norm.

        Computed at the output only, so that no network but the student gets a gradient, through `x.backward`. The ratio
        of the norms of two losses is comparable between models, unlike lambda_adv.
        """
        self.add(name, loss, count)
        (gradient,) = torch.autograd.grad(weight * loss / count, leaf)
        key = f"output_grad/{name}"
        square = _summable(gradient.float().square().sum())
        self.squares[key] = self.squares[key] + square if key in self.squares else square
        return gradient

    def values(self) -> dict[str, float]:
        """All metrics by name. A collective call: every process has to make it; missing metrics count as zero."""
        size = self.world.size
        own = [{name: value.item() for name, value in each.items()} for each in (self.means, self.squares)]
        gathered = self.world.gather(tuple(own))
        means: dict[str, float] = {}
        squares: dict[str, float] = {}
        for rank_means, rank_squares in gathered:
            for name, value in rank_means.items():
                means[name] = means.get(name, 0.0) + value / size
            for name, value in rank_squares.items():
                squares[name] = squares.get(name, 0.0) + value / size**2
        return means | {name: value**0.5 for name, value in squares.items()} | self.whole


def _summable(value: Tensor) -> Tensor:
    """A scalar in float64, as Python adds numbers, where the device has that format."""
    return value.detach() if value.device.type == "mps" else value.detach().double()
