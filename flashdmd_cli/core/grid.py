"""The few-step grid: the timesteps of a student, and the configuration of a stock scheduler that returns them."""

from __future__ import annotations

from dataclasses import dataclass, field
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
    call: dict[str, Any] = field(default_factory=dict)
    """What a stock pipeline has to be called with beside the number of steps, where the configuration cannot say it."""

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
