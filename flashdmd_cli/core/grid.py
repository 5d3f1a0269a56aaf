"""The few-step grid: the timesteps of a student, and the configuration of a stock scheduler that returns them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NUM_TRAIN_TIMESTEPS = 1000
"""Number of training timesteps of every teacher; flow-matching times are scaled to the same range."""
VP_STEPS = (1, 2, 4, 8)
"""Numbers of steps for which `LCMScheduler` returns an evenly spaced grid that starts at timestep 999."""


@dataclass(frozen=True)
class Grid:
    """Descending timesteps of a student, with the class name and config of the scheduler that reproduces them."""

    timesteps: tuple[float, ...]
    scheduler: str
    config: dict[str, Any]

    def __len__(self) -> int:
        return len(self.timesteps)


def vp_grid(steps: int, schedule: dict[str, Any] | None = None) -> Grid:
    """Grid of `steps` in {1, 2, 4, 8} on a VP schedule: 4 steps are 999, 749, 499, 249 (DMD2; the paper's section 8).

    `LCMScheduler` selects its timesteps from `original_inference_steps` candidates; with its default of 50 it would
    return 999, 759, 499, 259. With 8 it returns the exact grids. `schedule` overrides SDXL's betas and
    `prediction_type` with the teacher's. Raises ValueError for any other number of steps.
    """
    if steps not in VP_STEPS:
        raise ValueError(f"steps must be one of {VP_STEPS}, not {steps}")
    spacing = NUM_TRAIN_TIMESTEPS // steps
    config = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "prediction_type": "epsilon",
        **(schedule or {}),
        "num_train_timesteps": NUM_TRAIN_TIMESTEPS,
        "original_inference_steps": 8,
        # A large value turns off the boundary scaling of consistency models: the student predicts x0 at every step.
        "timestep_scaling": 1.0e6,
        "set_alpha_to_one": True,
        "clip_sample": False,
    }
    return Grid(tuple(NUM_TRAIN_TIMESTEPS - 1 - i * spacing for i in range(steps)), "LCMScheduler", config)


FLOW_SCHEDULER = "FlowMatchLCMScheduler"
"""Scheduler of exported students of flow matching."""
SIGMA_MIN = 1 / NUM_TRAIN_TIMESTEPS
"""Lowest noise level of stock flow schedulers, before the shift."""


def flow_grid(steps: int, shift: float) -> Grid:
    """Grid of `steps` in {1, 2, 4, 8} with flow matching: evenly spaced noise levels from 1, raised by the shift.

    4 steps are 1, 0.75, 0.5, 0.25 before and 1, 0.9, 0.75, 0.5 after a shift of 3; timesteps are 1000 times these.

    Called with a number of steps, stock schedulers space levels evenly from 1 to their lowest level, shift them, and
    stretch them to end at `shift_terminal`. All three are Moebius transformations, as is the shift of this grid, so one
    `shift` of the scheduler, smaller than the teacher's, gives exactly this grid: the root of a quadratic equation.
    `teacher_shift` is the inverse. Raises ValueError for other numbers of steps.
    """
    if steps not in VP_STEPS:
        raise ValueError(f"steps must be one of {VP_STEPS}, not {steps}")
    sigmas = [_shifted(1 - i / steps, shift) for i in range(steps)]
    config: dict[str, Any] = {"num_train_timesteps": NUM_TRAIN_TIMESTEPS, "shift": shift}
    if steps > 1:
        a = SIGMA_MIN * (steps - 1) * (shift - 1)
        b = (1 - SIGMA_MIN) * (steps - 1 + shift)
        c = (1 - SIGMA_MIN) * steps * shift
        config |= {"shift": 2 * c / (b + math.sqrt(b * b - 4 * a * c)), "shift_terminal": sigmas[-1]}
    return Grid(tuple(NUM_TRAIN_TIMESTEPS * sigma for sigma in sigmas), FLOW_SCHEDULER, config)


def teacher_shift(scheduler: Mapping[str, Any]) -> float:
    """The teacher's shift from the configuration of a flow scheduler, which may be that of an exported student."""
    own, terminal = float(scheduler["shift"]), scheduler.get("shift_terminal")
    if terminal is None:
        return own
    lowest = _shifted(_shifted(SIGMA_MIN, own), own)
    return round(1 + (own - 1) * (1 - lowest) / (1 - terminal), 6)


def _shifted(sigma: float, shift: float) -> float:
    return shift * sigma / (1 + (shift - 1) * sigma)
