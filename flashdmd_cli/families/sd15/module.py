"""The implementation of `families.facts.FamilyModule`; torch and diffusers are imported on first use."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashdmd_cli.core.grid import Grid, vp_grid
from flashdmd_cli.core.unfit import Unfit
from flashdmd_cli.families import layout
from flashdmd_cli.families.dimensions import Dimensions
from flashdmd_cli.families.facts import Labels
from flashdmd_cli.families.files import Source, read_json
from flashdmd_cli.families.layout import is_vp_student as is_student
from flashdmd_cli.families.layout import refuse_vae
from flashdmd_cli.families.sd15.facts import SD15

if TYPE_CHECKING:
    import torch

    from flashdmd_cli.families.reward import RewardModel
    from flashdmd_cli.families.sd15.family import SD15Family
    from flashdmd_cli.families.stored import Stored

__all__ = [
    "dimensions", "grid", "is_student", "kohya_name", "labels", "load", "load_reward", "refuse", "refuse_vae",
    "single_file", "stored_in_file",
]  # fmt: skip


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


def labels(config: Mapping[str, Any], scheduler: Mapping[str, Any]) -> Labels:
    """Identifiers of version 1 or 2; the UNet of version 2 has linear projections in its transformer blocks."""
    if not config.get("use_linear_projection"):
        return Labels("stable-diffusion-v1", {"ss_base_model_version": "sd_v1"})
    is_v = scheduler.get("prediction_type") == "v_prediction"
    kohya = {"ss_v2": "True", "ss_base_model_version": "sd_v2_v" if is_v else "sd_v2"}
    return Labels("stable-diffusion-v2-768-v" if is_v else "stable-diffusion-v2-512", kohya)


def load_reward(folder: Path, family: SD15Family, dtype: torch.dtype) -> RewardModel:
    """Unfit: students of this family cannot be aligned yet."""
    raise Unfit("reward models of Stable Diffusion 1 and 2 are not supported", "align students of SDXL")


def stored_in_file(source: Source, part: str) -> dict[str, Stored]:
    """The tensors of one network of a teacher in one file, or of an autoencoder in one file, by diffusers' names."""
    from flashdmd_cli.families import original
    from flashdmd_cli.families.sd15.family import SD15Family

    return original.stored_in_file(SD15Family.kinds, SD15Family.original, source, part)


def single_file(
    parts: Mapping[str, Mapping[str, Stored]],
    configs: Mapping[str, Mapping[str, Any]],
    scheduler: Mapping[str, Any],
) -> dict[str, Stored]:
    """Unfit: not written yet for this family."""
    raise Unfit("single-file is for SDXL and SD3", "export --format diffusers")


def kohya_name(layer: str, config: Mapping[str, Any]) -> str:
    """Name of a layer of the UNet in LoRA files of kohya's scripts, which keep diffusers' names for this family."""
    return "lora_unet_" + layer.replace(".", "_")
