"""The implementation of `families.facts.FamilyModule`; torch and diffusers are imported on first use."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from flashdmd_cli.core.grid import Grid, vp_grid
from flashdmd_cli.core.unfit import Unfit
from flashdmd_cli.families import layout
from flashdmd_cli.families.dimensions import Dimensions
from flashdmd_cli.families.files import Source, read_json
from flashdmd_cli.families.layout import is_vp_student as is_student
from flashdmd_cli.families.layout import refuse_vae
from flashdmd_cli.families.sd15.facts import SD15

if TYPE_CHECKING:
    import torch

    from flashdmd_cli.families.reward import RewardModel
    from flashdmd_cli.families.sd15.family import SD15Family

__all__ = ["dimensions", "grid", "is_student", "load", "load_reward", "refuse", "refuse_vae"]


def refuse(place: Path) -> None:
    """Raise Unfit, describing what was found, unless `place` is a complete model that can be distilled."""
    if place.is_file():
        encoder = ("cond_stage_model.transformer.", "cond_stage_model.model.")
        layout.refuse_file(place, SD15, {"text encoder": encoder})
    else:
        layout.refuse_folder(place, SD15)


def dimensions(folder: Path) -> Dimensions:
    """Dimensions of a pipeline folder; raises `OSError`, `ValueError` or `KeyError` for any other folder."""
    width = int(read_json(folder / "unet" / "config.json")["cross_attention_dim"])
    return layout.dimensions(folder, "unet", {"context": (layout.tokens(folder), width)})


def grid(steps: int) -> Grid:
    """The few-step grid on the noise schedule of Stable Diffusion 1.5, which is SDXL's."""
    return vp_grid(steps)


def load(source: Source, precision: str, weights: str) -> SD15Family:
    """Load a teacher, on the CPU."""
    from flashdmd_cli.families.sd15.family import SD15Family

    return SD15Family.load(source, precision, weights)


def load_reward(folder: Path, family: SD15Family, dtype: torch.dtype) -> RewardModel:
    """Unfit: students of this family cannot be aligned yet."""
    raise Unfit("reward models of Stable Diffusion 1 and 2 are not supported", "align students of SDXL")
