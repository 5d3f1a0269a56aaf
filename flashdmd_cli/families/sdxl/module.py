"""SDXL's implementation of `families.facts.FamilyModule`; torch and diffusers are imported on first use."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashdmd_cli.core.grid import Grid, vp_grid
from flashdmd_cli.core.unfit import Unfit
from flashdmd_cli.families.facts import Labels
from flashdmd_cli.families.files import Source
from flashdmd_cli.families.layout import is_vp_student as is_student
from flashdmd_cli.families.layout import refuse_vae
from flashdmd_cli.families.sdxl.layout import dimensions, refuse

if TYPE_CHECKING:
    import torch

    from flashdmd_cli.families.reward import RewardDesign
    from flashdmd_cli.families.sdxl.family import SDXLFamily
    from flashdmd_cli.families.sdxl.reward import LatentRewardModel
    from flashdmd_cli.families.stored import Stored

__all__ = [
    "dimensions", "grid", "is_student", "kohya_name", "labels", "load", "load_reward", "new_reward", "random_family",
    "random_text", "refuse", "refuse_reward", "refuse_vae", "save_reward", "single_file", "stored_in_file",
]  # fmt: skip


def grid(steps: int) -> Grid:
    """The few-step grid on SDXL's own noise schedule."""
    return vp_grid(steps)


def load(source: Source, precision: str, weights: str) -> SDXLFamily:
    """Load a teacher, on the CPU."""
    from flashdmd_cli.families.sdxl.family import SDXLFamily

    return SDXLFamily.load(source, precision, weights)


def stored_in_file(source: Source, part: str) -> dict[str, Stored]:
    """The tensors of one network of a teacher in one file, or of an autoencoder in one file, by diffusers' names."""
    from flashdmd_cli.families import original
    from flashdmd_cli.families.sdxl import reading

    return original.stored_in_file(reading.KINDS, reading.ORIGINAL, source, part)


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


def labels(config: Mapping[str, Any], scheduler: Mapping[str, Any]) -> Labels:
    """Identifiers of SDXL."""
    return Labels("stable-diffusion-xl-v1-base", {"ss_base_model_version": "sdxl_base_v1-0"})


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


def refuse_reward(layers: str, text_encoders: bool) -> None:
    """Raise `Unfit` for adapters."""
    if layers == "adapters":
        raise Unfit("model.layers: a reward model of SDXL has no adapters", "--set model.layers=attention")


def new_reward(family: SDXLFamily, design: RewardDesign) -> LatentRewardModel:
    """An untrained reward model, with `requires_grad` set for what is trained."""
    from flashdmd_cli.families.sdxl import reward_files
    from flashdmd_cli.families.sdxl.reward import RewardConfig

    model = reward_files.new_reward(family, RewardConfig(family.resolution, design.timesteps, design.guidance))
    model.set_trainable(design.layers, design.text_encoders)
    return model


def save_reward(model: LatentRewardModel, family: SDXLFamily, folder: Path, half: bool) -> None:
    """Write a reward model; what was not trained is left out if only the attention layers were."""
    from flashdmd_cli.families.sdxl import reward_files

    shares = not all(parameter.requires_grad for parameter in model.trunk.parameters())
    reward_files.save_reward(model, folder, reward_files.RewardBase.of(family) if shares else None, half)


def random_family(resolution: int, precision: str, weights: str, device: torch.device, small: bool) -> SDXLFamily:
    """SDXL with random weights."""
    from flashdmd_cli.families.sdxl import true_size

    return true_size.random_family(resolution, precision, weights, device, small)


def random_text(family: SDXLFamily, batch: int) -> dict[str, torch.Tensor]:
    """Random text embeddings for `batch` prompts."""
    from flashdmd_cli.families.sdxl import true_size

    return true_size.random_text(family, batch)
