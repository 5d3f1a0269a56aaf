"""What the package calls of SDXL (`families.facts.FamilyModule`); heavy imports wait until they are needed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from flashdmd_cli.core.unfit import Unfit
from flashdmd_cli.families.files import Source
from flashdmd_cli.families.sdxl.layout import dimensions, is_student, refuse_file, refuse_folder, refuse_vae

if TYPE_CHECKING:
    import torch

    from flashdmd_cli.families.sdxl.family import SDXLFamily
    from flashdmd_cli.families.sdxl.reward import LatentRewardModel

__all__ = ["dimensions", "is_student", "load", "load_reward", "refuse", "refuse_vae"]


def refuse(place: Path) -> None:
    """Raise `Unfit`, in words of what it is, for a folder or file that is no whole SDXL."""
    (refuse_file if place.is_file() else refuse_folder)(place)


def load(source: Source, precision: str) -> SDXLFamily:
    """The family of a teacher, on the CPU."""
    from flashdmd_cli.families.sdxl.family import SDXLFamily

    return SDXLFamily.load(source, precision)


def load_reward(folder: Path, family: SDXLFamily, dtype: torch.dtype) -> LatentRewardModel:
    """A reward model of SDXL's; ValueError when it reads other latents than the family's denoiser draws."""
    from flashdmd_cli.families.sdxl import reward_files

    reward = reward_files.load_reward(folder, reward_files.RewardBase.of(family), dtype)
    channels, wanted = reward.trunk.config.in_channels, family.latent_shape[0]
    if not reward.is_sdxl or channels != wanted:
        kind = f"{channels}-channel latents of {'SDXL' if reward.is_sdxl else 'SD1.5'}"
        raise Unfit(
            f"scores {kind}, but the student draws {wanted}-channel latents of SDXL",
            "name a reward model of the student's family",
        )
    return reward
