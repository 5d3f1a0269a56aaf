"""Weight and configuration files in the layout of diffusers and transformers; reads no weights and needs no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flashdmd_cli.core.parsing import parse_json
from flashdmd_cli.core.unfit import Unfit

STEMS = ("diffusion_pytorch_model", "model")
"""File names of weights in diffusers and transformers, without ending; `stem` has that of one part."""
VARIANTS = ("", ".fp16", ".bf16")
"""Parts of weight file names that indicate the precision, best first."""

DENOISER, VAE = "model.diffusion_model.", "first_stage_model."
"""Prefixes of the tensor names of denoiser and autoencoder in the layout of the models' original code."""


@dataclass(frozen=True)
class Source:
    """The files that a teacher is loaded from."""

    weights: Path
    """A pipeline folder, or a checkpoint file in the layout of the original code."""
    config: Path | None = None
    """For a file: a pipeline folder with the matching configurations and tokenizers; its weights are not used."""
    vae: Path | None = None
    """An autoencoder that replaces the teacher's: a folder, or a file in the original layout."""
    denoiser: Path | None = None
    """The folder of a student's denoiser, which replaces the teacher's; that one is not read then."""

    @property
    def folder(self) -> Path:
        """The folder with configurations, tokenizers and scheduler."""
        return self.config or self.weights


def stem(part: str) -> str:
    """File name of the weights of a part of a pipeline, without ending: text encoders are networks of transformers."""
    return STEMS[part.startswith("text_encoder")]


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of one network: a single file, or all shards of an index; full precision is preferred.

    Raises Unfit, describing what was found instead, if no set of files is complete.
    """
    absent: list[str] = []
    for variant in VARIANTS:
        for name in STEMS:
            if (single := folder / f"{name}{variant}.safetensors").is_file():
                return [single]
            index = folder / f"{name}.safetensors.index{variant}.json"
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
            f"{folder.name}/ has its weights as a pickle ({pickles[0]}), which is not supported",
            "DiffusionPipeline.from_pretrained(FOLDER).save_pretrained(NEW) writes them as safetensors",
        )
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    raise Unfit(
        f"{folder.name}/ has no {stem(folder.name)}.safetensors" + (f", only {', '.join(others)}" if others else "")
    )


def vae_folder(place: Path) -> Path:
    """The folder of an autoencoder: `place` itself, or `vae/` if `place` is a pipeline folder."""
    return place if (place / "config.json").is_file() else place / "vae"


def is_lora(names: Iterable[str]) -> bool:
    """Whether tensors with these names belong to a LoRA."""
    return any("lora_" in name or ".lora." in name for name in names)


def same_denoiser(one: Path, other: Path) -> bool:
    """Whether two folders describe the same network. Keys that only `one` has, written by a newer diffusers, do not
    count."""
    try:
        config, other_config = (read_json(folder / "config.json") for folder in (one, other))
    except (OSError, ValueError):
        return False
    return all(config.get(key) == value for key, value in other_config.items() if not key.startswith("_"))


def same_model(one: Path, other: Path, denoiser: str) -> bool:
    """Whether two pipeline folders belong to the same model: equal vocabularies and configurations of `denoiser`/."""
    try:
        same_vocabulary = _vocabulary(one / "tokenizer") == _vocabulary(other / "tokenizer")
        return same_vocabulary and same_denoiser(one / denoiser, other / denoiser)
    except (OSError, ValueError):
        return False


def _vocabulary(tokenizer: Path) -> dict[str, Any]:
    """The vocabulary in a tokenizer folder, written by an old or new version of transformers."""
    if (tokenizer / "vocab.json").is_file():
        return read_json(tokenizer / "vocab.json")
    words: dict[str, Any] = read_json(tokenizer / "tokenizer.json").get("model", {}).get("vocab", {})
    return words


def read_shapes(path: Path) -> dict[str, list[int]]:
    """Name and shape of every tensor of a safetensors file, from its header; Unfit if it cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise Unfit(f"cannot be read as safetensors: {error}", "copy or download the file again") from None


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; Unfit if it contains none."""
    try:
        values = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise Unfit(f"{path.name} is no JSON: {error}", "copy the file again") from None
    if not isinstance(values, dict):
        raise Unfit(f"{path.name} holds no table", "copy the file again")
    return values
