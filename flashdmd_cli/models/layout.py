"""What a folder or a file on disk holds, read from names, configurations and headers: no weights, no torch.

A teacher is a stock SDXL pipeline folder, or one checkpoint file in the layout of SDXL's original code. What something
is comes from what is written in it, never from how it is called.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flashdmd_cli.core.unfit import Unfit

NETWORKS = ("unet", "vae", "text_encoder", "text_encoder_2")
SETTINGS = ("tokenizer", "tokenizer_2", "scheduler")
"""The folders of a stock `StableDiffusionXLPipeline`: those with weights, and those without."""
STEMS = ("diffusion_pytorch_model", "model")
"""How diffusers and transformers call a network's file of weights."""
VARIANTS = ("", ".fp16", ".bf16")
"""Precisions that a network comes in, best first; its file's name says which."""
UNET = "model.diffusion_model."
EMBEDDERS = ("conditioner.embedders.0.", "conditioner.embedders.1.")
VAE = "first_stage_model."
"""Where the networks lie in a checkpoint in the original layout; the text encoders are the embedders."""


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
                parts = sorted(set(_json(index).get("weight_map", {}).values()))
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


def missing_parts(folder: Path, strict: bool = False) -> list[str]:
    """What a pipeline folder lacks, in words; empty when it is whole. `strict` raises Unfit for the first."""
    lacking = [] if (folder / "model_index.json").is_file() else [Unfit("has no model_index.json")]
    for part in NETWORKS:
        try:
            weight_files(folder / part)
            if not (folder / part / "config.json").is_file():
                raise Unfit(f"{part}/ has no config.json")
        except Unfit as error:
            lacking.append(error)
    lacking += [Unfit(f"has no {part}/") for part in SETTINGS if not (folder / part).is_dir()]
    if strict and lacking:
        more = f", and {len(lacking) - 1} more is missing" if len(lacking) > 1 else ""
        raise Unfit(f"{lacking[0]}{more}", lacking[0].hint or "a complete StableDiffusionXLPipeline folder")
    return [str(error) for error in lacking]


def refuse_folder(folder: Path) -> None:
    """Unfit, in words of what it is, for a folder that is no whole SDXL pipeline with a denoiser to distil."""
    if not (folder / "model_index.json").is_file():
        raise _no_pipeline(folder)
    index = _json(folder / "model_index.json")
    name = index.get("_class_name", "a pipeline without a class")
    if (folder / "unet" / "config.json").is_file():
        if said := _other_unet(_json(folder / "unet" / "config.json"), folder):
            raise Unfit(said)
    # Those that edit pictures (StableDiffusionXLImg2ImgPipeline) draw with the same networks.
    if not name.startswith("StableDiffusionXL"):
        raise Unfit(f"is a {name}, which is not SDXL")
    vae = (index.get("vae") or [None, None])[1]
    if vae not in (None, "AutoencoderKL"):
        raise Unfit(f"decodes with {vae}; only AutoencoderKL has the encoder that training needs")
    missing_parts(folder, strict=True)


def refuse_file(path: Path) -> None:
    """Unfit, in words of what it is, for a file that is no SDXL checkpoint in the original layout."""
    if path.suffix != ".safetensors":
        hint = "convert it to .safetensors" if path.suffix in (".ckpt", ".pt", ".pth", ".bin") else ""
        raise Unfit("is a file, but no .safetensors", hint or "a checkpoint file, or the folder of a pipeline")
    shapes = read_shapes(path)
    names = list(shapes)
    if is_lora(names):
        raise Unfit("is a LoRA, not a model", MERGE)

    def has(*starts: str) -> bool:
        return any(name.startswith(starts) for name in names)

    if has("double_blocks.", UNET + "double_blocks."):
        raise Unfit("is a Flux model, which is not SDXL")
    if has("joint_blocks.", UNET + "joint_blocks."):
        raise Unfit("is an SD3 model, which is not SDXL")
    if has("down_blocks.", "up_blocks."):
        raise Unfit("is a denoiser alone, in the layout of diffusers", "name the folder of its pipeline")
    if not has(UNET + "input_blocks."):
        raise Unfit("is no checkpoint in the layout of SDXL's original code", f"its first tensor is {names[0]}")
    if has("edm_mean", "edm_vpred"):
        raise Unfit("is an EDM model, whose noise schedule is not SDXL's")
    if has(UNET + "time_embed.cond_proj."):
        raise Unfit("has been distilled already: its denoiser takes the guidance as an input")
    channels = shapes[UNET + "input_blocks.0.0.weight"][1]
    outputs = shapes.get(UNET + "out.2.weight", [channels])[0]
    if channels != outputs:
        raise Unfit(_more_channels(channels, outputs))
    if has("cond_stage_model."):
        raise Unfit("is Stable Diffusion 1 or 2, which is not SDXL")
    if has(EMBEDDERS[0] + "model.") and not has(EMBEDDERS[1]):
        raise Unfit(REFINER)
    for prefix, what in ((EMBEDDERS[0], "first text encoder"), (EMBEDDERS[1], "second text encoder")):
        if not has(prefix):
            raise Unfit(f"has no {what} (no tensor {prefix}...)", "name a whole checkpoint")


def refuse_vae(place: Path) -> None:
    """Unfit, in words of what it is, for a file or a folder that holds no autoencoder of SDXL's kind."""
    if place.is_file():
        if not any("decoder." in name for name in read_shapes(place)):
            raise Unfit("holds no autoencoder: none of its tensors is a decoder's")
        return
    folder = vae_folder(place)
    weight_files(folder)
    config = folder / "config.json"
    kind = _json(config).get("_class_name") if config.is_file() else None
    if kind != "AutoencoderKL":
        raise Unfit(f"is {f'a {kind}' if kind else 'a folder without config.json'}, not an AutoencoderKL")


def vae_folder(place: Path) -> Path:
    """The folder of an autoencoder: `place` itself, or `vae/` of the pipeline there."""
    return place if (place / "config.json").is_file() else place / "vae"


def is_lora(names: Iterable[str]) -> bool:
    """Whether tensors with these names are low-rank updates of another model's."""
    return any("lora_" in name or ".lora." in name for name in names)


MERGE = "merge it into its model first"
REFINER = "is the SDXL refiner, which starts from pictures that another model drew"


def same_denoiser(one: Path, other: Path) -> bool:
    """Whether two denoisers' folders describe the same network; what a later version of diffusers adds is no matter."""
    try:
        mine, theirs = (_json(folder / "config.json") for folder in (one, other))
    except (OSError, ValueError):
        return False
    return all(mine.get(key) == value for key, value in theirs.items() if not key.startswith("_"))


def same_world(one: Path, other: Path) -> bool:
    """Whether two pipeline folders draw the same world: the same denoiser's sizes, told in the same words."""
    try:
        return _words(one / "tokenizer") == _words(other / "tokenizer") and same_denoiser(one / "unet", other / "unet")
    except (OSError, ValueError):
        return False


def _words(tokenizer: Path) -> dict[str, Any]:
    """The vocabulary of a tokenizer's folder, in the file of old or of new versions of transformers."""
    if (tokenizer / "vocab.json").is_file():
        return _json(tokenizer / "vocab.json")
    words: dict[str, Any] = _json(tokenizer / "tokenizer.json").get("model", {}).get("vocab", {})
    return words


def read_shapes(path: Path) -> dict[str, list[int]]:
    """Name and shape of every tensor of a safetensors file, from its header; Unfit when it has none."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as held:
            return {name: held.get_slice(name).get_shape() for name in held.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise Unfit(f"cannot be read as safetensors: {error}", "copy or download the file again") from None


def _other_unet(unet: Mapping[str, Any], folder: Path) -> str | None:
    """What a denoiser is when it is not SDXL's base."""
    channels, outputs = unet.get("in_channels", 4), unet.get("out_channels", 4)
    if channels != outputs:
        return _more_channels(channels, outputs)
    if unet.get("addition_embed_type") != "text_time":
        return "is not SDXL: its denoiser takes no picture sizes (Stable Diffusion 1 and 2 do not)"
    if unet.get("time_cond_proj_dim") is not None:
        return "has been distilled already: its denoiser takes the guidance as an input (time_cond_proj_dim)"
    try:
        width = _json(folder / "text_encoder_2" / "config.json")["projection_dim"]
    except (OSError, KeyError):
        return None
    per_number = unet.get("addition_time_embed_dim") or 0
    if unet.get("projection_class_embeddings_input_dim") == 5 * per_number + width:
        return REFINER
    return None


def _more_channels(channels: int, outputs: int) -> str:
    if channels == 2 * outputs + 1:
        return f"is an inpainting model: its denoiser takes {channels} channels, mask and picture among them"
    return f"takes {channels} channels and gives {outputs}: it edits pictures, and draws none from noise alone"


def _no_pipeline(folder: Path) -> Unfit:
    """What a folder without model_index.json is."""
    if (folder / "config.json").is_file() and "_class_name" in (config := _json(folder / "config.json")):
        return Unfit(f"is a single network ({config['_class_name']})", "name the folder of the whole pipeline")
    files = sorted(folder.glob("*.safetensors"))
    if files and is_lora(read_shapes(files[0])):
        return Unfit(f"is a LoRA ({files[0].name}), not a model", MERGE)
    if files:
        return Unfit(f"is no pipeline folder, but holds {files[0].name}", f"name the file: {files[0]}")
    inner = [path.parent.name for path in sorted(folder.glob("*/model_index.json"))]
    if inner:
        return Unfit("is no pipeline folder, but holds one", f"name {folder / inner[0]}")
    return Unfit("has no model_index.json, so it is no pipeline folder", "a complete StableDiffusionXLPipeline")


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise Unfit(f"{path.name} is no JSON: {error}", "copy the file again") from None
    if not isinstance(values, dict):
        raise Unfit(f"{path.name} holds no table", "copy the file again")
    return values
