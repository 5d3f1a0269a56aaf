"""Identification of model folders and files from tensor names, configurations and headers; reads no weights, needs no
torch.

A teacher is a stock SDXL pipeline folder, or one checkpoint file in the layout of SDXL's original code. Identification
uses the contents only, never file names.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flashdmd_cli.core.grid import vp_grid
from flashdmd_cli.core.parsing import parse_json
from flashdmd_cli.core.unfit import Unfit
from flashdmd_cli.families.dimensions import Dimensions
from flashdmd_cli.families.files import is_lora, read_json, read_shapes, vae_folder, weight_files
from flashdmd_cli.families.sdxl.facts import SDXL

UNET = "model.diffusion_model."
EMBEDDERS = ("conditioner.embedders.0.", "conditioner.embedders.1.")
VAE = "first_stage_model."
"""Prefixes of the tensor names of each network in the original layout; the embedders are the text encoders."""


def missing_parts(folder: Path, strict: bool = False) -> list[str]:
    """Messages about the missing parts of a pipeline folder; empty if it is complete. `strict` raises Unfit for the
    first."""
    lacking = [] if (folder / "model_index.json").is_file() else [Unfit("has no model_index.json")]
    for part in SDXL.networks:
        try:
            weight_files(folder / part)
            if not (folder / part / "config.json").is_file():
                raise Unfit(f"{part}/ has no config.json")
        except Unfit as error:
            lacking.append(error)
    lacking += [Unfit(f"has no {part}/") for part in SDXL.settings if not (folder / part).is_dir()]
    if strict and lacking:
        more = f", and {len(lacking) - 1} more is missing" if len(lacking) > 1 else ""
        raise Unfit(f"{lacking[0]}{more}", lacking[0].hint or "a complete StableDiffusionXLPipeline folder")
    return [str(error) for error in lacking]


def refuse_folder(folder: Path) -> None:
    """Raise Unfit, describing what was found, unless `folder` is a complete SDXL pipeline that can be distilled."""
    if not (folder / "model_index.json").is_file():
        raise _no_pipeline(folder)
    index = read_json(folder / "model_index.json")
    name = index.get("_class_name", "a pipeline without a class")
    if (folder / "unet" / "config.json").is_file():
        if problem := _other_unet(read_json(folder / "unet" / "config.json"), folder):
            raise Unfit(problem)
    # Pipelines for image editing (StableDiffusionXLImg2ImgPipeline) have the same networks.
    if not name.startswith("StableDiffusionXL"):
        raise Unfit(f"is a {name}, which is not SDXL")
    vae = (index.get("vae") or [None, None])[1]
    if vae not in (None, "AutoencoderKL"):
        raise Unfit(f"decodes with {vae}; only AutoencoderKL has the encoder that training needs")
    missing_parts(folder, strict=True)


def refuse_file(path: Path) -> None:
    """Raise Unfit, describing what was found, unless `path` is an SDXL checkpoint in the original layout."""
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
        raise Unfit("is an SD3 model in one file", "name the folder or hub id of a StableDiffusion3Pipeline")
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
    """Raise Unfit, describing what was found, unless `place` is a file or folder with an SDXL autoencoder."""
    if place.is_file():
        if not any("decoder." in name for name in read_shapes(place)):
            raise Unfit("holds no autoencoder: none of its tensors is a decoder's")
        return
    folder = vae_folder(place)
    weight_files(folder)
    config = folder / "config.json"
    kind = read_json(config).get("_class_name") if config.is_file() else None
    if kind != "AutoencoderKL":
        raise Unfit(f"is {f'a {kind}' if kind else 'a folder without config.json'}, not an AutoencoderKL")


MERGE = "merge it into its model first"
REFINER = "is the SDXL refiner, which starts from pictures that another model drew"


def _other_unet(unet: Mapping[str, Any], folder: Path) -> str | None:
    """A message if the UNet configuration is not that of SDXL's base model, else None."""
    channels, outputs = unet.get("in_channels", 4), unet.get("out_channels", 4)
    if channels != outputs:
        return _more_channels(channels, outputs)
    if unet.get("addition_embed_type") != "text_time":
        return "is not SDXL: its denoiser takes no picture sizes (Stable Diffusion 1 and 2 do not)"
    if unet.get("time_cond_proj_dim") is not None:
        return "has been distilled already: its denoiser takes the guidance as an input (time_cond_proj_dim)"
    try:
        width = read_json(folder / "text_encoder_2" / "config.json")["projection_dim"]
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
    """The error for a folder without model_index.json, describing what it contains."""
    if (folder / "config.json").is_file() and "_class_name" in (config := read_json(folder / "config.json")):
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


def dimensions(folder: Path) -> Dimensions:
    """Dimensions of an SDXL pipeline folder; raises `OSError`, `ValueError` or `KeyError` for any other folder."""

    def config(part: str, name: str = "config.json") -> dict[str, Any]:
        values: dict[str, Any] = parse_json((folder / part / name).read_text(encoding="utf-8"))
        return values

    unet, vae = config("unet"), config("vae")
    size, channels = int(unet["sample_size"]), int(unet["in_channels"])
    tokens = int(config("tokenizer", "tokenizer_config.json")["model_max_length"])
    scale: int = 2 ** (len(vae["block_out_channels"]) - 1)
    width = int(config("text_encoder_2")["projection_dim"])
    text = {"context": (tokens, int(unet["cross_attention_dim"])), "pooled": (width,)}
    return Dimensions(size * scale, (channels, size, size), text)


def is_student(folder: Path) -> bool:
    """Whether a pipeline folder is a few-step student, judged by its scheduler configuration.

    The scheduler's class is not enough, because teachers with merged LCM adapters have it too; students also have the
    settings that turn off the boundary scaling of consistency models.
    """
    grid = vp_grid(1)
    try:
        config = parse_json((folder / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    ours = {key: grid.config[key] for key in ("original_inference_steps", "timestep_scaling")}
    return config.get("_class_name") == grid.scheduler and ours.items() <= config.items()
