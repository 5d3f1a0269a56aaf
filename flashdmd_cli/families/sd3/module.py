"""SD3's implementation of `families.facts.FamilyModule`; torch and diffusers are imported on first use."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashdmd_cli.core.grid import Grid, flow_grid
from flashdmd_cli.core.unfit import Unfit
from flashdmd_cli.families.facts import Labels
from flashdmd_cli.families.files import Source
from flashdmd_cli.families.layout import refuse_vae
from flashdmd_cli.families.sd3.layout import SHIFT, dimensions, is_student, refuse

if TYPE_CHECKING:
    import torch

    from flashdmd_cli.families.reward import RewardDesign
    from flashdmd_cli.families.sd3.family import SD3Family
    from flashdmd_cli.families.sd3.reward import FlowReward
    from flashdmd_cli.families.stored import Stored

__all__ = [
    "dimensions", "grid", "is_student", "kohya_name", "labels", "load", "load_reward", "new_reward", "random_family",
    "random_text", "refuse", "refuse_reward", "refuse_vae", "save_reward", "single_file", "stored_in_file",
]  # fmt: skip


def grid(steps: int) -> Grid:
    """The few-step grid with SD3's own shift."""
    return flow_grid(steps, SHIFT)


def load(source: Source, precision: str, weights: str) -> SD3Family:
    """Load a teacher, on the CPU."""
    from flashdmd_cli.families.sd3.family import SD3Family

    return SD3Family.load(source, precision, weights)


def labels(config: Mapping[str, Any], scheduler: Mapping[str, Any]) -> Labels:
    """Identifiers of SD3."""
    return Labels("stable-diffusion-3-medium")


def load_reward(folder: Path, family: SD3Family, dtype: torch.dtype) -> FlowReward:
    """Load a reward model; its weights have the formats of the teacher and the adapters, not `dtype`."""
    from flashdmd_cli.families.sd3 import reward

    return reward.load_reward(folder, family)


def refuse_reward(layers: str, text_encoders: bool) -> None:
    """Raise `Unfit` for a reward model that would need copies of the teacher's networks."""
    if layers != "adapters":
        raise Unfit(f"model.layers: is {layers}, but a reward model of SD3 is adapters on its teacher",
                    "--set model.layers=adapters")  # fmt: skip
    if text_encoders:
        raise Unfit("model.text_encoders: a reward model of SD3 uses the text encoders of its teacher",
                    "--set model.text_encoders=false")  # fmt: skip


def new_reward(family: SD3Family, design: RewardDesign) -> FlowReward:
    """An untrained reward model, whose adapters, projection and scale are to be trained."""
    from flashdmd_cli.families.sd3 import reward

    return reward.new_reward(family, design)


def save_reward(model: FlowReward, family: SD3Family, folder: Path, half: bool) -> None:
    """Write a reward model, without the teacher's weights."""
    from flashdmd_cli.families.sd3 import reward

    reward.save_reward(model, folder, half)


def random_family(resolution: int, precision: str, weights: str, device: torch.device, small: bool) -> SD3Family:
    """SD3-Medium with random weights."""
    from flashdmd_cli.families.sd3 import true_size

    return true_size.random_family(resolution, precision, weights, device, small)


def random_text(family: SD3Family, batch: int) -> dict[str, torch.Tensor]:
    """Random text embeddings for `batch` prompts."""
    from flashdmd_cli.families.sd3 import true_size

    return true_size.random_text(family, batch)


def stored_in_file(source: Source, part: str) -> dict[str, Stored]:
    """The tensors of one network of a teacher in one file, or of an autoencoder in one file, by diffusers' names."""
    from flashdmd_cli.families import original
    from flashdmd_cli.families.sd3 import reading

    return original.stored_in_file(reading.KINDS, reading.ORIGINAL, source, part)


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
    raise Unfit("lora-kohya is not for SD3", "ComfyUI and diffusers both read --format lora of SD3")
