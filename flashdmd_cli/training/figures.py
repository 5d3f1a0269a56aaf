"""What an iteration tells of itself, gathered over its micro-batches."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Figures:
    """Means over the micro-batches of an iteration; gradient norms are those of the whole batch."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def add(self, name: str, value: Tensor, of: float) -> None:
        """Add one micro-batch's share of a mean over `of` of them."""
        self.values[name] = self.values.get(name, 0.0) + value.item() / of

    def gradient(self, name: str, loss: Tensor, weight: float, leaf: Tensor, of: int) -> Tensor:
        """Gradient at the student's output of one micro-batch's share of a weighted loss, with its figures noted.

        Taken at the output alone, so it can reach no network but the one that `x.backward` hands it to. The ratio of
        the norms says what lambda_adv means; it carries over between models where lambda_adv does not.
        """
        self.add(name, loss, of)
        (gradient,) = torch.autograd.grad(weight * loss / of, leaf)
        key = f"output_grad/{name}"
        self.values[key] = math.hypot(self.values.get(key, 0.0), gradient.float().norm().item())
        return gradient
