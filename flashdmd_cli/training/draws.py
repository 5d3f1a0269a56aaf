"""Random numbers of a training step, as a function of (seed, iteration, row of the batch, purpose).

A row has the same random numbers for any number of processes and any micro-batch size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flashdmd_cli.runs.randomness import generator


@dataclass(frozen=True)
class Draws:
    """Random numbers for B = len(rows) rows of an iteration's batch; generated on the CPU, so equal on every device."""

    seed: int
    iteration: int
    rows: range
    device: torch.device

    def _generators(self, purpose: str) -> list[torch.Generator]:
        return [generator(self.seed, row, self.iteration, purpose) for row in self.rows]

    def normal(self, purpose: str, shape: tuple[int, ...]) -> Tensor:
        """Standard normal noise (B, *shape)."""
        return torch.stack([torch.randn(shape, generator=g) for g in self._generators(purpose)]).to(self.device)

    def uniform(self, purpose: str) -> Tensor:
        """Numbers (B,) on [0, 1)."""
        return torch.cat([torch.rand(1, generator=g) for g in self._generators(purpose)]).to(self.device)

    def choice(self, purpose: str, high: int) -> Tensor:
        """Integers (B,) long, uniform on [0, high)."""
        return torch.cat([torch.randint(high, (1,), generator=g) for g in self._generators(purpose)]).to(self.device)

    def corners(self, purpose: str, height: int, width: int) -> list[tuple[int, int]]:
        """Top left corners of B crops, uniform on [0, height] x [0, width]."""
        room = torch.tensor([height + 1, width + 1])
        pairs = ((torch.rand(2, generator=g) * room).long().tolist() for g in self._generators(purpose))
        return [(top, left) for top, left in pairs]
