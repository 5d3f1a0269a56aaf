"""SDXL's implementation of `families.facts.FamilyModule`; torch and diffusers are imported on first use."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from flashdmd_cli.core.grid import Grid, vp_grid
from flashdmd_cli.core.unfit import Unfit
from flashdmd_cli.families.files import Source
from flashdmd_cli.families.layout import is_vp_student as is_student
from flashdmd_cli.families.layout import refuse_vae
from flashdmd_cli.families.sdxl.layout import dimensions, refuse

if TYPE_CHECKING:
    import torch

    from flashdmd_cli.families.sdxl.family import SDXLFamily
    from flashdmd_cli.families.sdxl.reward import LatentRewardModel

__all__ = ["dimensions", "grid", "is_student", "load", "load_reward", "refuse", "refuse_vae"]


def grid(steps: int) -> Grid:
    """The few-step grid on SDXL's own noise schedule."""
    return vp_grid(steps)


def load(source: Source, precision: str, weights: str) -> SDXLFamily:
    """Load a teacher, on the CPU."""
    from flashdmd_cli.families.sdxl.family import SDXLFamily

    return SDXLFamily.load(source, precision, weights)


def load_reward(folder: Path, family: SDXLFamily, dtype: torch.dtype) -> LatentRewardModel:
    """Load a reward model; Unfit if it scores latents of another kind than the family's denoiser predicts."""
    from flashdmd_cli.families.sdxl import reward_files

    reward = reward_files.load_reward(folder, reward_files.RewardBase.of(family), dtype)
    channels, wanted = reward.trunk.config.in_channels, family.latent_shape[0]
    if not reward.is_sdxl or channels != wanted:
        kind = f"{channels}-channel latents of {'SDXL' if reward.is_sdxl else 'SD1.5'}"
        raise Unfit(
            f"scores {kind}, but the student generates {wanted}-channel latents of SDXL",
            "name a reward model of the student's family",
        )
    return reward
