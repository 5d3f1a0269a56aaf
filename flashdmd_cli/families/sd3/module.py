"""SD3's implementation of `families.facts.FamilyModule`; torch and diffusers are imported on first use."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from flashdmd_cli.core.grid import Grid, flow_grid
from flashdmd_cli.core.unfit import Unfit
from flashdmd_cli.families.files import Source
from flashdmd_cli.families.layout import refuse_vae
from flashdmd_cli.families.sd3.layout import SHIFT, dimensions, is_student, refuse

if TYPE_CHECKING:
    import torch

    from flashdmd_cli.families.reward import RewardModel
    from flashdmd_cli.families.sd3.family import SD3Family

__all__ = ["dimensions", "grid", "is_student", "load", "load_reward", "refuse", "refuse_vae"]


def grid(steps: int) -> Grid:
    """The few-step grid with SD3's own shift."""
    return flow_grid(steps, SHIFT)


def load(source: Source, precision: str, weights: str) -> SD3Family:
    """Load a teacher, on the CPU."""
    from flashdmd_cli.families.sd3.family import SD3Family

    return SD3Family.load(source, precision, weights)


def load_reward(folder: Path, family: SD3Family, dtype: torch.dtype) -> RewardModel:
    """Unfit: there are no latent reward models on SD3's transformer yet."""
    raise Unfit("reward models of SD3 are not supported", "align students of SDXL")
