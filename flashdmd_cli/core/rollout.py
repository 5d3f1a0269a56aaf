"""Few-step sampling and backward simulation: the same walk down the grid, stopped early or not (DMD2, section 4.5)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from flashdmd_cli.core.schedules import Schedule, add_noise

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""(x_t (B, ...), t (B,)) -> x0 (B, ...)."""

NoiseSource = Callable[[int], Tensor]
"""Index of the grid step about to be entered -> fresh noise (B, ...)."""


def at(timestep: float, x: Tensor) -> Tensor:
    """One timestep for a whole batch, (B,) float."""
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
    """Walk from the noisy state `x` at grid step `start` to the noisy state at grid step `stop`.

    Each step predicts x0 and re-noises it with *fresh* noise to the next timestep; noise that is correlated with the
    sample's leaves artefacts. With `stop=None` the walk ends in the last x0, which is what inference returns.
    """
    last = len(timesteps) - 1
    for index in range(start, len(timesteps) if stop is None else stop):
        x0 = denoise(x, at(timesteps[index], x))
        if index == last:
            return x0
        x = add_noise(schedule, x0, noise(index + 1), at(timesteps[index + 1], x))
    return x
