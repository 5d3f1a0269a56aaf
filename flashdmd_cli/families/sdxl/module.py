"""SDXL's implementation of `families.facts.FamilyModule`; torch and diffusers are imported on first use."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashdmd_cli.core.grid import Grid, vp_grid
from flashdmd_cli.core.unfit import Unfit
from flashdmd_cli.families.files import Source
from flashdmd_cli.families.sdxl.layout import dimensions, is_student, refuse_file, refuse_folder, refuse_vae

if TYPE_CHECKING:
    import torch

    from flashdmd_cli.families.sdxl.family import SDXLFamily
    from flashdmd_cli.families.sdxl.reward import LatentRewardModel
    from flashdmd_cli.families.stored import Stored

__all__ = [
    "dimensions",
    "grid",
    "is_student",
    "kohya_name",
    "load",
    "load_reward",
    "refuse",
    "refuse_vae",
    "single_file",
    "stored_in_file",
]


def refuse(place: Path) -> None:
    """Raise `Unfit`, describing what was found, unless `place` is a complete SDXL model."""
    (refuse_file if place.is_file() else refuse_folder)(place)


def grid(steps: int) -> Grid:
    """The few-step grid on SDXL's own noise schedule."""
    return vp_grid(steps)


def load(source: Source, precision: str, weights: str) -> SDXLFamily:
    """Load a teacher, on the CPU."""
    from flashdmd_cli.families.sdxl.family import SDXLFamily

    return SDXLFamily.load(source, precision, weights)


def stored_in_file(source: Source, part: str) -> dict[str, Stored]:
    """The tensors of one network of a teacher in one file, or of an autoencoder in one file, by diffusers' names."""
    from flashdmd_cli.families.sdxl import reading

    return reading.stored_in_file(source, part)


def single_file(
    parts: Mapping[str, Mapping[str, Stored]],
    configs: Mapping[str, Mapping[str, Any]],
    scheduler: Mapping[str, Any],
) -> dict[str, Stored]:
    """A whole pipeline in the layout of SDXL's original code."""
    from flashdmd_cli.families.sdxl import original

    return original.single_file(parts, configs, scheduler)


def kohya_name(layer: str, config: Mapping[str, Any]) -> str:
    """Name of a layer of the UNet in LoRA files of kohya's scripts."""
    from flashdmd_cli.families.sdxl import original

    return original.kohya_name(layer, config)


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
