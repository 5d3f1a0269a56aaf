"""The few-step grid: which timesteps a student is trained on, and the stock scheduler that returns exactly these."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

NUM_TRAIN_TIMESTEPS = 1000
"""Timesteps of every teacher; flow times are counted in thousandths too."""
VP_STEPS = (1, 2, 4, 8)


@dataclass(frozen=True)
class Grid:
    """Descending timesteps of a student, with class and configuration of the scheduler that reproduces them."""

    timesteps: tuple[float, ...]
    scheduler: str
    config: dict[str, Any]

    def __len__(self) -> int:
        return len(self.timesteps)


def vp_grid(steps: int, schedule: dict[str, Any] | None = None) -> Grid:
    """Grid of `steps` in {1, 2, 4, 8} on a VP schedule: 4 steps are 999, 749, 499, 249 (DMD2; the paper's section 8).

    `LCMScheduler` picks its timesteps out of `original_inference_steps`; at its default of 50 it would return
    999, 759, 499, 259. With 8 it returns the exact grids. `schedule` holds the teacher's betas and `prediction_type`.
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
        # Boundary scaling of consistency models off: a student's output is x0 itself at every step.
        "timestep_scaling": 1.0e6,
        "set_alpha_to_one": True,
        "clip_sample": False,
    }
    return Grid(tuple(NUM_TRAIN_TIMESTEPS - 1 - i * spacing for i in range(steps)), "LCMScheduler", config)
