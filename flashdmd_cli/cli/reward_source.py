"""Where a reward model comes from, and whether it fits a student."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from flashdmd_cli.cli.checkpoints import whole_folder
from flashdmd_cli.runs.errors import InputError, UsageError

if TYPE_CHECKING:
    from flashdmd_cli.models.reward import LatentRewardModel
    from flashdmd_cli.models.sdxl import SDXLFamily
    from flashdmd_cli.training.pairs import PairSampler

EMBEDDED, EMBEDDED_ASSET = "embedded", "shapes-reward"
LRM = "casiatao/LRM"


def find_reward(name: str) -> Path:
    """The folder of a reward model; InputError when it is not here, or not what its manifest says."""
    from flashdmd_cli.runs.manifest import MANIFEST

    if name == EMBEDDED:
        from flashdmd_cli.shapes.assets import asset

        try:
            return asset(EMBEDDED_ASSET)
        except FileNotFoundError:
            raise InputError(
                "--reward embedded: the embedded reward model is not installed",
                hint="flashdmd shapes build reward --out DIR makes one, then --reward DIR",
            ) from None
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise InputError(
            f"--reward {name}: no such folder",
            hint=f"LRM-SDXL is {LRM} on the hub, --reward PATH takes its folder; flashdmd reward train makes one",
        )
    if (folder / MANIFEST).is_file():
        whole_folder(folder, ("reward",), "--reward", "flashdmd reward train")
    return folder


def load_reward_model(folder: Path, family: SDXLFamily) -> LatentRewardModel:
    """The reward model of a folder beside a teacher, on its device; InputError when it cannot be read or is of another
    kind."""
    import pickle

    import torch
    from safetensors import SafetensorError

    from flashdmd_cli.models.reward_files import RewardBase, load_reward

    device = family.device
    # As its authors run it. On a CPU half precision would be emulated.
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    try:
        reward = load_reward(folder, RewardBase.of(family), dtype)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"--reward {folder}: {first}", hint=f"a folder of {LRM}, or of flashdmd reward train"
        ) from error
    channels, wanted = reward.trunk.config.in_channels, family.latent_shape[0]
    if not reward.is_sdxl or channels != wanted:
        kind = f"{channels}-channel latents of {'SDXL' if reward.is_sdxl else 'SD1.5'}"
        raise InputError(
            f"--reward {folder}: scores {kind}, but the student draws {wanted}-channel latents of SDXL",
            hint="name a reward model of the student's family",
        )
    return reward.to(device)


def check_levels(sampler: PairSampler) -> None:
    """UsageError when an alignment would ask the reward model about a noise that it was not trained on."""
    low, high = sampler.reward.config.timesteps
    if sampler.table.reward_outside == "clamp":
        return
    for _, timestep in sampler.levels():
        if not low <= timestep <= high:
            raise UsageError(
                f"align.reward_timestep: would score at timestep {timestep}, but the reward model was trained from "
                f"{low} to {high}",
                hint="--set align.reward_outside=clamp takes the nearest",
            )
