"""The few-step grid of flow matching."""

from __future__ import annotations

from flashdmd_cli.core.grid import NUM_TRAIN_TIMESTEPS, VP_STEPS, Grid

SHIFT = 3.0
"""SD3's own shift (Esser et al. 2024, section 5.3.2)."""


def flow_grid(steps: int, shift: float = SHIFT) -> Grid:
    """Grid of `steps` in {1, 2, 4, 8}: evenly spaced noise levels from 1, raised by the shift.

    4 steps are 1, 0.75, 0.5, 0.25 before and 1, 0.9, 0.75, 0.5 after a shift of 3; timesteps are 1000 times these.
    `FlowMatchLCMScheduler` applies the shift to the `sigmas` it is called with. Raises ValueError for other numbers.
    """
    if steps not in VP_STEPS:
        raise ValueError(f"steps must be one of {VP_STEPS}, not {steps}")
    even = [1 - i / steps for i in range(steps)]
    timesteps = tuple(NUM_TRAIN_TIMESTEPS * shift * sigma / (1 + (shift - 1) * sigma) for sigma in even)
    config = {"num_train_timesteps": NUM_TRAIN_TIMESTEPS, "shift": shift}
    return Grid(timesteps, "FlowMatchLCMScheduler", config, {"sigmas": even})
