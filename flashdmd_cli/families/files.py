"""Files of weights and configurations as diffusers and transformers lay them out: no weights are read, no torch."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flashdmd_cli.core.unfit import Unfit

STEMS = ("diffusion_pytorch_model", "model")
"""How diffusers and transformers call a network's file of weights."""
VARIANTS = ("", ".fp16", ".bf16")
"""Precisions that a network comes in, best first; its file's name says which."""


@dataclass(frozen=True)
class Source:
    """What a teacher is read from."""

    weights: Path
    """A pipeline folder, or a checkpoint file in the original layout."""
    config: Path | None = None
    """For a file: a pipeline folder with the configurations and tokenizers that belong to it; its weights are unused.
    """
    vae: Path | None = None
    """An autoencoder instead of the teacher's own: a folder, or a file in the original layout."""

    @property
    def folder(self) -> Path:
        """Where configurations, tokenizers and scheduler are."""
        return self.config or self.weights


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of one network, whole: one file, or the parts that an index lists; full precision first.

    Raises Unfit that says what is there instead.
    """
    absent: list[str] = []
    for variant in VARIANTS:
        for stem in STEMS:
            if (single := folder / f"{stem}{variant}.safetensors").is_file():
                return [single]
            index = folder / f"{stem}.safetensors.index{variant}.json"
            if index.is_file():
                parts = sorted(set(read_json(index).get("weight_map", {}).values()))
                missing = [name for name in parts if not (folder / name).is_file()]
                if parts and not missing:
                    return [folder / name for name in parts]
                absent = absent or missing
    if absent:
        raise Unfit(f"{folder.name}/ lacks {absent[0]}, one of the parts of its weights", "copy the folder again")
    if not folder.is_dir():
        raise Unfit(f"has no {folder.name}/")
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".ckpt", ".pt"))
    if pickles:
        raise Unfit(
            f"{folder.name}/ has its weights as a pickle ({pickles[0]}), which is not read",
            "StableDiffusionXLPipeline.from_pretrained(FOLDER).save_pretrained(NEW) writes them as safetensors",
        )
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    expected = f"{STEMS[folder.name not in ('unet', 'vae')]}.safetensors"
    raise Unfit(f"{folder.name}/ has no {expected}" + (f", only {', '.join(others)}" if others else ""))


def vae_folder(place: Path) -> Path:
    """The folder of an autoencoder: `place` itself, or `vae/` of the pipeline there."""
    return place if (place / "config.json").is_file() else place / "vae"


def is_lora(names: Iterable[str]) -> bool:
    """Whether tensors with these names are low-rank updates of another model's."""
    return any("lora_" in name or ".lora." in name for name in names)


def same_denoiser(one: Path, other: Path) -> bool:
    """Whether two denoisers' folders describe the same network; what a later version of diffusers adds is no matter."""
    try:
        mine, theirs = (read_json(folder / "config.json") for folder in (one, other))
    except (OSError, ValueError):
        return False
    return all(mine.get(key) == value for key, value in theirs.items() if not key.startswith("_"))


def read_shapes(path: Path) -> dict[str, list[int]]:
    """Name and shape of every tensor of a safetensors file, from its header; Unfit when it has none."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as held:
            return {name: held.get_slice(name).get_shape() for name in held.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise Unfit(f"cannot be read as safetensors: {error}", "copy or download the file again") from None


def read_json(path: Path) -> dict[str, Any]:
    """The table in a JSON file; Unfit when it holds none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise Unfit(f"{path.name} is no JSON: {error}", "copy the file again") from None
    if not isinstance(values, dict):
        raise Unfit(f"{path.name} holds no table", "copy the file again")
    return values
