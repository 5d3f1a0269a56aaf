"""Few-step sampling, and backward simulation, which stops it before the last step (DMD2, section 4.5)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from flashdmd_cli.core.schedules import Schedule, add_noise

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""(x_t (B, ...), t (B,)) -> x0 (B, ...)."""

NoiseSource = Callable[[int], Tensor]
"""Index of the next grid step -> new noise (B, ...)."""


def at(timestep: float, x: Tensor) -> Tensor:
    """`timestep` repeated for each sample of `x` (B, ...): (B,) float."""
    return torch.full((len(x),), float(timestep), device=x.device)


def rollout(
    denoise: Denoiser,
    schedule: Schedule,
    timesteps: Sequence[float],
    x: Tensor,
    noise: NoiseSource,
    start: int = 0,
    stop: int | None = None,
) -> Tensor:
    """Sample from the noisy state `x` at grid step `start` to the noisy state at grid step `stop`.

    Each step predicts x0 and adds *new* noise for the next timestep; noise that is correlated with the sample leaves
    artefacts. With `stop=None` the result is the x0 of the last step, as at inference.
    """
    last = len(timesteps) - 1
    for index in range(start, len(timesteps) if stop is None else stop):
        x0 = denoise(x, at(timesteps[index], x))
        if index == last:
            return x0
        x = add_noise(schedule, x0, noise(index + 1), at(timesteps[index + 1], x))
    return x
