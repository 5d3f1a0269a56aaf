"""Finds, downloads and loads reward models, and checks whether they fit an alignment."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from flashdmd_cli.families.registry import family_named
from flashdmd_cli.runs.errors import InputError, UsageError
from flashdmd_cli.runs.files import expanded
from flashdmd_cli.runs.hub import Wanted, fetch, files_below, parse_id
from flashdmd_cli.runs.reporter import Reporter, SilentReporter
from flashdmd_cli.runs.results import whole_folder

if TYPE_CHECKING:
    from flashdmd_cli.families.family import Family
    from flashdmd_cli.families.reward import RewardModel
    from flashdmd_cli.training.pairs import PairSampler

EMBEDDED = "embedded"
EMBEDDED_ASSETS = {"sdxl": "shapes-reward", "sd3": "shapes-sd3-reward"}
"""Family -> the shipped reward model of its embedded teacher."""
BUILDS = {"sdxl": "reward", "sd3": "sd3-reward"}
"""Family -> the part of `shapes build` that makes it."""
LRM_SDXL, LRM = "lrm_sdxl", "casiatao/LRM"
"""Name of the published reward model for SDXL in recipes, and its hub id."""
HINT = "flashdmd reward train makes one"
PUBLISHED, OWN = "state_dict.pt", "projections.safetensors"
"""The small file that only folders of reward models have: in the published format, and in that of this package."""
TRUNKS = ("unet/config.json", "adapter.safetensors")
"""A file with the features' network that folders of reward models have: SDXL's, SD3's."""


def reward_root(names: Iterable[str]) -> str | None:
    """Folder of a reward model in a repository, for example `lrm_sdxl/`, or empty for the root; None if there is none.

    A model with a second text encoder (SDXL's) is preferred, since the repository may also contain one for SD1.5.
    """
    present = set(names)
    roots = [name.removesuffix(mark) for name in sorted(present) for mark in (PUBLISHED, OWN)
             if name == mark or name.endswith(f"/{mark}")]  # fmt: skip
    roots.sort(key=lambda root: f"{root}text_encoder_2/config.json" not in present)
    return next((root for root in roots if any(root + trunk in present for trunk in TRUNKS)), None)


def reward_files(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """(Files of a repository that a reward model is loaded from, names of missing files).

    The file that identifies the folder (`PUBLISHED` or `OWN`) comes last, so that it exists only in complete downloads.
    """
    present = list(names)
    root = reward_root(present)
    if root is None:
        return [], [f"unet/ or {TRUNKS[1]}, with {PUBLISHED} or {OWN}"]
    inside = [name for name in present if name.startswith(root) and name.endswith((".json", ".txt", ".safetensors"))]
    marks = [root + mark for mark in (PUBLISHED, OWN) if root + mark in present]
    trunks = (f"{root}unet/", root + TRUNKS[1])
    weights = any(name.startswith(trunks) and name.endswith(".safetensors") for name in inside)
    files = [*(name for name in sorted(inside) if name not in marks), *marks]
    return files, [] if weights else [f"{root}unet/*.safetensors"]


def find_reward(name: str, reporter: Reporter | None = None, family: str = "sdxl") -> Path:
    """The folder of a reward model, downloaded if it is on the hub; `family` is that of the latents to be scored.

    Raises `InputError` if it cannot be found or downloaded, or does not match its manifest.
    """
    from flashdmd_cli.runs.manifest import MANIFEST

    if name == EMBEDDED:
        from flashdmd_cli.shapes.assets import asset

        try:
            return asset(EMBEDDED_ASSETS.get(family, family))
        except FileNotFoundError:
            raise InputError(
                f"--reward embedded: no embedded reward model of {family} is installed",
                hint=f"flashdmd shapes build {BUILDS.get(family, 'reward')} --out DIR makes one, then --reward DIR",
            ) from None
    folder = expanded(name)
    asked = None if folder.exists() else (LRM, None) if name == LRM_SDXL else parse_id(name)
    if asked is not None:
        reporter = reporter or SilentReporter()
        local = f"--reward PATH takes a local folder; {HINT}"
        wanted = Wanted(f"--reward {name}", *asked, hint=local, or_path=name != LRM_SDXL)
        snapshot = fetch(wanted, reward_files, reporter.say, reporter.draws_bars)
        folder = snapshot / (reward_root(files_below(snapshot)) or "")
    if not folder.is_dir():
        published = f"--reward {LRM_SDXL} is {LRM} on the hub; " if family == "sdxl" else ""
        raise InputError(f"--reward {name}: no such folder", hint=f"{published}{HINT}")
    if (folder / MANIFEST).is_file():
        whole_folder(folder, ("reward",), "--reward", "flashdmd reward train")
    return folder


def load_reward_model(folder: Path, family: Family) -> RewardModel:
    """Load a reward model to the device of its teacher; InputError if it cannot be read or is of another kind."""
    import torch
    from safetensors import SafetensorError

    device = family.device
    # float16 as in the authors' code; on a CPU it would be emulated.
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    try:
        reward = family_named(family.name).module.load_reward(folder, family, dtype)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        published = f"a folder of {LRM}, or " if family.name == "sdxl" else "a folder "
        hint = getattr(error, "hint", "") or f"{published}of flashdmd reward train with a teacher of this family"
        raise InputError(f"--reward {folder}: {first}", hint=hint) from error
    return reward.to(device)


def check_levels(sampler: PairSampler) -> None:
    """Raise `UsageError` if an alignment would use the reward model at a timestep that it was not trained on."""
    low, high = sampler.reward.timesteps
    if sampler.config.reward_outside == "clamp":
        return
    for _, timestep in sampler.levels():
        if not low <= timestep <= high:
            raise UsageError(
                f"align.reward_timestep: would score at timestep {timestep:g}, but the reward model was trained from "
                f"{low} to {high}",
                hint="--set align.reward_outside=clamp uses the nearest timestep",
            )
