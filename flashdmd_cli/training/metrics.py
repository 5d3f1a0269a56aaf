"""What an iteration reports, gathered over its micro-batches and over the processes of a run."""

from __future__ import annotations

import torch
from torch import Tensor

from flashdmd_cli.runs.world import World


class StepMetrics:
    """Means over the micro-batches and processes of an iteration; gradient norms are those of the whole batch."""

    def __init__(self, world: World | None = None) -> None:
        self.world = world or World()
        self.means: dict[str, float] = {}
        self.squares: dict[str, float] = {}
        self.whole: dict[str, float] = {}
        """What is known of the whole batch already."""

    def add(self, name: str, value: Tensor, of: float) -> None:
        """Add one micro-batch's share of a mean over `of` of them on this process."""
        self.means[name] = self.means.get(name, 0.0) + value.item() / of

    def gradient(self, name: str, loss: Tensor, weight: float, leaf: Tensor, of: int) -> Tensor:
        """Gradient at the student's output of one micro-batch's share of a weighted loss, which is noted with its norm.

        Taken at the output alone, so it can reach no network but the one that `x.backward` hands it to. The ratio of
        the norms says what lambda_adv means; it carries over between models where lambda_adv does not.
        """
        self.add(name, loss, of)
        (gradient,) = torch.autograd.grad(weight * loss / of, leaf)
        key = f"output_grad/{name}"
        self.squares[key] = self.squares.get(key, 0.0) + gradient.float().square().sum().item()
        return gradient

    def values(self) -> dict[str, float]:
        """Everything that was noted, of the whole batch. Every process has to ask; what one lacks counts zero."""
        size = self.world.size
        gathered = self.world.gather((self.means, self.squares))
        means: dict[str, float] = {}
        squares: dict[str, float] = {}
        for its_means, its_squares in gathered:
            for name, value in its_means.items():
                means[name] = means.get(name, 0.0) + value / size
            for name, value in its_squares.items():
                squares[name] = squares.get(name, 0.0) + value / size**2
        return means | {name: value**0.5 for name, value in squares.items()} | self.whole
