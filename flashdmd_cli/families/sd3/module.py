"""SD3's implementation of `families.facts.FamilyModule`; torch and diffusers are imported on first use."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashdmd_cli.core.grid import Grid, flow_grid
from flashdmd_cli.core.unfit import Unfit
from flashdmd_cli.families.files import Source
from flashdmd_cli.families.sd3.layout import SHIFT, dimensions, is_student, refuse_folder, refuse_vae

if TYPE_CHECKING:
    import torch

    from flashdmd_cli.families.reward import RewardModel
    from flashdmd_cli.families.sd3.family import SD3Family
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
    """Raise `Unfit`, describing what was found, unless `place` is a complete SD3 pipeline folder."""
    if place.is_file():
        raise Unfit("is a file; SD3 teachers are read from folders", "name the folder of a StableDiffusion3Pipeline")
    refuse_folder(place)


def grid(steps: int) -> Grid:
    """The few-step grid with SD3's own shift."""
    return flow_grid(steps, SHIFT)


def load(source: Source, precision: str, weights: str) -> SD3Family:
    """Load a teacher, on the CPU."""
    from flashdmd_cli.families.sd3.family import SD3Family

    return SD3Family.load(source, precision, weights)


def stored_in_file(source: Source, part: str) -> dict[str, Stored]:
    """Unfit: teachers and autoencoders of SD3 are read from folders."""
    raise Unfit(f"{part}: SD3 teachers are read from folders", "name the folder of a StableDiffusion3Pipeline")


def single_file(
    parts: Mapping[str, Mapping[str, Stored]],
    configs: Mapping[str, Mapping[str, Any]],
    scheduler: Mapping[str, Any],
) -> dict[str, Stored]:
    """A whole pipeline in the layout of SD3's original code."""
    from flashdmd_cli.families.sd3 import original

    return original.single_file(parts, configs, scheduler)


def kohya_name(layer: str, config: Mapping[str, Any]) -> str:
    """Unfit: ComfyUI reads LoRA files of SD3 by diffusers' names."""
    raise Unfit("lora-kohya is for SDXL", "ComfyUI and diffusers both read --format lora of SD3")


def load_reward(folder: Path, family: SD3Family, dtype: torch.dtype) -> RewardModel:
    """Unfit: there are no latent reward models on SD3's transformer yet."""
    raise Unfit("reward models of SD3 are not supported", "align students of SDXL")
